"""Fixtures of several system tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.process_bench import Bench

from orchestrator.catalog.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty catalog with the tenant acme."""
    made = Store(f"sqlite:///{tmp_path / 'catalog.db'}")
    made.migrate()
    made.keys.create_tenant("acme", 1)
    yield made
    made.close()


@pytest.fixture(params=["cloned", "templated"])
def made_either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench.run` clones the tenant's template, or makes a function template of the source and clones that."""
    if request.param == "templated":
        monkeypatch.setattr(Bench, "run", Bench.run_templated)

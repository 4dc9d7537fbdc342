"""Isolation is the same whichever way a sandbox was made."""

import pytest
from doubles.process_bench import Bench


@pytest.fixture(params=["cloned", "templated"])
def made_either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench.run` clones the tenant's template, or makes a function template of the source and clones that."""
    if request.param == "templated":
        monkeypatch.setattr(Bench, "run", Bench.run_templated)

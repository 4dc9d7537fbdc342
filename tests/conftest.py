"""Who runs which test, and what a skip means.

`needs_root` tests run as root, `needs_user` tests as an ordinary user; elsewhere they are skipped with the reason. With CI=true a
skip is a failure, because there nothing may be missing; the tests of the other user are then left to that user's own run.
"""

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from doubles import profiles, shares
from doubles.servers import Postgres, RedisServer

profiles.load()

# a hundred platforms of eight processes are started: without bytecode each would compile all of it anew, and so does pytest here
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

FIRST = ("faults", "system", "journeys", "input", "browser", "contracts", "unit")
IN_CI = os.environ.get("CI") == "true"


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        share = contextlib.ExitStack()
        share.enter_context(shares.own_share())
        config.add_cleanup(share.close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # the workers share the files, those with real platforms first: while these wait, small ones run
    items.sort(key=lambda item: FIRST.index(place) if (place := item.path.parent.name) in FIRST else len(FIRST))
    foreign, why = ("needs_user", "must run as an ordinary user") if os.geteuid() == 0 else ("needs_root", "needs root")
    others = [item for item in items if item.get_closest_marker(foreign)]
    if IN_CI and others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if not item.get_closest_marker(foreign)]
        return
    for item in others:
        item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true forbids: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped, which CI=true forbids: {_reason(report.longrepr)}"
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One private PostgreSQL for the whole run; a test takes a database of its own from it. Never break this one."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session", params=["valkey", "redis"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The embedded Valkey and Debian's Redis, shared: a test empties it first. Never break it."""
    server = RedisServer(request.param)
    try:
        server.start()
        yield server.url
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    return str(request.getfixturevalue("postgres").fresh())


def _reason(longrepr: object) -> str:
    return str(longrepr[-1]) if isinstance(longrepr, tuple) else str(longrepr)

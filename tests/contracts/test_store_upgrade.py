"""A database of the first release, with data in it, becomes this release's: nothing is lost, what served goes on serving."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from graph.ids import FunctionId
from orchestrator.catalog.database import SchemaMissing
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.keys import token_digest
from orchestrator.catalog.model import ConditionName, ConditionStatus, Module
from orchestrator.catalog.postgresql import spoken
from orchestrator.catalog.store import Store

PACKAGE = "sha256:" + "a" * 64
PROCESSES = 3
SEALED = bytes(range(256))

# As the first release left them: an admin and a revoked key, a function that serves version 2 of 3, one that was removed.
ROWS = (
    "INSERT INTO installation VALUES (1, 'f00d')",
    "INSERT INTO tenants (name, created) VALUES ('default', 1), ('acme', 2)",
    "INSERT INTO keys (key_id, tenant, digest, name, created, revoked, last_used, generation) VALUES"
    " ('k1', 'default', :admin, 'admin', 1, NULL, NULL, 1),"
    " ('k2', 'acme', :ci, 'ci', 2, NULL, 3, 1), ('k3', 'acme', :old, 'admin', 2, 4, NULL, 2)",
    "INSERT INTO packages VALUES ('acme', :package, 1, 10, '', '', 5)",
    "INSERT INTO functions (id, tenant, name, kind, generation, route_generation, latest, serving, published, created, deleted)"
    " VALUES (1, 'acme', 'f', 'event', 5, 4, 3, 2, 2, 6, NULL), (2, 'acme', 'gone', 'event', 3, 3, 1, NULL, NULL, 6, 7)",
    *(
        "INSERT INTO versions (function, number, generation, tenant, kind, handler, runtime, memory_mb, timeout_s, concurrency,"
        " environment, environment_names, calls, egress, package, code_layer, dependency_layer, layers_size, state, created)"
        f" VALUES (1, {number}, {generation}, 'acme', 'event', 'h:f', 'python3.11', 128, 30, 1, :sealed, '[\"A\"]', '[\"g\"]',"
        f" 'none', :package, '{layer}', '', 10, '{state}', 6)"
        for number, generation, layer, state in ((1, 1, "sha256:1", "ready"), (2, 3, "sha256:2", "ready"), (3, 5, "", "pending"))
    ),
    *(
        f"INSERT INTO conditions VALUES (1, {number}, '{name}', '{status}', '')"
        for number, code in ((1, "true"), (2, "true"), (3, "unknown"))
        for name, status in (("code", code), ("network", "not needed"), ("capacity", "not needed"))
    ),
    "INSERT INTO events (id, kind, subject, generation, payload, created)"
    " VALUES (7, 'deployed', 'acme/f', 5, '{\"number\": 3}', 8)",
    "INSERT INTO deliveries (event, module, due, tries, reason) VALUES (7, 'function_management', 8, 1, ''),"
    " (7, 'metadata_sync', NULL, 0, '')",
)  # fmt: skip
F = FunctionId("acme/f")


@pytest.fixture
def first_release(database_url: str) -> str:
    store = Store(database_url)
    store.database.migrate("0001")
    store.close()
    words = {
        "admin": token_digest("root"),
        "ci": token_digest("ci"),
        "old": token_digest("old"),
        "package": PACKAGE,
        "sealed": SEALED,
    }
    engine = create_engine(spoken(database_url))
    with engine.begin() as connection:
        for row in ROWS:
            connection.execute(text(row), {name: value for name, value in words.items() if f":{name}" in row})
        if engine.dialect.name == "postgresql":  # the rows name their ids themselves
            for table in ("functions", "events"):
                connection.execute(text(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))"))
    engine.dispose()
    return database_url


def upgraded(url: str) -> Store:
    """By several processes at once, as several controls of one release would."""
    program = "import sys; from orchestrator.catalog.store import Store; one = Store(sys.argv[1]); one.migrate(); one.close()"
    running = [subprocess.Popen([sys.executable, "-c", program, url], cwd=Path.cwd()) for _ in range(PROCESSES)]
    assert [one.wait(60) for one in running] == [0] * PROCESSES
    return Store(url)


def test_the_admin_key_becomes_the_operators_and_no_other_does(first_release: str) -> None:
    before = Store(first_release)
    with pytest.raises(SchemaMissing):
        before.database.check_schema()
    before.close()
    store = upgraded(first_release)
    store.database.check_schema()
    engine = create_engine(spoken(first_release))
    with engine.connect() as connection:
        roles = {row.key_id: row.role for row in connection.execute(text("SELECT key_id, role FROM keys"))}
    engine.dispose()
    assert roles == {"k1": "operator", "k2": "tenant", "k3": "tenant"}
    assert {one.digest for one in store.published_keys() if one.route is not None} == {token_digest("root"), token_digest("ci")}
    assert store.identity() == "f00d"
    store.close()


def test_functions_survive_and_are_served(first_release: str) -> None:
    store = upgraded(first_release)
    described = store.functions.describe("acme", "f")
    assert (described.latest, [one.state for one in described.versions]) == (2, ["pending", "ready", "ready"])
    route = store.functions.route(F)
    assert route is not None
    assert (route.latest, route.generation, route.calls) == (2, 4, ("g",))
    assert [(spec.version, spec.package.code, spec.environment) for spec in route.versions] == [
        ("acme/f:1", "sha256:1", SEALED),
        ("acme/f:2", "sha256:2", SEALED),
    ]
    assert [one.function for one in store.published_functions() if one.route is None] == ["acme/gone"]
    store.close()


def test_what_was_under_way_goes_on(first_release: str) -> None:
    store = upgraded(first_release)
    assert store.outbox.due(10) == [(7, Module.FUNCTION_MANAGEMENT)]
    store.functions.set_condition(F, 3, ConditionName.CODE, ConditionStatus.TRUE, "", 11)
    assert (7, Module.METADATA_SYNC) in store.outbox.due(11)
    route = store.functions.mark_serving(F, 3)
    assert route is not None
    assert (route.latest, route.generation) == (3, 6)
    settings = VersionSettings(PACKAGE, "h:f", "event", "python3.11", 128, 30.0, 1)
    assert store.functions.put("acme", "f", settings, 12).versions[0].number == 4
    assert store.functions.put("acme", "gone", settings, 12).versions[0].number == 2
    store.close()


def test_nodes_of_an_earlier_release_get_numbers_of_their_own(database_url: str) -> None:
    store = Store(database_url)
    store.database.migrate("0004")
    engine = create_engine(spoken(database_url))
    with engine.begin() as connection:
        for name, role, state in (("a", "node", "up"), ("b", "node", "left"), ("c", "node", "silent"), ("z", "zone-cache", "up")):
            connection.execute(
                text(
                    "INSERT INTO nodes (name, role, address, zone, fingerprint, fingerprint_before, state, epoch, generation,"
                    " joined, tenants) VALUES (:name, :role, 'h:1', '', '', '', :state, 1, 1, 1, '')"
                ),
                {"name": name, "role": role, "state": state},
            )
    store.migrate()
    with engine.connect() as connection:
        numbers = {row.name: row.number for row in connection.execute(text("SELECT name, number FROM nodes"))}
    engine.dispose()
    assert numbers == {"a": 2, "b": None, "c": 3, "z": None}
    store.close()

"""What control and the control flow rely on of the store, on both databases: SQLite and PostgreSQL."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles.servers import Postgres
from sqlalchemy import create_engine, select
from sqlalchemy.exc import SQLAlchemyError

from graph.ids import FunctionId
from orchestrator.catalog.bounded import BoundedConnection
from orchestrator.catalog.database import SchemaMissing, retried
from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.functions import VERSIONS_KEPT, VersionSettings
from orchestrator.catalog.keys import Caller
from orchestrator.catalog.model import (
    ConditionName,
    ConditionStatus,
    Event,
    EventKind,
    Function,
    KeyRole,
    LayerRole,
    Module,
    Schema,
)
from orchestrator.catalog.outbox import MAX_TRIES, MODULES, RESEND_S
from orchestrator.catalog.packages import LayerView
from orchestrator.catalog.postgresql import spoken
from orchestrator.catalog.routes import VERSIONS_PER_ROUTE, Route
from orchestrator.catalog.store import Store

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(database_url)
    made.migrate()
    for tenant in ("acme", "rival"):
        made.keys.create_tenant(tenant, 1)
        made.packages.register(tenant, DIGEST, 1, 10, (), "", 1)
    yield made
    made.close()


def settings(**changes: object) -> VersionSettings:
    plain: dict[str, object] = {
        "package": DIGEST, "handler": "h:f", "kind": "event", "runtime": "python3.11", "memory_mb": 128, "timeout_s": 30.0,
        "concurrency": 1,
    }  # fmt: skip
    return VersionSettings(**(plain | changes))  # type: ignore[arg-type]


def decide(store: Store, number: int, status: ConditionStatus = ConditionStatus.TRUE, reason: str = "", name: str = "f") -> None:
    """The code's condition; the others are not needed."""
    function = FunctionId(f"acme/{name}")
    for other in (ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(function, number, other, ConditionStatus.NOT_NEEDED, "", 4)
    store.functions.set_condition(function, number, ConditionName.CODE, status, reason, 5)


def serve(store: Store, number: int, name: str = "f") -> Route | None:
    decide(store, number, name=name)
    route = store.functions.mark_serving(FunctionId(f"acme/{name}"), number)
    if route is not None:
        store.functions.mark_published(route, 6)
    return route


def finish(store: Store) -> None:
    for event, module in store.outbox.due(1e9):
        store.outbox.close(event, module, 2)


def deploy_event(store: Store, **changes: object) -> tuple[int, Module]:
    """A deploy that only function management and the routes have not finished."""
    store.functions.put("acme", "f", settings(**changes), 10)
    for event, module in store.outbox.due(10):
        if module in (Module.NETWORK_DEPLOYMENT, Module.SCHEDULING):
            store.outbox.close(event, module, 10)
    ((event, module),) = store.outbox.due(10)
    assert module is Module.FUNCTION_MANAGEMENT
    return event, module


# -- schema


def test_migrating_twice_and_at_once_is_once(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(4)]
    with pytest.raises(SchemaMissing, match="control"):
        stores[0].database.check_schema()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.migrate(), stores))
    for one in stores:
        one.database.check_schema()
        one.close()


def test_the_migrated_schema_is_the_model(database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    made = Store(database_url)
    made.migrate()
    made.close()
    engine = create_engine(spoken(database_url))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Schema.metadata) == []
    engine.dispose()


# -- keys


def test_a_key_opens_its_tenant_until_it_is_revoked(store: Store) -> None:
    made = store.keys.make_key("acme", "ci", 1)
    assert len(made.token) >= 43
    assert store.keys.authenticate(made.token, 2) == Caller("acme", KeyRole.TENANT, made.key_id)
    assert store.keys.authenticate(made.token + "x", 2) is None
    with pytest.raises(NotFound):
        store.keys.revoke_key("rival", made.key_id, 3)
    store.keys.revoke_key("acme", made.key_id, 3)
    store.keys.revoke_key("acme", made.key_id, 4)
    assert store.keys.authenticate(made.token, 5) is None
    (listed,) = store.keys.list_keys("acme")
    assert (listed.name, listed.revoked, listed.last_used) == ("ci", 3, 2)


def test_the_token_is_not_in_the_database(store: Store, database_url: str, tmp_path: Path) -> None:
    made = store.keys.make_key("acme", "ci", 1)
    engine = create_engine(spoken(database_url))
    with engine.connect() as connection:
        rows = [row for table in Schema.metadata.sorted_tables for row in connection.execute(select(table))]
    engine.dispose()
    assert rows
    assert made.token not in repr(rows)
    for file in tmp_path.iterdir():
        assert made.token.encode() not in file.read_bytes()


def test_last_use_is_written_at_most_once_a_minute(store: Store) -> None:
    made = store.keys.make_key("acme", "ci", 1)
    seen = []
    for now in (100, 130, 159, 161):
        store.keys.authenticate(made.token, now)
        seen.append(store.keys.list_keys("acme")[0].last_used)
    assert seen == [100, 100, 100, 161]


def test_a_tenants_name_is_checked(store: Store) -> None:
    for name in ("", "UP", "a/b", "-a", "x" * 64, "a\n"):
        with pytest.raises(Refused, match="tenant"):
            store.keys.create_tenant(name, 1)
    with pytest.raises(NotFound):
        store.keys.make_key("nobody", "x", 1)


# -- functions


def test_every_put_is_a_new_immutable_version_and_one_event(store: Store) -> None:
    finish(store)
    first = store.functions.put("acme", "f", settings(memory_mb=128), 10)
    second = store.functions.put("acme", "f", settings(memory_mb=512, calls=("g", "f")), 11)
    assert [version.number for version in second.versions] == [2, 1]
    assert first.versions[0] == second.versions[1]
    assert second.latest is None
    assert [call.name for call in second.calls] == ["g", "f"]
    at_once = [Module.FUNCTION_MANAGEMENT, Module.NETWORK_DEPLOYMENT, Module.SCHEDULING]
    assert sorted(module for _, module in store.outbox.due(20)) == sorted(at_once * 2)


def test_a_put_that_is_refused_leaves_nothing(store: Store) -> None:
    finish(store)
    with pytest.raises(Refused, match="upload") as caught:
        store.functions.put("acme", "f", settings(package="sha256:" + "b" * 64), 10)
    assert caught.value.field == "package"
    assert store.functions.list("acme") == []
    assert store.outbox.backlog().open == 0


def test_another_tenant_sees_nothing(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 10)
    assert store.functions.list("rival") == []
    for call in (
        lambda: store.functions.describe("rival", "f"),
        lambda: store.functions.describe_version("rival", "f", 1),
        lambda: store.functions.remove("rival", "f", 11),
    ):
        with pytest.raises(NotFound):
            call()
    with pytest.raises(Refused):
        store.functions.put("rival", "f", settings(package="sha256:" + "c" * 64), 10)
    assert store.functions.describe("acme", "f").versions


def test_a_version_serves_when_its_conditions_hold_and_not_before(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 10)
    assert store.functions.mark_serving(F, 1) is None
    decide(store, 1)
    route = store.functions.mark_serving(F, 1)
    assert route is not None
    assert store.functions.describe("acme", "f").versions[0].state == "pending"
    assert store.functions.describe("acme", "f").latest is None
    store.functions.mark_published(route, 6)
    assert store.functions.describe("acme", "f").versions[0].state == "ready"
    assert store.functions.describe("acme", "f").latest == 1


def test_an_older_version_never_wins(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 10)
    store.functions.put("acme", "f", settings(), 11)
    newer = serve(store, 2)
    older = serve(store, 1)
    assert newer is not None
    assert older is not None
    assert (newer.latest, older.latest) == (2, 2)
    assert older.generation > newer.generation
    assert [spec.version for spec in older.versions] == ["acme/f:1", "acme/f:2"]
    assert store.functions.describe("acme", "f").latest == 2


def test_a_route_that_was_overtaken_is_not_announced_but_its_version_is_by_the_next(store: Store) -> None:
    for _ in range(2):
        store.functions.put("acme", "f", settings(), 10)
    decide(store, 1)
    decide(store, 2)
    first = store.functions.mark_serving(F, 1)
    second = store.functions.mark_serving(F, 2)
    assert first is not None
    assert second is not None
    store.functions.mark_published(first, 6)
    assert store.functions.describe("acme", "f").latest is None
    store.functions.mark_published(second, 6)
    described = store.functions.describe("acme", "f")
    assert described.latest == 2
    assert [version.state for version in described.versions] == ["ready", "ready"]


def test_asking_again_changes_nothing(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 10)
    assert serve(store, 1) == serve(store, 1) == store.functions.route(F)


def test_a_failed_version_leaves_the_old_one_serving(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 10)
    serve(store, 1)
    before = store.functions.route(F)
    store.functions.put("acme", "f", settings(), 11)
    decide(store, 2, ConditionStatus.FALSE, "no such package")
    assert store.functions.mark_serving(F, 2) is None
    described = store.functions.describe("acme", "f")
    assert (described.latest, described.versions[0].state) == (1, "failed")
    assert {one.name: one.reason for one in described.versions[0].conditions}["code"] == "no such package"
    assert store.functions.route(F) == before


def test_a_removed_function_comes_back_with_new_numbers_and_higher_generations(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 10)
    served = serve(store, 1)
    store.functions.remove("acme", "f", 11)
    (gone,) = [one for one in store.published_functions() if one.function == F]
    assert gone.route is None
    decide(store, 1)
    assert store.functions.mark_serving(F, 1) is None
    assert [one.number for one in store.functions.put("acme", "f", settings(), 12).versions] == [2]
    again = serve(store, 2)
    assert served is not None
    assert again is not None
    assert served.generation < gone.generation < again.generation
    assert [spec.version for spec in again.versions] == ["acme/f:2"]


def test_routes_hold_the_newest_versions_and_always_the_serving_one(store: Store) -> None:
    for number in range(1, VERSIONS_PER_ROUTE + 5):
        store.functions.put("acme", "f", settings(), number)
        serve(store, number)
    route = store.functions.route(F)
    assert route is not None
    assert [spec.version for spec in route.versions][-1] == f"acme/f:{VERSIONS_PER_ROUTE + 4}"
    assert len(route.versions) == VERSIONS_PER_ROUTE


def test_old_versions_go_but_the_serving_one_stays(store: Store) -> None:
    store.functions.put("acme", "f", settings(), 1)
    serve(store, 1)
    for _ in range(VERSIONS_KEPT + 3):
        store.functions.put("acme", "f", settings(), 2)
    assert store.functions.describe_version("acme", "f", 1).number == 1
    with pytest.raises(NotFound):
        store.functions.describe_version("acme", "f", 2)
    described = store.functions.describe("acme", "f")
    assert described.latest == 1
    assert described.versions[-1].number == 1


def test_a_declared_callee_is_deployed_only_while_it_serves(store: Store) -> None:
    store.functions.put("acme", "f", settings(calls=("g",)), 1)

    def deployed() -> bool:
        return store.functions.describe("acme", "f").calls[0].deployed

    assert not deployed()
    store.functions.put("acme", "g", settings(calls=("f",)), 1)
    assert not deployed()
    serve(store, 1, "g")
    assert deployed()
    store.functions.remove("acme", "g", 3)
    assert not deployed()


def test_functions_are_listed_by_name_in_pages(store: Store) -> None:
    for name in ("c", "a", "b"):
        store.functions.put("acme", name, settings(), 1)
    assert [view.name for view in store.functions.list("acme")] == ["a", "b", "c"]
    assert [view.name for view in store.functions.list("acme", after="a", limit=1)] == ["b"]


def test_the_route_carries_what_a_node_needs(store: Store) -> None:
    wanted = settings(memory_mb=256, environment=b"sealed", environment_names=("B", "A"), calls=("g",), timeout_s=1.5)
    store.functions.put("acme", "f", wanted, 1)
    store.functions.set_layers(F, 1, "sha256:code", "sha256:deps", 42)
    route = serve(store, 1)
    assert route is not None
    (spec,) = route.versions
    assert spec.package.layers == ("sha256:code", "sha256:deps")
    assert (spec.package.size, spec.memory_mb, spec.environment, spec.timeout_s) == (42, 256, b"sealed", 1.5)
    assert route.calls == ("g",)
    shown = store.functions.describe("acme", "f").versions[0]
    assert shown.environment == {"A": "***", "B": "***"}


def test_many_puts_at_once_lose_nothing(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.functions.put("acme", "f", settings(), 1), range(24)))
    assert [version.number for version in store.functions.describe("acme", "f").versions] == list(range(24, 4, -1))
    assert store.functions.describe_version("acme", "f", 1).number == 1


# -- layers


def test_the_first_layer_built_from_a_source_is_the_one_that_counts(store: Store) -> None:
    key = ("acme", LayerRole.DEPENDENCIES, "req", "python3.11")
    first, second = LayerView("sha256:1", 1, {"x.py": "line 1"}), LayerView("sha256:2", 2)
    assert store.packages.find_layer(*key) is None
    assert store.packages.add_layer(*key, first, 1) == first
    assert store.packages.add_layer(*key, second, 2) == first
    assert store.packages.find_layer(*key) == first
    assert store.packages.find_layer("rival", *key[1:]) is None


# -- outbox


def test_the_routes_wait_for_the_last_condition(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    store.outbox.close(event, module, 11)
    assert store.outbox.due(1e9) == []
    for name in (ConditionName.CODE, ConditionName.NETWORK):
        store.functions.set_condition(F, 1, name, ConditionStatus.TRUE, "", 5)
    store.functions.set_condition(F, 1, ConditionName.CAPACITY, ConditionStatus.UNKNOWN, "0 of 1", 5)
    assert store.outbox.due(1e9) == []
    store.functions.set_condition(F, 1, ConditionName.CAPACITY, ConditionStatus.TRUE, "", 5)
    assert store.outbox.due(1e9) == [(event, Module.METADATA_SYNC)]


def test_instances_wait_for_the_code_only(store: Store) -> None:
    finish(store)
    store.functions.put("acme", "f", settings(initial_instances=2), 10)
    due = {module for _, module in store.outbox.due(1e9)}
    assert due == {Module.FUNCTION_MANAGEMENT, Module.NETWORK_DEPLOYMENT}
    store.functions.set_condition(F, 1, ConditionName.CODE, ConditionStatus.TRUE, "", 11)
    assert {module for _, module in store.outbox.due(1e9)} == due | {Module.SCHEDULING}


def test_an_event_is_claimed_once_and_comes_again_when_nobody_finished_it(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    barrier = threading.Barrier(6)

    def claim(_: int) -> bool:
        barrier.wait(5)
        return store.outbox.claim(event, module, 10)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(claim, range(6))) == 1
    assert store.outbox.due(10 + RESEND_S - 1) == []
    assert store.outbox.due(10 + RESEND_S) == [(event, module)]
    loaded = store.outbox.load(event, module)
    assert loaded is not None
    plan = {"ramp": [], "hold_s": 60.0}
    assert (loaded.subject, loaded.payload, loaded.tries) == ("acme/f", {"number": 1, "instances": 0, "release": plan}, 1)


def test_a_closed_event_is_gone_and_closing_again_is_nothing(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    store.outbox.close(event, module, 11)
    assert store.outbox.load(event, module) is None
    store.outbox.close(event, module, 12)
    store.outbox.close(event, Module.METADATA_SYNC, 12)
    assert store.outbox.backlog().open == 0


def test_a_try_that_fails_comes_again_later_and_is_parked_at_last(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    for name in (ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(F, 1, name, ConditionStatus.NOT_NEEDED, "", 10)
    now, pauses, alive = 10.0, [], True
    while alive:
        assert store.outbox.claim(event, module, now)
        alive = store.outbox.retry(event, module, "index away", now)
        began = now
        while alive and not store.outbox.due(now):
            now += 0.5
        pauses.append(now - began)
    assert len(pauses) == MAX_TRIES
    assert pauses[:4] == [1.0, 2.0, 5.0, 10.0]
    assert store.outbox.backlog().parked == 1
    assert store.outbox.due(1e9) == [(event, Module.METADATA_SYNC)], "the routes are told that this version will not come"
    assert store.outbox.redrive(now) == [event]
    assert store.outbox.due(now) == [(event, module)]
    assert store.outbox.backlog().parked == 0


def test_what_nobody_ever_answers_is_parked_too(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    for number in range(MAX_TRIES):
        assert store.outbox.claim(event, module, 10 + number * RESEND_S)
    assert not store.outbox.claim(event, module, 10 + MAX_TRIES * RESEND_S)
    assert store.outbox.backlog().parked == 1


def test_a_send_that_failed_uses_up_no_try(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    for _ in range(3 * MAX_TRIES):
        assert store.outbox.claim(event, module, 10)
        store.outbox.unclaim(event, module, 10)
    assert store.outbox.due(10) == [(event, module)]


def test_a_new_relay_sends_at_once_what_the_old_one_had_sent(store: Store) -> None:
    finish(store)
    event, module = deploy_event(store)
    store.outbox.claim(event, module, 10)
    assert store.outbox.due(11) == []
    assert store.outbox.resend_open(11) == 1
    assert store.outbox.due(11) == [(event, module)]


def test_keys_and_removals_are_events_of_the_routes_only(store: Store) -> None:
    finish(store)
    made = store.keys.make_key("acme", "ci", 1)
    store.keys.revoke_key("acme", made.key_id, 2)
    store.functions.put("acme", "f", settings(), 3)
    finish(store)
    store.functions.remove("acme", "f", 4)
    assert {module for _, module in store.outbox.due(10)} == {Module.METADATA_SYNC}  # the deploy that waited is let go too
    (key,) = [one for one in store.published_keys() if one.generation == 2]
    assert key.route is None


def test_the_identity_of_the_database_is_made_once(store: Store) -> None:
    assert store.identity() == store.identity()
    assert len(store.identity()) == 32


# -- several processes at once


def at_once(count: int, act: Callable[[int], object]) -> list[object]:
    barrier = threading.Barrier(count)

    def start(number: int) -> object:
        barrier.wait(10)
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def test_what_two_make_first_is_made_once(store: Store, database_url: str) -> None:
    """Rows that are not there yet cannot be locked: PostgreSQL lets one of the two lose, who then tries again."""
    others = [Store(database_url) for _ in range(6)]
    assert len(set(at_once(6, lambda one: others[one].identity()))) == 1
    assert sorted(at_once(6, lambda one: others[one].keys.create_tenant("new", 1))) == [False] * 5 + [True]  # type: ignore[type-var]
    assert len(set(at_once(6, lambda one: others[one].keys.adopt_key("new", "k", "token", 1)))) == 1
    at_once(6, lambda one: others[one].packages.register("new", DIGEST, 1, 10, (), "", 1))
    numbers = at_once(6, lambda one: others[one].functions.put("new", "f", settings(), 1).versions[0].number)
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]  # type: ignore[type-var]
    for other in others:
        other.close()


def test_modules_that_finish_at_once_leave_no_event(store: Store) -> None:
    finish(store)
    modules = MODULES[EventKind.DEPLOYED]
    for _ in range(20):
        store.functions.put("acme", "f", settings(), 10)
        event = store.outbox.due(10)[0][0]
        at_once(len(modules), lambda one: store.outbox.close(event, modules[one], 11))  # noqa: B023
        assert store.outbox.backlog().open == 0
        with store.database.read() as session:
            assert session.get(Event, event) is None


def test_a_reader_sees_one_state_while_others_write(store: Store) -> None:
    """Versions and conditions are read by several statements; none may see what the one before did not."""
    store.functions.put("acme", "f", settings(), 1)
    stopped = threading.Event()

    def write() -> None:
        while not stopped.is_set():
            store.functions.remove("acme", "f", 2)
            store.functions.put("acme", "f", settings(), 3)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(150):
                for view in store.functions.list("acme"):
                    assert [len(version.conditions) for version in view.versions] == [len(ConditionName)]
        finally:
            stopped.set()
        writing.result(20)


def test_writers_that_lock_each_other_out_both_get_through(store: Store) -> None:
    """The deadlock is PostgreSQL's to break; SQLite cannot have one."""
    for name in ("a", "b"):
        store.functions.put("acme", name, settings(), 1)
    first_locks = threading.Barrier(2)
    tries = []

    @retried
    def lock_both(names: tuple[str, str]) -> None:
        tries.append(names)
        with store.database.write() as session:
            for name in names:
                query = select(Function).where(Function.name == name).with_for_update()
                session.scalars(query).one().created += 1
                session.flush()
                if len(tries) <= 2:
                    with contextlib.suppress(threading.BrokenBarrierError):
                        first_locks.wait(1)

    at_once(2, lambda one: lock_both((("a", "b"), ("b", "a"))[one]))
    with store.database.read() as session:
        assert {function.created for function in session.scalars(select(Function))} == {3}


def test_a_database_that_stands_still_is_an_error_within_the_limit(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is open and its kernel acknowledges: only a limit of our own ends the wait."""
    url = postgres.fresh()
    before = Store(url)  # a connection that migrated keeps the limit that it had after that
    before.migrate()
    before.keys.create_tenant("acme", 1)
    before.close()
    made = Store(url)
    with pytest.raises(SQLAlchemyError, match="did not answer"), made.database.read() as session:  # noqa: PT012
        session.execute(select(Function))
        monkeypatch.setattr(BoundedConnection, "answer_s", 0.5)
        stopped = postgres.tree()
        try:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):  # a worker of its own that has ended meanwhile
                    os.kill(pid, signal.SIGSTOP)
            try:
                session.execute(select(Function))
            finally:
                assert not made.database.reachable()
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    assert made.keys.list_keys("acme") == []
    made.close()

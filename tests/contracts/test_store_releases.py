"""Aliases, published versions and releases in the catalog, on both databases: whoever runs a release, and however many do,
nothing is flipped twice or backwards, and nothing goes that something refers to."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph.ids import LATEST, FunctionId
from orchestrator.catalog.aliases import MAX_ALIASES
from orchestrator.catalog.errors import CatalogError, Conflict, NotFound
from orchestrator.catalog.functions import VERSIONS_KEPT, VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus, Module
from orchestrator.catalog.releases import Plan
from orchestrator.catalog.routes import Route
from orchestrator.catalog.store import Store
from orchestrator.catalog.views import VERSIONS_SHOWN
from orchestrator.splitting import Pointer

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")
SETTINGS = VersionSettings(DIGEST, "h:f", "event", "python3.11", 128, 30.0, 1, calls=("g",))
RAMP = Plan((0.1, 0.5, 1.0), 60.0)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = _store(database_url)
    yield made
    made.close()


def _store(url: str) -> Store:
    made = Store(url)
    made.migrate()
    for tenant in ("acme", "rival"):
        made.keys.create_tenant(tenant, 1)
        made.packages.register(tenant, DIGEST, 1, 10, (), "", 1)
    return made


def deploy(store: Store, plan: Plan | None = None) -> int:
    """A version whose conditions hold; with a plan it waits at its gate when another one serves."""
    number = store.functions.put("acme", "f", SETTINGS, 10).versions[0].number
    for name in (ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(F, number, name, ConditionStatus.TRUE, "", 11)
    route = store.functions.mark_serving(F, number, plan, 12)
    if route is not None:
        store.functions.mark_published(route, 13)
    return number


def publish(store: Store) -> Route:
    """As metadata sync does on an event of kind `routed`."""
    route = store.functions.route(F)
    assert route is not None
    store.functions.mark_published(route, 14)
    return route


def latest(store: Store) -> Pointer:
    one = next(one for one in store.aliases.list("acme", "f") if one.name == LATEST)
    return Pointer(one.version, one.second, one.share)


def state(store: Store, number: int) -> str:
    return store.functions.describe_version("acme", "f", number).state


def test_a_release_goes_step_by_step_and_each_step_is_flipped_once(store: Store) -> None:
    deploy(store)
    second = deploy(store, RAMP)
    (release,) = store.releases.open()
    assert (release.step, release.now, release.next) == (0, Pointer(1), Pointer(1, 2, 0.1))
    assert set(release.specs) == {1, 2}
    assert release.calls[2] == ("g",)
    assert state(store, second) == "pending"
    before = store.functions.route(F)
    assert before is not None
    assert [spec.version for spec in before.versions] == ["acme/f:1"], "nobody can reach it yet"
    for step, pointer in enumerate((Pointer(1, 2, 0.1), Pointer(1, 2, 0.5), Pointer(2))):
        assert not store.releases.advance(release.id, step, 20), "it is not in force"
        assert not store.releases.flip(release.id, step + 1, 20)
        assert store.releases.flip(release.id, step, 20)
        assert not store.releases.flip(release.id, step, 20)
        assert latest(store) == pointer
        route = publish(store)
        assert route.generation > before.generation
        before = route
        assert state(store, second) == "ready"
        if pointer.second is not None:
            assert route.aliases[0].share == pointer.share
            assert store.releases.advance(release.id, step, 21)
    assert before.latest == 2
    assert before.aliases == ()
    assert store.releases.describe("acme", release.id).phase == "done"
    assert store.releases.open() == []


def test_each_flip_is_told_to_the_routes_in_its_own_transaction(store: Store) -> None:
    deploy(store)
    deploy(store, Plan())
    for event, module in store.outbox.due(1e9):
        store.outbox.close(event, module, 2)
    (release,) = store.releases.open()
    store.releases.flip(release.id, 0, 20)
    ((event, module),) = store.outbox.due(1e9)
    loaded = store.outbox.load(event, module)
    assert loaded is not None
    assert (loaded.kind, loaded.subject, module) == ("routed", F, Module.METADATA_SYNC)


def test_of_many_runners_that_flip_a_step_at_once_one_does(store: Store) -> None:
    deploy(store)
    deploy(store, RAMP)
    (release,) = store.releases.open()
    with ThreadPoolExecutor(6) as pool:
        flipped = list(pool.map(lambda _: store.releases.flip(release.id, 0, 20), range(6)))
        advanced = list(pool.map(lambda _: store.releases.advance(release.id, 0, 21), range(6)))
        ended = list(pool.map(lambda _: store.releases.stop(release.id, 1, "it is slow", 22), range(6)))
    assert (sum(flipped), sum(advanced), sum(ended)) == (1, 1, 1)
    assert latest(store) == Pointer(1)


def test_what_was_seen_is_the_gate_until_it_opens_and_then_how_the_versions_do(store: Store) -> None:
    deploy(store)
    deploy(store, RAMP)
    (release,) = store.releases.open()
    need = {"version": "f:2", "wanted": 3, "ready": 1, "limit": ""}
    store.releases.progress(release.id, 0, [need], "1 of 3 instances ready", 20)
    assert (seen := store.releases.describe("acme", release.id)).gate == [need]
    assert seen.watch == []
    store.releases.flip(release.id, 0, 21)
    assert (seen := store.releases.describe("acme", release.id)).gate == [], "it is open"
    new = {"version": "f:2", "requests": 120, "errors": 9, "p95_ms": 12.5}
    store.releases.progress(release.id, 0, [new, new | {"version": "f:1"}], "is watched", 22)
    assert store.releases.stop(release.id, 0, "9 of its 120 requests failed", 23)
    assert (seen := store.releases.describe("acme", release.id)).watch == [new, new | {"version": "f:1"}]
    assert (seen.gate, seen.phase) == ([], "stopped")


def test_a_gate_that_stays_shut_leaves_the_old_version_and_tells_why(store: Store) -> None:
    deploy(store)
    second = deploy(store, Plan())
    (release,) = store.releases.open()
    store.releases.progress(release.id, 0, [{"version": "f:2", "wanted": 3, "ready": 1}], "1 of 3 instances ready", 20)
    waiting = {one.name: one for one in store.functions.describe_version("acme", "f", second).conditions}["route"]
    assert (waiting.status, waiting.reason) == ("unknown", "1 of 3 instances ready")
    assert store.releases.stop(release.id, 0, "KeyError: no such setting", 21)
    told = {one.name: one for one in store.functions.describe_version("acme", "f", second).conditions}["route"]
    assert (told.status, told.reason) == ("false", "KeyError: no such setting")
    assert state(store, second) == "failed"
    assert latest(store) == Pointer(1)
    assert not store.releases.flip(release.id, 0, 22)
    assert deploy(store) == 3
    assert latest(store) == Pointer(3)


def test_a_stop_in_the_middle_of_a_ramp_goes_back_to_where_it_came_from(store: Store) -> None:
    deploy(store)
    second = deploy(store, RAMP)
    (release,) = store.releases.open()
    store.releases.flip(release.id, 0, 20)
    publish(store)
    store.releases.advance(release.id, 0, 21)
    assert store.releases.stop(release.id, 1, "it fails", 22)
    assert latest(store) == Pointer(1)
    assert state(store, second) == "ready", "it was in force, and can be invoked by its number"


def test_a_newer_deploy_supersedes_and_an_older_one_that_comes_late_does_not(store: Store) -> None:
    deploy(store)
    late = store.functions.put("acme", "f", SETTINGS, 10).versions[0].number
    third = deploy(store, RAMP)
    for name in (ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(F, late, name, ConditionStatus.TRUE, "", 11)
    route = store.functions.mark_serving(F, late, Plan(), 12)
    assert route is not None, "it is invocable by its number"
    assert [one.target for one in store.releases.open()] == [third]
    store.releases.flip(store.releases.open()[0].id, 0, 20)
    assert latest(store) == Pointer(1, third, 0.1)
    fourth = deploy(store, Plan())
    (release,) = store.releases.open()
    assert (release.target, release.back) == (fourth, Pointer(1)), "it returns to what held before the ramp that it took over"
    assert [one.phase for one in store.releases.list("acme")] == ["preparing", "superseded"]
    store.releases.abort("acme", release.id, 30)
    assert latest(store) == Pointer(1)


def test_a_superseded_version_that_waited_is_invocable_by_its_number(store: Store) -> None:
    deploy(store)
    second, third = deploy(store, Plan()), deploy(store, Plan())
    route = publish(store)
    assert [spec.version for spec in route.versions] == ["acme/f:1", f"acme/f:{second}"]
    assert (state(store, second), state(store, third)) == ("ready", "pending")


def test_without_a_plan_a_version_serves_at_once(store: Store) -> None:
    deploy(store)
    assert deploy(store) == 2
    assert latest(store) == Pointer(2)
    assert store.releases.list("acme") == []


def test_rollback_goes_back_and_forth_in_one_step(store: Store) -> None:
    deploy(store)
    with pytest.raises(Conflict, match="never changed"):
        store.aliases.rollback("acme", "f", LATEST, 20)
    deploy(store)
    assert store.aliases.rollback("acme", "f", LATEST, 20).version == 1
    assert publish(store).latest == 1
    assert store.aliases.rollback("acme", "f", LATEST, 21).version == 2
    deploy(store, RAMP)
    with pytest.raises(Conflict, match="changed nothing yet"):
        store.aliases.rollback("acme", "f", LATEST, 22)
    store.releases.flip(store.releases.open()[0].id, 0, 23)
    assert store.aliases.rollback("acme", "f", LATEST, 24).version == 2
    assert store.releases.open() == []


def test_an_alias_is_made_at_once_moves_by_a_release_and_goes(store: Store) -> None:
    for _ in range(3):
        deploy(store)
    assert store.aliases.set("acme", "f", "live", Pointer(1), None, Plan(), 20).version == 1
    moved = store.aliases.set("acme", "f", "live", Pointer(1, 2, 0.3), "key", Plan(), 21)
    assert (moved.version, moved.second) == (1, None)
    assert moved.release is not None
    assert moved.release.target == 2, "what grows is what is released"
    store.releases.flip(moved.release.id, 0, 22)
    live = next(one for one in store.aliases.list("acme", "f") if one.name == "live")
    assert (live.version, live.second, live.share, live.sticky, live.before) == (1, 2, 0.3, "key", Pointer(1))
    assert next(one for one in publish(store).aliases if one.name == "live").second == 2
    store.aliases.remove("acme", "f", "live", 23)
    assert publish(store).aliases == ()
    with pytest.raises(NotFound):
        store.aliases.remove("acme", "f", "live", 24)
    with pytest.raises(Conflict):
        store.aliases.remove("acme", "f", LATEST, 24)


def test_who_gets_the_same_version_each_time_stays_when_a_release_does_not_say(store: Store) -> None:
    deploy(store)
    deploy(store)
    for plan in (None, Plan()):
        store.aliases.set("acme", "f", LATEST, Pointer(1, 2, 0.5), "key", None, 20)
        third = deploy(store, plan)
        if plan is not None:
            store.releases.flip(store.releases.open()[0].id, 0, 21)
        assert latest(store) == Pointer(third)
        assert store.aliases.list("acme", "f")[0].sticky == "key"


def test_what_aliases_mean_is_shown_however_old_it_is(store: Store) -> None:
    for _ in range(3):
        deploy(store)
    store.aliases.set("acme", "f", "live", Pointer(1, 2, 0.3), None, None, 20)
    for _ in range(VERSIONS_SHOWN):
        store.functions.put("acme", "f", SETTINGS, 30)
    shown = {one.number for one in store.functions.describe("acme", "f").versions}
    assert {1, 2} <= shown
    store.aliases.remove("acme", "f", "live", 31)
    assert not {1, 2} & {one.number for one in store.functions.describe("acme", "f").versions}


def test_what_is_not_ready_or_too_much_or_anothers_is_refused(store: Store) -> None:
    deploy(store)
    for wrong in (Pointer(9), Pointer(1, 9, 0.5)):
        with pytest.raises(Conflict, match="version 9 of 'f' is not there") as told:
            store.aliases.set("acme", "f", "live", wrong, None, None, 20)
        assert told.value.field == ("version" if wrong.version == 9 else "second")
    for number in range(MAX_ALIASES):
        store.aliases.set("acme", "f", f"a{number}", Pointer(1), None, None, 20)
    with pytest.raises(Conflict, match="aliases"):
        store.aliases.set("acme", "f", "one-more", Pointer(1), None, None, 20)
    deploy(store, Plan())
    (release,) = store.releases.open()
    for call in (
        lambda: store.aliases.list("rival", "f"),
        lambda: store.aliases.publish("rival", "f", 1, "", 20),
        lambda: store.aliases.rollback("rival", "f", LATEST, 20),
        lambda: store.releases.describe("rival", release.id),
        lambda: store.releases.abort("rival", release.id, 20),
    ):
        with pytest.raises(NotFound):
            call()
    assert store.releases.list("rival") == []
    assert store.releases.open()[0].id == release.id


def test_nothing_goes_that_is_published_or_that_an_alias_means_or_would_mean(store: Store) -> None:
    for _ in range(6):
        deploy(store)
    store.aliases.publish("acme", "f", 1, "spring", 20)
    store.aliases.set("acme", "f", "live", Pointer(2), None, None, 20)
    store.aliases.set("acme", "f", "live", Pointer(3), None, None, 21)  # 2 is what a rollback would bring back
    for _ in range(VERSIONS_KEPT + 3):
        store.functions.put("acme", "f", SETTINGS, 30)
    there = {number for number in range(1, 7) if _there(store, number)}
    assert there == {1, 2, 3, 5, 6}, "6 serves, and 5 did before"
    route = publish(store)
    assert {"acme/f:1", "acme/f:3", "acme/f:6"} <= {spec.version for spec in route.versions}
    store.aliases.unpublish("acme", "f", 1, 31)
    store.functions.put("acme", "f", SETTINGS, 32)
    assert not _there(store, 1)


def _there(store: Store, number: int) -> bool:
    try:
        return store.functions.describe_version("acme", "f", number).number == number
    except NotFound:
        return False


def test_a_removed_function_takes_its_aliases_and_releases_along(store: Store) -> None:
    deploy(store)
    store.aliases.set("acme", "f", "live", Pointer(1), None, None, 20)
    deploy(store, Plan())
    (release,) = store.releases.open()
    store.functions.remove("acme", "f", 30)
    assert store.releases.open() == []
    assert not store.releases.flip(release.id, 0, 31)
    deploy(store)
    assert [one.name for one in store.aliases.list("acme", "f")] == [LATEST]


def test_a_gate_that_nobody_looks_at_ends_but_a_ramp_that_began_stays(store: Store) -> None:
    deploy(store)
    deploy(store, RAMP)
    (release,) = store.releases.open()
    assert store.releases.expire(release.since - 1, 20) == []
    store.releases.flip(release.id, 0, 20)
    store.releases.advance(release.id, 0, 21)
    assert store.releases.expire(100, 100) == []
    deploy(store, Plan())
    (newer,) = store.releases.open()
    assert store.releases.expire(100, 100) == [newer.id]
    assert latest(store) == Pointer(1)


# -- whatever happens in whatever order


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "catalog.db"
    _store(f"sqlite:///{path}").close()
    return path


ACTS = ("deploy", "ramp", "at once", "flip", "stale flip", "advance", "stop", "abort", "rollback", "alias", "split", "publish")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(acts=st.lists(st.sampled_from(ACTS), min_size=3, max_size=25), picks=st.lists(st.integers(0, 5), min_size=25, max_size=25))
def test_in_whatever_order_generations_grow_and_what_is_meant_can_be_invoked(
    empty: Path, acts: list[str], picks: list[int]
) -> None:
    with tempfile.TemporaryDirectory(prefix="fg-") as folder:
        shutil.copy(empty, Path(folder) / "catalog.db")
        store = Store(f"sqlite:///{folder}/catalog.db")
        try:
            deploy(store)
            generation, clock = 0, itertools.count(20)
            for act, pick in zip(acts, picks, strict=False):
                _act(store, act, pick, next(clock))
                route = publish(store)
                assert route.generation >= generation, "the route went back"
                generation = route.generation
                invocable = {spec.version for spec in route.versions}
                for one in store.aliases.list("acme", "f"):
                    meant = [one.version] if one.second is None else [one.version, one.second]
                    assert {f"acme/f:{number}" for number in meant} <= invocable, (act, one, invocable)
                opened = [(one.function, one.alias) for one in store.releases.open()]
                assert len(opened) == len(set(opened)), "two releases of one alias"
        finally:
            store.close()


def _act(store: Store, act: str, pick: int, now: float) -> None:
    releases = store.releases.open()
    release = releases[pick % len(releases)] if releases else None
    number = 1 + pick % max(1, len(store.functions.describe("acme", "f").versions))
    try:
        if act in ("deploy", "ramp", "at once"):
            deploy(store, {"deploy": Plan(), "ramp": RAMP, "at once": None}[act])
        elif act == "alias":
            store.aliases.set("acme", "f", "live", Pointer(number), None, Plan() if pick % 2 else None, now)
        elif act == "split" and number > 1:
            store.aliases.set("acme", "f", LATEST if pick % 2 else "live", Pointer(1, number, 0.4), None, Plan(), now)
        elif act == "publish":
            store.aliases.publish("acme", "f", number, "", now)
        elif act == "rollback":
            store.aliases.rollback("acme", "f", LATEST if pick % 2 else "live", now)
        elif release is not None and act == "flip":
            preparing = release.phase == "preparing"
            assert store.releases.flip(release.id, release.step, now) == preparing
        elif release is not None and act == "stale flip":
            assert not store.releases.flip(release.id, release.step - 1, now)
            assert not store.releases.flip(release.id, release.step + 1, now)
        elif release is not None and act == "advance":
            store.releases.advance(release.id, release.step, now)
        elif release is not None and act == "stop":
            assert store.releases.stop(release.id, release.step, "it fails", now)
        elif release is not None and act == "abort":
            store.releases.abort("acme", release.id, now)
    except CatalogError:
        pass  # refused: nothing was changed

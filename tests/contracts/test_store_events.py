"""Conditions and parked events: the first word counts, what was given up is told by the version and can be tried again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from graph.ids import FunctionId
from orchestrator.catalog.errors import NotFound
from orchestrator.catalog.functions import VERSIONS_KEPT, VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.outbox import MAX_TRIES, RESEND_S
from orchestrator.catalog.store import Store

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")
TRUE, FALSE, UNKNOWN, NOT_NEEDED = (
    ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN, ConditionStatus.NOT_NEEDED
)  # fmt: skip
CODE, NETWORK, CAPACITY, ROUTE = ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY, ConditionName.ROUTE


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'catalog.db'}")
    made.migrate()
    for tenant in ("acme", "rival"):
        made.keys.create_tenant(tenant, 1)
        made.packages.register(tenant, DIGEST, 1, 10, (), "", 1)
    yield made
    made.close()


def put(store: Store, tenant: str = "acme", name: str = "f", instances: int = 0) -> int:
    settings = VersionSettings(DIGEST, "h:f", "event", "python3.11", 128, 30.0, 1, initial_instances=instances)
    return store.functions.put(tenant, name, settings, 10).versions[0].number


def decide(store: Store, number: int, *names: ConditionName, status: ConditionStatus = TRUE, now: float = 20) -> None:
    for name in names:
        store.functions.set_condition(F, number, name, status, f"{name} said so", now)


def conditions(store: Store, number: int = 1) -> dict[str, tuple[str, str, float]]:
    found = store.functions.describe_version("acme", "f", number).conditions
    return {one.name: (one.status, one.reason, one.since) for one in found}


def event_of(store: Store, number: int = 1) -> int:
    (found,) = {one.id for one in store.outbox.unfinished("acme", parked=False)}
    return found


def park(store: Store, event: int, module: Module, reason: str = "the disk is full") -> None:
    """As a relay and a module that never succeeds would."""
    now = 1000.0
    for _ in range(MAX_TRIES):
        assert store.outbox.claim(event, module, now)
        tried = store.outbox.load(event, module)
        assert tried is not None
        store.outbox.retry(event, module, reason, now, tried.tries)
        now += RESEND_S


def due(store: Store) -> set[Module]:
    return {module for _, module in store.outbox.due(1e9)}


# -- conditions


def test_a_version_says_what_it_waits_for_and_since_when(store: Store) -> None:
    put(store, instances=1)
    assert {name: status for name, (status, _, _) in conditions(store).items()} == dict.fromkeys(ConditionName, UNKNOWN)
    assert conditions(store)[CAPACITY] == (UNKNOWN, "waits for the code", 10)
    decide(store, 1, CAPACITY, status=UNKNOWN, now=15)
    assert conditions(store)[CAPACITY] == (UNKNOWN, "capacity said so", 10), "another reason is no other status"
    decide(store, 1, CODE, now=20)
    assert conditions(store)[CODE] == (TRUE, "code said so", 20)


def test_the_first_word_counts(store: Store) -> None:
    """A build that was handed out twice must not take back what a version serves by."""
    put(store)
    decide(store, 1, CODE, CAPACITY, now=20)
    decide(store, 1, NETWORK, status=NOT_NEEDED, now=20)
    route = store.functions.mark_serving(F, 1)
    assert route is not None
    store.functions.mark_published(route, 30)
    before = conditions(store)
    for status in (FALSE, UNKNOWN, NOT_NEEDED):
        decide(store, 1, *ConditionName, status=status, now=40)
    assert conditions(store) == before
    assert store.functions.describe_version("acme", "f", 1).state == "ready"
    assert before[ROUTE] == (TRUE, "", 30)


def test_a_failed_version_needs_no_route(store: Store) -> None:
    put(store)
    decide(store, 1, CODE, status=FALSE)
    assert conditions(store)[ROUTE] == (NOT_NEEDED, "the version failed", 20)
    assert store.functions.describe_version("acme", "f", 1).state == "failed"


# -- what was given up


def test_a_parked_build_fails_the_version_which_says_the_way_out(store: Store) -> None:
    put(store)
    event = event_of(store)
    park(store, event, Module.FUNCTION_MANAGEMENT)
    status, reason, _ = conditions(store)[CODE]
    assert status == FALSE
    assert reason == f"given up after 10 tries: the disk is full; `foreglow events retry {event}` tries again"
    assert store.functions.describe_version("acme", "f", 1).state == "failed"
    (parked,) = store.outbox.unfinished("acme", parked=True)
    assert (parked.id, parked.kind, parked.subject, parked.module) == (event, "deployed", F, "function_management")
    assert (parked.tries, parked.reason, parked.due) == (MAX_TRIES, "the disk is full", None)
    assert parked.parked is not None


def test_what_never_answers_fails_the_version_too(store: Store) -> None:
    """A task that takes its process with it each time is never heard of."""
    put(store)
    event = event_of(store)
    for number in range(MAX_TRIES + 1):
        store.outbox.claim(event, Module.FUNCTION_MANAGEMENT, 10 + number * RESEND_S)
    status, reason, _ = conditions(store)[CODE]
    assert status == FALSE
    assert "the module never answered" in reason


def test_a_route_that_could_not_be_told_is_seen_at_the_version(store: Store) -> None:
    put(store)
    decide(store, 1, CODE, NETWORK, CAPACITY)
    event = event_of(store)
    park(store, event, Module.METADATA_SYNC, "the queue is away")
    status, reason, _ = conditions(store)[ROUTE]
    assert status == FALSE
    assert "the queue is away" in reason
    assert store.outbox.redrive(1e6, "acme", event) == [event]
    assert conditions(store)[ROUTE][0] == UNKNOWN
    route = store.functions.mark_serving(F, 1)
    assert route is not None
    store.functions.mark_published(route, 30)
    assert conditions(store)[ROUTE][0] == TRUE


def test_a_retried_deploy_begins_anew_where_it_failed_and_serves_at_last(store: Store) -> None:
    put(store, instances=1)
    event = event_of(store)
    decide(store, 1, NETWORK, status=NOT_NEEDED)
    store.outbox.close(event, Module.NETWORK_DEPLOYMENT, 11)
    park(store, event, Module.FUNCTION_MANAGEMENT)
    decide(store, 1, CAPACITY, status=FALSE)  # nothing to start without code
    store.outbox.close(event, Module.SCHEDULING, 12)
    store.outbox.close(event, Module.METADATA_SYNC, 12)
    assert due(store) == set()
    assert store.outbox.redrive(1e6, "acme") == [event]
    assert due(store) == {Module.FUNCTION_MANAGEMENT}
    assert store.functions.describe_version("acme", "f", 1).state == "pending"
    decide(store, 1, CODE, now=50)
    assert due(store) == {Module.FUNCTION_MANAGEMENT, Module.SCHEDULING}
    decide(store, 1, CAPACITY, now=51)
    assert due(store) == {Module.FUNCTION_MANAGEMENT, Module.SCHEDULING, Module.METADATA_SYNC}
    assert store.functions.mark_serving(F, 1) is not None


def test_a_task_from_before_the_retry_closes_nothing(store: Store) -> None:
    put(store)
    event = event_of(store)
    decide(store, 1, NETWORK, CAPACITY)
    park(store, event, Module.FUNCTION_MANAGEMENT)
    assert store.outbox.claim(event, Module.METADATA_SYNC, 1e6)
    late = store.outbox.load(event, Module.METADATA_SYNC)
    assert late is not None
    store.outbox.redrive(1e6, None, event)
    store.outbox.close(event, Module.METADATA_SYNC, 1e6, late.tries)
    assert store.outbox.load(event, Module.METADATA_SYNC) is None, "it waits for the conditions again"
    decide(store, 1, CODE)
    assert Module.METADATA_SYNC in due(store)
    assert store.outbox.claim(event, Module.METADATA_SYNC, 2e6)
    store.outbox.close(event, Module.METADATA_SYNC, 2e6, late.tries)
    assert store.outbox.load(event, Module.METADATA_SYNC) is not None


# -- whose they are


def test_a_tenant_sees_and_retries_its_own_functions_events_only(store: Store) -> None:
    put(store)
    put(store, "rival", "f")
    store.keys.make_key("acme", "ci", 10)
    mine = {one.subject for one in store.outbox.unfinished("acme", parked=False)}
    assert mine == {"acme/f"}
    everything = store.outbox.unfinished(None, parked=False)
    assert {one.kind for one in everything} == {EventKind.DEPLOYED, EventKind.KEY}
    for event in {one.id for one in everything if one.kind == EventKind.DEPLOYED}:
        park(store, event, Module.FUNCTION_MANAGEMENT)
    (theirs,) = store.outbox.unfinished("rival", parked=True)
    with pytest.raises(NotFound):
        store.outbox.redrive(1e6, "acme", theirs.id)
    assert theirs.id not in store.outbox.redrive(1e6, "acme")
    assert store.outbox.unfinished("rival", parked=True) == [theirs]
    assert store.outbox.redrive(1e6) == [theirs.id]


def test_a_tenant_whose_name_begins_anothers_is_another(store: Store) -> None:
    store.keys.create_tenant("acme-2", 1)
    store.packages.register("acme-2", DIGEST, 1, 10, (), "", 1)
    put(store, "acme-2", "f")
    assert store.outbox.unfinished("acme", parked=False) == []


def test_only_a_parked_event_can_be_retried(store: Store) -> None:
    put(store)
    for event in (event_of(store), 4711, 2**62):
        with pytest.raises(NotFound, match="no parked event"):
            store.outbox.redrive(1e6, "acme", event)


def test_events_come_in_pages(store: Store) -> None:
    for number in range(5):
        put(store, name=f"f{number}")
    whole = store.outbox.unfinished("acme", parked=False)
    pages, after = [], 0
    while page := store.outbox.unfinished("acme", False, after, limit=2):
        assert len({one.id for one in page}) <= 2
        pages += page
        after = page[-1].id
    assert pages == whole
    assert len(whole) == 5 * 4


def test_parked_events_go_with_what_they_were_for(store: Store) -> None:
    put(store)
    park(store, event_of(store), Module.FUNCTION_MANAGEMENT)
    for _ in range(VERSIONS_KEPT):
        put(store)
    assert store.outbox.unfinished("acme", parked=True) == []
    put(store, name="g")
    (event,) = {one.id for one in store.outbox.unfinished("acme", parked=False) if one.subject == "acme/g"}
    park(store, event, Module.FUNCTION_MANAGEMENT)
    store.functions.remove("acme", "g", 30)
    assert store.outbox.unfinished("acme", parked=True) == []

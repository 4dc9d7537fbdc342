"""Network deployment and scheduling: what each decides, when it must not, and what it gives up again."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from graph.ids import FunctionId
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.outbox import MAX_TRIES, OpenEvent
from orchestrator.catalog.store import Store
from orchestrator.catalog.vpcs import VpcSettings
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.network_deployment import OPEN_S, NetworkDeployment
from orchestrator.flow.process import guarded
from orchestrator.flow.reaching import Reach, judge
from orchestrator.flow.scheduling import DIED_TRIES, STARTS, Scheduling
from orchestrator.flow.starting import StartFailed, StartInterrupted
from workers.networks import VpcSpec
from workers.versions import VersionSpec

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")
CODE, NETWORK, CAPACITY = ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY


class Nodes:
    """Starts what it is told, or raises `error`; `during` happens while it does."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.drained: list[str] = []
        self.error: Exception | None = None
        self.during: Callable[[], None] = lambda: None

    def start(self, spec: VersionSpec, count: int, progress: Callable[[int], None]) -> None:
        self.started.append((spec.version, count))
        progress(0)
        self.during()
        if self.error is not None:
            raise self.error

    def drain(self, versions: Sequence[str]) -> None:
        self.drained += versions


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'catalog.db'}")
    made.migrate()
    made.keys.create_tenant("acme", 1)
    made.packages.register("acme", DIGEST, 1, 10, (), "", 1)
    yield made
    made.close()


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def scheduling(store: Store, nodes: Nodes) -> Scheduling:
    return Scheduling(store, nodes)


def put(store: Store, instances: int = 0, egress: str = "none", vpc: str = "") -> OpenEvent:
    settings = VersionSettings(
        DIGEST, "h:f", "event", "python3.11", 128, 30.0, 1, egress=egress, initial_instances=instances, vpc=vpc
    )
    number = store.functions.put("acme", "f", settings, time.time()).versions[0].number
    return OpenEvent(number, EventKind.DEPLOYED, F, number, {"number": number, "instances": instances}, 1, time.time())


def decide(store: Store, number: int, name: ConditionName, status: ConditionStatus = ConditionStatus.TRUE) -> None:
    store.functions.set_condition(F, number, name, status, "", time.time())


def condition(store: Store, name: ConditionName, number: int = 1) -> tuple[str, str]:
    found = {one.name: one for one in store.functions.describe_version("acme", "f", number).conditions}[name]
    return found.status, found.reason


# -- network


class Tunnels:
    """What nodes say, one after the other; the last goes on being said."""

    def __init__(self, *said: Reach) -> None:
        self.said = list(said)
        self.asked: list[str] = []

    def vpc(self, spec: VpcSpec) -> Reach:
        return self._say(spec.vpc)

    def internet(self, tenant: str) -> Reach:
        return self._say("")

    def _say(self, asked: str) -> Reach:
        self.asked.append(asked)
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


REACHED, COMING, NEVER = Reach(True, "by n1"), Reach(False, "n1: opening", coming=True), Reach(False, "no proxy has joined")


def network(store: Store, *said: Reach) -> tuple[NetworkDeployment, Tunnels]:
    tunnels = Tunnels(*said)
    return NetworkDeployment(store, tunnels), tunnels  # type: ignore[arg-type]


def changed(created: float = 0.0) -> OpenEvent:
    return OpenEvent(99, EventKind.VPC, "acme/db", 1, {}, 1, created or time.time())


def state(store: Store) -> str:
    return store.functions.describe_version("acme", "f", 1).state


def test_a_function_in_no_private_network_needs_none(store: Store) -> None:
    event = put(store)
    module, tunnels = network(store, NEVER)
    module.apply(event)
    assert condition(store, NETWORK) == ("not needed", "it is in no private network")
    module.apply(event)
    assert condition(store, NETWORK)[0] == "not needed"
    assert tunnels.asked == []


def test_the_internet_is_asked_of_nodes_too(store: Store) -> None:
    module, tunnels = network(store, REACHED)
    module.apply(put(store, egress="internet"))
    assert (condition(store, NETWORK), tunnels.asked) == (("true", "by n1"), [""])


@pytest.fixture
def database(store: Store) -> None:
    store.vpcs.create("acme", "db", VpcSettings(["10.0.0.0/16"]), 1)


@pytest.mark.usefixtures("database")
def test_a_tunnel_that_opens_is_waited_for_and_the_version_says_for_what(store: Store) -> None:
    module, _ = network(store, COMING, REACHED)
    event = put(store, vpc="db")
    with pytest.raises(Busy):
        module.apply(event)
    assert condition(store, NETWORK) == ("unknown", "n1: opening")
    module.apply(event)
    assert condition(store, NETWORK) == ("true", "by n1")


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(("said", "age_s"), [(NEVER, 0.0), (COMING, OPEN_S + 1)])
def test_one_that_does_not_come_fails_the_version_with_the_way_out(store: Store, said: Reach, age_s: float) -> None:
    module, _ = network(store, said)
    module.apply(msgspec.structs.replace(put(store, vpc="db"), created=time.time() - age_s))
    assert condition(store, NETWORK) == ("false", said.reason)
    assert state(store) == "failed"


@pytest.mark.usefixtures("database")
def test_what_was_lacking_comes_and_the_version_begins_anew(store: Store) -> None:
    module, _ = network(store, NEVER, COMING, REACHED)
    module.apply(put(store, vpc="db"))
    assert state(store) == "failed"
    with pytest.raises(Busy):
        module.apply(changed())
    assert state(store) == "failed"
    module.apply(changed())
    assert (state(store), condition(store, NETWORK)[0]) == ("pending", "unknown")
    for event, name in store.outbox.due(time.time() + 1):
        found = store.outbox.load(event, name)
        if found is not None and found.kind is EventKind.DEPLOYED and name is Module.NETWORK_DEPLOYMENT:
            module.apply(found)
    assert condition(store, NETWORK) == ("true", "by n1")


@pytest.mark.usefixtures("database")
def test_what_comes_no_more_is_not_looked_for_for_ever(store: Store) -> None:
    module, _ = network(store, NEVER, COMING)
    module.apply(put(store, vpc="db"))
    module.apply(changed(time.time() - OPEN_S - 1))
    assert state(store) == "failed"


@pytest.mark.usefixtures("database")
def test_a_version_that_serves_goes_on_when_its_network_is_away(store: Store) -> None:
    module, _ = network(store, REACHED, NEVER, REACHED)
    module.apply(put(store, vpc="db"))
    decide(store, 1, CODE)
    decide(store, 1, CAPACITY)
    route = store.functions.mark_serving(F, 1)
    assert route is not None
    store.functions.mark_published(route, time.time())
    module.apply(changed())
    assert (state(store), condition(store, NETWORK)) == ("ready", ("false", "no proxy has joined"))
    module.apply(changed())
    assert (state(store), condition(store, NETWORK)) == ("ready", ("true", "by n1"))


def told(node: str, backend: str = "kernel", ready: bool | None = True, reason: str = "") -> dict[str, object]:
    """`ready` None: it knows nothing of the network."""
    tunnels = [] if ready is None else [{"vpc": "acme/db", "backend": backend, "reason": reason, "ready": ready}]
    return {"node": node, "backend": backend, "reason": reason, "tunnels": tunnels, "reached": ["acme/db"] if ready else []}


def test_what_nodes_say_is_judged_with_who_lacks_what() -> None:
    found = judge("acme/db", [told("n1"), told("n2", "portable"), told("n3", "none", None, "no user namespaces")])
    assert (found.ready, found.coming) == (True, False)
    assert found.reason == "acme/db is reached by 2 of 3 nodes: n1 (kernel); n2 (portable); not by n3: no user namespaces"
    found = judge("acme/db", [told("n1", ready=False, reason="the proxy is away"), told("n2", ready=None)])
    assert (found.ready, found.coming) == (False, True)
    assert "n1: the proxy is away; n2: it was not told of it yet" in found.reason
    found = judge("acme/db", [told("n1", "none", None, "no user namespaces")])
    assert (found.ready, found.coming) == (False, False)
    assert "foreglow doctor" in found.reason


# -- capacity


def test_a_version_that_asks_for_no_instances_needs_none(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    scheduling.apply(put(store))
    assert condition(store, CAPACITY)[0] == "not needed"
    assert nodes.started == []


def test_instances_are_started_once_and_their_progress_is_shown(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    event = put(store, 3)
    decide(store, 1, CODE)
    seen = []
    nodes.during = lambda: seen.append(condition(store, CAPACITY))
    scheduling.apply(event)
    assert seen == [("unknown", "0 of 3 instances ready")]
    assert condition(store, CAPACITY) == ("true", "3 instances started")
    scheduling.apply(event)
    assert nodes.started == [("acme/f:1", 3)]


def test_without_code_there_is_nothing_to_start(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    event = put(store, 3)
    decide(store, 1, CODE, ConditionStatus.FALSE)
    scheduling.apply(event)
    assert condition(store, CAPACITY) == ("false", "nothing to start: its code is not ready")
    assert nodes.started == []


def test_an_error_of_the_guest_fails_the_version_and_nothing_stays(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    event = put(store, 2)
    decide(store, 1, CODE)
    nodes.error = StartFailed("KeyError: 'TOKEN'")
    scheduling.apply(event)
    assert condition(store, CAPACITY) == ("false", "an instance did not start: KeyError: 'TOKEN'")
    assert store.functions.describe_version("acme", "f", 1).state == "failed"
    assert nodes.drained == ["acme/f:1"]


def test_what_may_pass_is_told_and_tried_again(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    event = put(store, 2)
    decide(store, 1, CODE)
    nodes.error = StartInterrupted("no node is reachable")
    with pytest.raises(StartInterrupted):
        scheduling.apply(event)
    assert condition(store, CAPACITY) == ("unknown", "no node is reachable; it is tried again, so far 1 times")
    assert store.functions.describe_version("acme", "f", 1).state == "pending"
    assert nodes.drained == []
    nodes.error = None
    scheduling.apply(event)
    assert condition(store, CAPACITY)[0] == "true"


def test_a_guest_that_dies_again_and_again_fails_the_version(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    event = put(store, 1)
    decide(store, 1, CODE)
    nodes.error = StartInterrupted("killed: the guest ended", died=True)
    with pytest.raises(StartInterrupted):
        scheduling.apply(event)
    scheduling.apply(OpenEvent(event.event, event.kind, event.subject, event.generation, event.payload, DIED_TRIES))
    assert condition(store, CAPACITY) == ("false", "an instance did not start: killed: the guest ended")


def test_one_given_up_leaves_no_instance(store: Store, scheduling: Scheduling, nodes: Nodes, tmp_path: Path) -> None:
    put(store, 1)
    decide(store, 1, CODE)
    nodes.error = StartInterrupted("no node is reachable")
    nudge = Nudge(f"unix://{tmp_path}/none.sock")
    task = guarded(scheduling, store, nudge)
    (event,) = {number for number, module in store.outbox.due(time.time()) if module is Module.SCHEDULING}
    for number in range(MAX_TRIES):
        store.outbox.claim(event, Module.SCHEDULING, time.time() + 60 * number)
        task(event)
    nudge.close()
    status, reason = condition(store, CAPACITY)
    assert status == "false"
    assert "given up after 10 tries: StartInterrupted: no node is reachable; `foreglow events retry 1`" in reason
    assert nodes.drained == ["acme/f:1"]


def test_a_version_that_is_overtaken_needs_no_instances(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    older = put(store, 2)
    put(store)
    for name in (CODE, NETWORK, CAPACITY):
        decide(store, 2, name)
    assert store.functions.mark_serving(F, 2) is not None
    decide(store, 1, CODE)
    scheduling.apply(older)
    assert condition(store, CAPACITY) == ("not needed", "a newer version serves already")
    assert nodes.started == []


def test_a_removal_gives_up_the_instances_of_every_version(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    put(store, 1)
    put(store, 0)
    put(store, 2)
    store.functions.remove("acme", "f", time.time())
    removed = [
        event for number, module in store.outbox.due(time.time()) if (event := store.outbox.load(number, module)) is not None
    ]
    for event in removed:
        if event.kind is EventKind.REMOVED:
            scheduling.apply(event)
    assert set(nodes.drained) == {"acme/f:1", "acme/f:3"}


def test_a_removal_of_what_has_no_instances_is_not_for_scheduling(store: Store) -> None:
    put(store)
    store.functions.remove("acme", "f", time.time())
    kinds = {(one.kind, one.module) for one in store.outbox.unfinished("acme", parked=False)}
    assert ("removed", "metadata_sync") in kinds
    assert ("removed", "scheduling") not in kinds


def test_a_removal_in_the_middle_of_starting_leaves_no_instance(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    event = put(store, 2)
    decide(store, 1, CODE)
    nodes.during = lambda: store.functions.remove("acme", "f", time.time())
    scheduling.apply(event)
    assert nodes.drained == ["acme/f:1"]
    nodes.drained.clear()
    scheduling.apply(event)  # again, after a flow that died before it could give them up
    assert nodes.drained == ["acme/f:1"]
    assert len(nodes.started) == 1


def test_only_so_many_are_waited_for_at_once(store: Store, scheduling: Scheduling) -> None:
    event = put(store, 1)
    decide(store, 1, CODE)
    for _ in range(STARTS):
        assert scheduling._slots.acquire(blocking=False)
    with pytest.raises(Busy):
        scheduling.apply(event)
    scheduling._slots.release()
    scheduling.apply(event)
    assert condition(store, CAPACITY)[0] == "true"


def test_other_events_are_nobodys_business_here(store: Store, scheduling: Scheduling, nodes: Nodes) -> None:
    for kind in (EventKind.KEY, EventKind.TENANT, EventKind.NODE):
        scheduling.apply(OpenEvent(1, kind, "x", 1, {}, 1))
        network(store, NEVER)[0].apply(OpenEvent(1, kind, "x", 1, {}, 1))
    assert (nodes.started, nodes.drained) == ([], [])

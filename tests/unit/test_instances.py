"""The node's books: an instance stands in exactly one place, is offered exactly while it has room, and the counts add up."""

from typing import Any, cast

import pytest
from doubles.nodes import spec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graph.calls import StartKind
from workers.instances import Instance, InstanceTable, State
from workers.rpc.messages import VersionCount

SPECS = [spec("one"), spec("two", memory_mb=256), spec("wide", concurrency=3, memory_mb=512)]
VERSIONS = [one.version for one in SPECS]


def made(of: int, number: int = 0, decision: str = "") -> Instance:
    return Instance(SPECS[of], SPECS[of].memory_mb, decision)


class Books(RuleBasedStateMachine):
    """Drives the table as a node does and keeps simple books of its own beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InstanceTable()
        self.alive: list[Instance] = []
        self.gone: list[Instance] = []
        self.now = 0.0
        self.numbers = 0

    def some(self, state: State, live: bool | None = None) -> list[Instance]:
        return [one for one in self.alive if one.state is state and (live is None or bool(one.live) is live)]

    def _occupy(self, instance: Instance) -> None:
        self.numbers += 1
        instance.live[self.numbers] = cast(Any, object())
        instance.served += 1
        self.table.occupied(instance)

    @rule(of=st.integers(0, 2), decision=st.sampled_from(["", "d"]))
    def begin(self, of: int, decision: str) -> None:
        self.numbers += 1
        instance = made(of, self.numbers, decision)
        self.table.add(instance)
        self.alive.append(instance)

    @precondition(lambda self: self.some(State.PREPARING))
    @rule(pick=st.randoms(use_true_random=False))
    def becomes_ready(self, pick: Any) -> None:
        instance = pick.choice(self.some(State.PREPARING))
        self.now += 1
        self.table.ready(instance, self.now)
        while instance.waiting and instance.free > 0:
            instance.waiting.popleft()
            self._occupy(instance)

    @rule(of=st.integers(0, 2))
    def acquire(self, of: int) -> None:
        version = VERSIONS[of]
        ready = [one for one in self.some(State.READY) if one.spec.version == version and one.free > 0]
        instance = self.table.take(version)
        assert (instance in ready) if ready else instance is None
        if instance is not None:
            self._occupy(instance)
            return
        adopted = self.table.adoptable(version)
        waiting = [one for one in self.some(State.PREPARING) if one.spec.version == version]
        with_room = [one for one in waiting if len(one.waiting) < one.spec.concurrency]
        assert adopted is (with_room[0] if with_room else None)
        if adopted is not None:
            adopted.waiting.append(cast(Any, object()))

    @precondition(lambda self: self.some(State.READY, live=True))
    @rule(pick=st.randoms(use_true_random=False))
    def an_invocation_ends(self, pick: Any) -> None:
        instance = pick.choice(self.some(State.READY, live=True))
        instance.live.pop(next(iter(instance.live)))
        self.now += 1
        self.table.released(instance, self.now)

    @precondition(lambda self: self.alive)
    @rule(pick=st.randoms(use_true_random=False))
    def dies(self, pick: Any) -> None:
        instance = pick.choice(self.alive)
        self.alive.remove(instance)
        self.gone.append(instance)
        self.table.remove(instance)
        instance.live.clear()
        instance.waiting.clear()

    @precondition(lambda self: self.gone)
    @rule(pick=st.randoms(use_true_random=False))
    def is_removed_again(self, pick: Any) -> None:
        self.table.remove(pick.choice(self.gone))

    @rule(needed=st.integers(1, 1200))
    def memory_is_wanted(self, needed: int) -> None:
        idle = self.some(State.READY, live=False)
        planned = [one for one in self.some(State.PREPARING) if one.decision_id and not one.waiting]
        victims = self.table.victims(needed)
        if sum(one.memory_mb for one in [*idle, *planned]) < needed:
            assert victims == []
            return
        assert len(set(victims)) == len(victims)
        assert set(victims) <= {*idle, *planned}
        assert sum(one.memory_mb for one in victims) >= needed
        assert sum(one.memory_mb for one in victims[:-1]) < needed
        assert set(victims) <= set(planned) or set(planned) <= set(victims), "what nobody has waited for goes first"
        victims = [one for one in victims if one in idle]
        assert [(one.served > 0, one.idle_since) for one in victims] == sorted(
            (one.served > 0, one.idle_since) for one in victims
        )
        spared = [one for one in idle if one not in victims and not one.served]
        assert not (spared and any(one.served for one in victims)), "an unused one goes before one that has served"

    @invariant()
    def everyone_stands_in_exactly_one_place(self) -> None:
        listed = list(self.table)
        assert len(listed) == len(set(listed)) == len(self.table) == len(self.alive)
        assert set(listed) == set(self.alive)

    @invariant()
    def ready_if_and_only_if_there_is_room(self) -> None:
        for version in VERSIONS:
            with_room = [one for one in self.some(State.READY) if one.spec.version == version and one.free > 0]
            taken = self.table.take(version)
            assert (taken in with_room) if with_room else taken is None

    @invariant()
    def counts_add_up(self) -> None:
        for version in VERSIONS:
            own = [one for one in self.alive if one.spec.version == version]
            idle = sum(1 for one in own if one.state is State.READY and not one.live)
            preparing = sum(1 for one in own if one.state is State.PREPARING and not one.waiting)
            count = self.table.count(version)
            assert count == VersionCount(version, idle, len(own) - idle - preparing, preparing)
            assert sorted(map(id, self.table.of(version))) == sorted(map(id, own))
        assert {count.version for count in self.table.counts()} == {one.spec.version for one in self.alive}

    @invariant()
    def idle_is_sorted_by_age(self) -> None:
        idle = self.table.idle()
        assert [one.idle_since for one in idle] == sorted(one.idle_since for one in idle)
        assert set(idle) == set(self.some(State.READY, live=False))


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


def ready(table: InstanceTable, of: int = 0, now: float = 0.0, decision: str = "") -> Instance:
    instance = made(of, int(now), decision)
    table.add(instance)
    table.ready(instance, now)
    return instance


def test_the_last_one_used_is_used_again_so_that_the_surplus_ages() -> None:
    table = InstanceTable()
    first, second = ready(table, now=1.0), ready(table, now=2.0)
    for now in (3.0, 4.0, 5.0):
        taken = table.take(VERSIONS[0])
        assert taken is second
        taken.live[1] = cast(Any, object())
        table.occupied(taken)
        del taken.live[1]
        table.released(taken, now)
    assert table.idle() == [first, second]


def test_a_first_use_is_prewarmed_only_through_a_plan_and_only_once() -> None:
    table = InstanceTable()
    planned, plain = ready(table, decision="d1"), ready(table)
    assert (planned.start_kind(), plain.start_kind()) == (StartKind.PREWARMED, StartKind.WARM)
    planned.served = 1
    assert planned.start_kind() is StartKind.WARM


def test_changed_names_every_version_whose_counts_moved() -> None:
    table = InstanceTable()
    instance = ready(table)
    assert table.changed == {VERSIONS[0]}
    table.changed.clear()
    for step in ("occupied", "released", "removed"):
        if step == "occupied":
            instance.live[1] = cast(Any, object())
            table.occupied(instance)
        elif step == "released":
            del instance.live[1]
            table.released(instance, 1.0)
        else:
            table.remove(instance)
        assert table.changed == {VERSIONS[0]}, step
        table.changed.clear()
    table.remove(instance)
    assert table.changed == set()


@pytest.mark.parametrize("needed", [0, -1])
def test_nothing_is_given_up_for_nothing(needed: int) -> None:
    table = InstanceTable()
    ready(table)
    assert table.victims(needed) == []


def test_an_instance_of_several_at_once_stays_in_reach_until_it_is_full() -> None:
    table = InstanceTable()
    wide = ready(table, of=2)
    for number in range(3):
        assert table.take(VERSIONS[2]) is wide
        wide.live[number] = cast(Any, object())
        table.occupied(wide)
    assert table.take(VERSIONS[2]) is None
    assert (table.count(VERSIONS[2]).idle, table.count(VERSIONS[2]).busy) == (0, 1)
    del wide.live[1]
    table.released(wide, 1.0)
    assert table.take(VERSIONS[2]) is wide
    assert table.idle() == []


def use(table: InstanceTable, instance: Instance, now: float) -> None:
    instance.live[1] = cast(Any, object())
    instance.served += 1
    table.occupied(instance)
    del instance.live[1]
    table.released(instance, now)


def test_idle_time_counts_from_the_last_use() -> None:
    table = InstanceTable()
    first, second = ready(table, now=1.0), ready(table, now=2.0)
    use(table, first, 3.0)
    assert table.idle() == [second, first]


def test_what_was_never_used_gives_way_before_what_was_even_when_it_is_younger() -> None:
    table = InstanceTable()
    used, unused = ready(table, now=1.0), ready(table, now=9.0, decision="d1")
    use(table, used, 2.0)
    assert table.victims(100) == [unused]
    assert table.victims(200) == [unused, used]

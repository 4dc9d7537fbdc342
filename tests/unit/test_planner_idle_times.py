"""What planners learn of idle instances: starts as they happen, ends by records, some of them lost."""

from doubles.fleets import Bench, fid
from doubles.nodes import spec

from graph.calls import StartKind
from orchestrator.planner.idle_times import LOST_S, IdleTimes
from orchestrator.planner.keeping import LOOK_S
from tracing.records import InvocationRecord, Timings
from workers.keeping import KeepTimes
from workers.rpc.messages import TriggerEvent

ECHO = "acme/echo"


def begins(ident: str, at: float, name: str = "echo") -> TriggerEvent:
    return TriggerEvent(f"acme/{name}:1", "t" * 32, ident, "", at)


def ends(ident: str, sent: float, ended: float, name: str = "echo") -> InvocationRecord:
    return InvocationRecord("acme", "t" * 32, ident, "", fid(name), 1, sent, ended, StartKind.WARM, "ok", Timings())


def one_each(function: str) -> int:
    return 1


def test_two_at_once_are_two_levels() -> None:
    known = IdleTimes(one_each)
    for at in (0.0, 10.0):
        known.started(begins(f"a{at}", at))
        known.started(begins(f"b{at}", at + 0.1))
        known.ended(ends(f"a{at}", at, at + 1.0))
        known.ended(ends(f"b{at}", at + 0.1, at + 1.1))
    assert [one.gaps for one in known.of(fid("echo")).of] == [(8.9,), (9.1,)]


def test_a_trigger_that_comes_twice_counts_once() -> None:
    known = IdleTimes(one_each)
    for _ in range(2):
        known.started(begins("a", 0.0))
    known.ended(ends("a", 0.0, 1.0))
    assert known.of(fid("echo")).busy == 0


def test_starts_that_were_not_heard_are_learned_from_their_records() -> None:
    known = IdleTimes(one_each)
    for number in range(4):
        known.ended(ends(f"i{number}", 10.0 * number, 10.0 * number + 1.0))
    assert known.first()[fid("echo")].gaps == (9.0, 9.0, 9.0)


def test_lost_records_make_nobody_busy_for_ever() -> None:
    known = IdleTimes(one_each)
    known.started(begins("a", 0.0))
    known.tick(LOST_S - 1.0)
    assert known.of(fid("echo")).busy == 1
    known.tick(LOST_S)
    assert known.of(fid("echo")).busy == 0
    known.started(begins("b", LOST_S))
    known.dropped()
    assert known.of(fid("echo")).busy == 0


def test_functions_and_levels_are_bounded() -> None:
    from orchestrator.planner import idle_times

    before = idle_times.FUNCTIONS, idle_times.FURTHER
    idle_times.FUNCTIONS, idle_times.FURTHER = 5, 6
    try:
        known = IdleTimes(one_each)
        for number in range(10):
            for at_once in range(4):
                known.started(begins(f"{number}-{at_once}", 1.0, f"f{number}"))
        assert len(known.first()) == 5
        assert sum(len(one) for one in known.further().values()) <= 6
        again = IdleTimes(one_each, known.first(), known.further())
        assert again.first().keys() == known.first().keys()
        assert all(again.of(one).busy == 0 for one in again.first())
    finally:
        idle_times.FUNCTIONS, idle_times.FURTHER = before


def test_a_removed_tenant_is_forgotten() -> None:
    known = IdleTimes(one_each)
    known.started(begins("a", 0.0))
    assert known.forget_tenant("acme") == [ECHO]
    known.ended(ends("a", 0.0, 1.0))
    assert known.first()[fid("echo")].running == 0


def test_nodes_hear_what_their_further_instances_are_worth() -> None:
    bench = Bench(policy="priced")
    bench.deploy("echo")
    bench.takes("echo", 0.5)
    keeping, at = bench.loop.keeping, 1_000_000.0
    for number in range(100):
        at += 5.0
        for twin in range(2 if number % 20 == 0 else 1):
            keeping.started(begins(f"{number}-{twin}", at + twin / 100))
        for twin in range(2 if number % 20 == 0 else 1):
            keeping.observe([ends(f"{number}-{twin}", at + twin / 100, at + 0.5 + twin / 100)])
    keeping.tick(at)
    (first,) = [keep_s for _, keep_s, _, _, _ in bench.node.keeps if keep_s]
    assert first["acme/echo:1"] > 4.0
    assert bench.node.more_s["acme/echo:1"][0] < 5.0, "called every 100 s: not worth it"
    assert keeping.levels_of(fid("echo"))[0] == first["acme/echo:1"]


def test_where_two_nodes_have_it_the_second_of_each_is_the_third_of_all() -> None:
    bench = Bench(policy="priced", nodes=2)
    bench.deploy("echo")
    version = spec("echo").version
    for node in bench.nodes:
        node.have[version] = 2
    bench.loop.keeping._worth = {"acme": {fid("echo"): [60.0, 50.0, 40.0, 30.0, 20.0]}}  # type: ignore[dict-item]
    bench.loop.keeping.tick(LOOK_S)
    assert bench.node.more_s == {version: [40.0, 20.0]}


def test_a_node_knows_its_instances_by_their_number() -> None:
    keeps = KeepTimes()
    keeps.tell("acme", {"acme/echo:1": 60.0, "acme/other:1": 5.0}, 0.0, {"acme/echo:1": [30.0, 10.0], "acme/none:1": [1.0]})
    assert [keeps.of("acme/echo:1", 1.0, number) for number in range(4)] == [60.0, 30.0, 10.0, 10.0]
    assert keeps.of("acme/other:1", 1.0, 3) == 5.0
    assert keeps.of("acme/none:1", 1.0) is None

"""From wanted counts to orders, and a fleet that starts to scale at one moment."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement_index import PlacementIndex
from orchestrator.scaling.ordering import order
from orchestrator.scaling.terms import Source, Wanted
from orchestrator.whatif.scaleout import Costs, Fleet, ScaleOut

FIXED = Costs(decide_s=0.01)


def wanted(count: int, version: str = "t/f:1") -> Wanted:
    return Wanted(version, count, Source.REACTIVE, "traffic")


@given(
    counts=st.dictionaries(st.sampled_from([f"t/f{number}:1" for number in range(5)]), st.integers(0, 30)),
    have=st.dictionaries(st.sampled_from([f"t/f{number}:1" for number in range(5)]), st.integers(0, 30)),
    nodes=st.integers(0, 6),
    at_once=st.integers(1, 200),
)
def test_what_is_missing_is_ordered_and_nothing_else(
    counts: dict[str, int], have: dict[str, int], nodes: int, at_once: int
) -> None:
    index = PlacementIndex()
    for number in range(nodes):
        index.add(f"n{number}", "z", 1024)
    missing = {version: count - have.get(version, 0) for version, count in counts.items() if count > have.get(version, 0)}
    made = order([wanted(count, version) for version, count in counts.items()], have, index, lambda version: 128, at_once=at_once)
    ordered = Counter(one.wanted.version for one in made.orders)
    assert sum(ordered.values()) + sum(made.short.values()) + made.later == sum(missing.values())
    assert all(ordered[version] <= missing[version] for version in ordered)
    assert len(made.orders) <= min(at_once, nodes * 8)
    if sum(missing.values()) <= min(at_once, nodes * 8):
        assert ordered == missing


def test_a_fleet_without_room_is_shared() -> None:
    index = PlacementIndex()
    index.add("n", "z", 1024)
    made = order([wanted(100, "t/a:1"), wanted(100, "t/b:1")], {}, index, lambda version: 128)
    assert Counter(one.wanted.version for one in made.orders) == {"t/a:1": 4, "t/b:1": 4}
    assert made.short == {"t/a:1": 96, "t/b:1": 96}


def test_a_large_function_does_not_bring_its_code_everywhere() -> None:
    index = PlacementIndex()
    for number in range(200):
        index.add(f"n{number}", f"z{number % 3}", 1 << 20)
    made = order([wanted(100)], {}, index, lambda version: 128)
    nodes = Counter(one.spot.name for one in made.orders)
    assert 8 <= len(nodes) <= 50
    assert max(nodes.values()) <= 20


def test_downstream_functions_are_wanted_in_the_tick_of_their_entry() -> None:
    found = ScaleOut(Fleet(nodes=50, entries=5, stages=3), FIXED).run()
    assert found.lag_ticks == 0
    assert found.at_s[1.0] < 5.0
    assert found.orders >= found.needed


def test_refused_orders_are_placed_again() -> None:
    found = ScaleOut(Fleet(nodes=50, entries=5, refused=0.2), FIXED).run()
    assert found.refusals > 0
    assert found.at_s[1.0] < 10.0


def test_a_full_fleet_is_short_and_says_so() -> None:
    found = ScaleOut(Fleet(nodes=10, node_mb=2048, entries=5, per_node=20), FIXED, limit_s=5.0).run()
    assert found.short > 0
    assert 1.0 not in found.at_s


def test_what_gives_way_first_is_what_makes_wait_longest() -> None:
    slow_caches = Costs(decide_s=0.01, cache_bytes_s=1e7)
    assert ScaleOut(Fleet(nodes=50, entries=5), slow_caches).run().gives_way == "caches of zones"
    few_cores = Costs(decide_s=0.01, cores=1, clone_s=0.5)
    assert ScaleOut(Fleet(nodes=50, entries=5), few_cores).run().gives_way == "cores of nodes"

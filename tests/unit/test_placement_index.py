"""The sorted lists placement walks: nothing is ever overcommitted, room among the candidates is found, instances are spread."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator.placement_index import PlacementIndex, Spot
from workers.versions import SHAPES_MB

SHAPES = st.sampled_from(SHAPES_MB)
VERSIONS = st.sampled_from([f"t/f{number}:1" for number in range(6)])


class Placements(RuleBasedStateMachine):
    """A fleet whose nodes know what they really have, and an index that hears of it now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PlacementIndex()
        self.real: dict[str, int] = {}
        self.there: list[tuple[Spot, str, int]] = []
        self.unanswered: list[tuple[Spot, str, int]] = []
        self.number = 0

    @rule(zone=st.sampled_from("ab"), free=st.integers(0, 6000))
    def a_node_comes(self, zone: str, free: int) -> None:
        self.number += 1
        self.real[f"n{self.number}"] = free
        self.index.add(f"n{self.number}", zone, free)

    @rule(at=st.integers(0, 100))
    def a_node_goes(self, at: int) -> None:
        if self.real:
            name = sorted(self.real)[at % len(self.real)]
            del self.real[name]
            lost = self.index.remove(name)
            here = [one for one in (*self.there, *self.unanswered) if one[0].name == name]
            assert lost == dict(Counter(version for _, version, _ in here))
            self.there = [one for one in self.there if one[0].name != name]
            self.unanswered = [one for one in self.unanswered if one[0].name != name]

    @rule(version=VERSIONS, memory_mb=SHAPES)
    def place(self, version: str, memory_mb: int) -> None:
        room = {spot.name for spot in self.index if spot.free_mb >= memory_mb}
        spot = self.index.place(version, memory_mb)
        if spot is None:
            assert not room
        else:
            assert spot.name in room
            self.unanswered.append((spot, version, memory_mb))

    @rule(at=st.integers(0, 100))
    def a_node_answers(self, at: int) -> None:
        if self.unanswered:
            spot, version, memory_mb = self.unanswered.pop(at % len(self.unanswered))
            if self.real[spot.name] >= memory_mb:
                self.real[spot.name] -= memory_mb
                self.index.accepted(spot, memory_mb)
                self.there.append((spot, version, memory_mb))
            else:
                self.index.refused(spot, version, memory_mb, self.real[spot.name])

    @rule(at=st.integers(0, 100))
    def an_instance_ends(self, at: int) -> None:
        if self.there:
            spot, version, memory_mb = self.there.pop(at % len(self.there))
            self.real[spot.name] += memory_mb
            self.index.ended(spot, version, memory_mb)

    @rule(at=st.integers(0, 100), taken=st.integers(0, 300))
    def others_take_of_a_node(self, at: int, taken: int) -> None:
        """Another planner, a request: the index does not know."""
        if self.real:
            name = sorted(self.real)[at % len(self.real)]
            self.real[name] = max(0, self.real[name] - taken)

    @rule(at=st.integers(0, 100))
    def a_node_reports(self, at: int) -> None:
        if self.real:
            name = sorted(self.real)[at % len(self.real)]
            spot = self.index.spot(name)
            assert spot is not None
            self.index.reported(spot, self.real[name])
            assert spot.free_mb <= self.real[name]

    @invariant()
    def what_is_counted_is_there(self) -> None:
        counted = Counter(version for _, version, _ in (*self.there, *self.unanswered))
        for number in range(6):
            assert self.index.instances(f"t/f{number}:1") == counted[f"t/f{number}:1"]
        for spot in self.index:
            here = Counter(version for each, version, _ in (*self.there, *self.unanswered) if each is spot)
            assert spot.held == dict(here)
            assert spot.free_mb >= 0

    @invariant()
    def every_node_is_in_the_lists_it_has_room_for(self) -> None:
        for spot in self.index:
            assert spot.section is not None
            for shape, lists in zip(SHAPES_MB, spot.section.lists, strict=True):
                listed = [rank for rank, level in enumerate(lists) if spot in level]
                fits = spot.free_mb // shape
                assert listed == ([min(6, fits.bit_length())] if fits else [])


TestPlacements = Placements.TestCase
TestPlacements.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(free=st.lists(st.integers(0, 4096), min_size=1, max_size=40), wanted=st.lists(SHAPES, max_size=120))
def test_a_node_is_never_given_more_than_it_has(free: list[int], wanted: list[int]) -> None:
    index = PlacementIndex()
    for number, free_mb in enumerate(free):
        index.add(f"n{number}", "z", free_mb)
    given_mb: Counter[str] = Counter()
    for number, memory_mb in enumerate(wanted):
        spot = index.place(f"t/f{number % 7}:1", memory_mb)
        if spot is not None:
            given_mb[spot.name] += memory_mb
        else:
            assert all(free_mb - given_mb[f"n{number}"] < memory_mb for number, free_mb in enumerate(free))
    assert all(given_mb[f"n{number}"] <= free_mb for number, free_mb in enumerate(free))


@given(nodes=st.integers(1, 30), instances=st.integers(1, 60), zones=st.integers(1, 4))
def test_a_function_is_spread_evenly_over_equal_nodes_and_zones(nodes: int, instances: int, zones: int) -> None:
    index = PlacementIndex()
    for number in range(nodes * zones):
        index.add(f"n{number}", f"z{number % zones}", 1 << 20)
    found = [index.place("t/f:1", 128) for _ in range(instances)]
    placed = [spot for spot in found if spot is not None]
    assert len(placed) == instances
    by_zone = Counter(spot.zone for spot in placed)
    assert max(by_zone.values()) - min(by_zone[f"z{zone}"] for zone in range(zones)) <= 1
    by_node = Counter(spot.name for spot in placed)
    assert max(by_node.values()) <= -(-instances // (nodes * zones)) + 1


def test_zones_come_before_nodes_that_are_emptier() -> None:
    index = PlacementIndex()
    for number in range(8):
        index.add(f"a{number}", "a", 1 << 20)
    index.add("b", "b", 1 << 20)
    assert Counter(spot.zone for _ in range(2) if (spot := index.place("t/f:1", 128)) is not None) == {"a": 1, "b": 1}


def test_code_in_tier_1_is_preferred_and_a_second_instance_goes_elsewhere() -> None:
    index = PlacementIndex()
    for number in range(50):
        index.add(f"n{number}", "z", 1 << 20)
    found = [index.place("t/f:1", 128, code={"n30"}) for _ in range(3)]
    names = [spot.name for spot in found if spot is not None]
    assert names[0] == "n30"
    assert len(set(names)) == 3


def test_an_open_tunnel_decides_between_equals() -> None:
    index = PlacementIndex()
    for number in range(8):
        index.add(f"n{number}", "z", 1 << 20)
    spot = index.place("t/f:1", 128, tunnels={"n5"})
    assert spot is not None
    assert spot.name == "n5"


def test_nodes_of_other_tenants_are_never_candidates() -> None:
    index = PlacementIndex()
    index.add("theirs", "z", 1 << 20, ["other"])
    assert index.place("t/f:1", 128, "t") is None
    assert index.place("t/f:1", 128, "t", code=["theirs"]) is None
    index.add("ours", "z", 256, ["t", "u"])
    assert [spot.name if spot else None for spot in (index.place("t/f:1", 128, "t") for _ in range(3))] == ["ours", "ours", None]


def test_a_refusal_corrects_the_view() -> None:
    index = PlacementIndex()
    full, free = index.add("full", "z", 1 << 14), index.add("free", "z", 1 << 10)
    assert index.place("t/f:1", 1024) is full
    index.refused(full, "t/f:1", 1024, 200)
    assert index.place("t/f:1", 1024, but=[full]) is free
    assert index.place("t/g:1", 1024) is None
    assert index.place("t/g:1", 128) is full


def test_what_a_report_cannot_know_is_not_given_twice() -> None:
    index = PlacementIndex()
    spot = index.add("n", "z", 1024)
    assert index.place("t/f:1", 1024) is spot
    index.reported(spot, 1024)  # it was under way before our order
    assert index.place("t/g:1", 128) is None
    index.accepted(spot, 1024)
    index.reported(spot, 0)
    index.ended(spot, "t/f:1", 1024)
    assert index.place("t/g:1", 1024) is spot


@pytest.mark.parametrize("beside_mb", [0, 128, 100])
def test_what_a_driver_needs_beside_counts(beside_mb: int) -> None:
    index = PlacementIndex(beside_mb)
    index.add("n", "z", 2 * (512 + beside_mb) + 511)
    assert [index.place(f"t/f{number}:1", 512) is not None for number in range(3)] == [True, True, beside_mb < 0]


def test_lost_nodes_take_what_was_there() -> None:
    index = PlacementIndex()
    for number in range(10):
        index.add(f"n{number}", f"z{number % 3}", 4096)
    for number in range(30):
        index.place(f"t/f{number % 5}:1", 256)
    lost = sum((Counter(index.remove(f"n{number}")) for number in range(5)), Counter[str]())
    assert sum(lost.values()) + sum(index.instances(f"t/f{number}:1") for number in range(5)) == 30

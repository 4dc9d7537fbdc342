"""The replays of topic code: what they count is what happened, whatever the policy."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.estimates import share
from benchmarks.replay import caching, load, starts, workflows
from benchmarks.replay.load import Loaded, LoadMissing, read_from
from benchmarks.replay.policies import POLICIES, Lfu, Lru
from benchmarks.replay.sizes import SMALLEST, grouped, zipf_sizes
from benchmarks.replay.starts import Use
from benchmarks.replay.workflows import Run, Stage, Transport
from graph.calls import Call, Trace
from graph.ids import FunctionId

# -- recorded load into starts


def test_a_call_takes_the_instance_that_was_used_last_and_one_that_waited_too_long_is_gone():
    assert starts.instances([0.0, 1.0, 20.0], duration_s=5.0, keep_s=10.0) == [(0.0, 15.0), (1.0, 16.0), (20.0, 35.0)]
    assert starts.instances([0.0, 1.0, 7.0], duration_s=5.0, keep_s=10.0) == [(0.0, 15.0), (1.0, 22.0)]
    assert starts.instances([0.0, 5.0, 15.0], duration_s=5.0, keep_s=10.0) == [(0.0, 30.0)]


@given(st.lists(st.floats(0, 5000), max_size=60), st.floats(0.01, 100), st.floats(0.01, 700))
def test_every_call_is_within_an_instances_life(times, duration_s, keep_s):
    lives = starts.instances(sorted(times), duration_s, keep_s)
    assert len(lives) <= len(times)
    assert all(any(begins <= at and at + duration_s <= ends + 1e-6 for begins, ends in lives) for at in times)


def test_the_same_seed_spreads_the_same_calls_over_their_minutes():
    functions = [Loaded("a", (3, 0, 2), 0.5), Loaded("b", (0, 1, 0), 0.5)]
    first, again, other = (starts.uses(functions, seed, keep_s=1.0) for seed in (1, 1, 2))
    assert first == again != other
    assert 60 <= next(use.begins for use in first if use.function == 1) < 120


def test_the_load_is_the_one_that_is_meant_or_none(tmp_path, monkeypatch):
    monkeypatch.delenv("FOREGLOW_DATA", raising=False)
    with pytest.raises(LoadMissing, match="FOREGLOW_DATA names no folder"):
        load.read()
    files = {
        "invocations.csv": "HashOwner,HashApp,HashFunction,Trigger,480,481\no,a,f,http,2,\no,a,g,timer,0,1\n",
        "durations.csv": "HashOwner,HashApp,HashFunction,Average\no,a,f,1500\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(LoadMissing, match="SHA-256"):
        read_from(tmp_path)
    checksums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    assert read_from(tmp_path, checksums) == [Loaded("o", (2, 0), 1.5), Loaded("o", (0, 1), 0.0)]
    (tmp_path / "durations.csv").unlink()
    with pytest.raises(LoadMissing, match="dirigent"):
        read_from(tmp_path, checksums)


def test_sizes_follow_the_law_and_the_seed():
    sizes = zipf_sizes(100, seed=3)
    assert sorted(sizes, reverse=True)[:4] == [200 << 20, 100 << 20, round((200 << 20) / 3), 50 << 20]
    assert sizes == zipf_sizes(100, seed=3) != zipf_sizes(100, seed=4)
    assert min(zipf_sizes(100, largest=SMALLEST * 2)) == SMALLEST
    tenants = grouped(25, 10)
    assert sorted(tenants.count(tenant) for tenant in set(tenants)) == [5, 10, 10]


# -- starts into what tier 1 held

USES = st.lists(st.tuples(st.floats(0, 1000), st.floats(0.1, 200), st.integers(0, 9)), max_size=80).map(
    lambda drawn: sorted(Use(begins, begins + lives, function) for begins, lives, function in drawn)
)


@given(USES, st.sampled_from(list(POLICIES)), st.integers(1, 60), st.booleans())
def test_what_is_counted_adds_up(uses, policy, bound, whole):
    sizes = [random.Random(number).randint(1, 20) for number in range(10)]
    tenants = [f"t{number % 3}" for number in range(10)] if whole else None
    kept = POLICIES[policy]()
    moved = caching.replay(uses, caching.Tier(kept, bound, sizes), tenants, range(10))
    assert moved.starts == len(uses)
    assert moved.misses == len(moved.missed_at) <= moved.starts
    assert moved.first <= len({use.function for use in uses})
    assert moved.demanded_bytes <= 20 * moved.misses
    assert kept.size <= bound or moved.over_bytes >= kept.size - bound
    if not whole:
        assert moved.first == len({use.function for use in uses})
        assert moved.ahead_bytes == 0


@given(USES, st.sampled_from(list(POLICIES)))
def test_with_room_for_all_only_what_was_never_here_is_missed(uses, policy):
    moved = caching.replay(uses, caching.Tier(POLICIES[policy](), 1000, [10] * 10))
    assert (moved.first, moved.again) == (len({use.function for use in uses}), 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_code_in_use_stays_and_the_bound_gives_way(policy):
    tier = caching.Tier(POLICIES[policy](), 10, [10, 10, 10])
    moved = caching.replay([Use(0, 100, 0), Use(1, 50, 1), Use(60, 70, 2), Use(80, 90, 0)], tier)
    assert (moved.first, moved.again) == (3, 0), "0 was in use all the time"
    assert moved.over_bytes == 10
    assert 0 in tier
    assert 1 not in tier


@pytest.mark.parametrize("policy", POLICIES)
def test_a_tenants_first_start_brings_the_rest_of_it_as_far_as_there_is_room(policy):
    uses = [Use(0, 1, 0), Use(10, 11, 1), Use(20, 21, 2)]
    moved = caching.replay(uses, caching.Tier(POLICIES[policy](), 100, [10, 10, 10]), ["a", "a", "b"], [0, 1, 2])
    assert (moved.first, moved.ahead_bytes, moved.demanded_bytes) == (2, 10, 20)
    tight = caching.replay(uses, caching.Tier(POLICIES[policy](), 15, [10, 10, 10]), ["a", "a", "b"], [0, 1, 2])
    assert (tight.first, tight.ahead_bytes) == (3, 0), "what is in use is not sent away for it"


def test_what_goes_first_by_each_policy():
    def filled(policy):
        for key in (1, 2, 3):
            policy.add(key, 10, 1.0)
        for key in (1, 1, 3, 2):
            policy.use(key)
        return policy

    def anything(key):
        return True

    assert filled(Lru()).victims(10, anything) == [(1, 10)]
    assert filled(Lfu()).victims(20, anything) == [(3, 10), (2, 10)]
    assert filled(Lru()).victims(10, lambda key: key != 1) == [(3, 10)]
    assert filled(Lru()).victims(40, anything, all_or_none=True) == []


def test_an_outage_costs_the_misses_that_fall_into_it():
    moved = caching.Moved(starts=100, first=10, missed_at=[1000.0 + number for number in range(10)])
    found = caching.outage(moved, 300.0, 8 * 3600.0)
    assert found.low == 0.0
    assert found.high == pytest.approx(0.1)
    assert found.value == pytest.approx(0.1 * 300 / (8 * 3600 - 300), rel=0.1)


def test_none_of_many_is_not_the_same_as_none():
    assert share(0, 1000).value == 0
    assert 0.002 < share(0, 1000).high < 0.005
    assert share(990, 1000).low < 0.99 < share(990, 1000).high
    with pytest.raises(ValueError, match="nothing"):
        share(0, 0)


# -- plans


def call(callee: str, caller: int, offset_s: float) -> Call:
    return Call(FunctionId("t/x"), FunctionId(callee), caller, offset_s, 0.1)


def test_what_a_user_asked_for_is_one_call_below_the_gateway():
    calls = (call("t/a", -1, 1.0), call("t/b", 0, 1.5), call("t/c", 1, 1.7), call("t/d", -1, 2.0), call("t/b", 0, 2.5))
    first, second = workflows.runs_below(Trace("t", "1", FunctionId("t/gw"), 3.0, calls))
    assert first.entry == "t/a"
    assert [(stage.function, stage.caller, round(stage.offset_s, 3)) for stage in first.stages] == [
        ("t/b", -1, 0.5),
        ("t/c", 0, 0.7),
        ("t/b", -1, 1.5),
    ]
    assert (second.entry, second.stages) == ("t/d", ())


def test_what_comes_together_shares_the_line():
    assert Transport(0.0, 10.0).together([]) == []
    assert Transport(0.0, 10.0).together([30, 10, 20]) == [6.0, 3.0, 5.0]
    assert Transport(0.5, 10.0).together([10]) == [2.0], "the manifest, and a round of chunks"


@pytest.fixture(scope="module")
def recorded():
    traces = workflows.read()
    teaching, runs = workflows.halves(traces)
    return workflows.learned(teaching), runs, workflows.functions_of(runs, traces)


def planned(recorded, bound, per_s, ahead=False):
    """Entries of 64 KiB, 1 MiB for all else: an entry does not wait for as long as what it calls takes to come."""
    graph, runs, names = recorded
    entries = {run.entry for run in runs}
    sizes = [1 << 16 if name in entries else 1 << 20 for name in names]
    tier = caching.Tier(POLICIES["gdsf"](), bound, sizes)
    node = workflows.Node(tier, {name: place for place, name in enumerate(names)}, sizes, Transport(0.0, per_s), keep_s=60.0)
    return workflows.replay(node, tier, (), workflows.arrivals(runs, 300.0, seed=1), graph, range(len(names)) if ahead else ())


def test_ordered_code_is_there_when_the_way_is_fast_and_late_when_it_is_slow(recorded):
    fast, slow = planned(recorded, 8 << 20, 1e12), planned(recorded, 8 << 20, 1e6)
    assert fast.planned == fast.planned_held > 50
    assert fast.waited_s == 0
    assert slow.planned_held < slow.planned
    assert slow.waited_s > 0
    assert fast.ordered_held < fast.planned, "8 of 47 packages have room"


def test_with_room_the_tenants_code_is_there_from_its_second_run_on(recorded):
    found = planned(recorded, 1 << 30, 1e6, ahead=True)
    alone = planned(recorded, 1 << 30, 1e6)
    assert found.planned_held > alone.planned_held
    assert found.entries_held == found.entries - 1


def test_a_stage_that_no_plan_ordered_counts_apart(recorded):
    graph, runs, names = recorded
    stranger = "trainticket/never-seen"
    sizes = [1 << 20] * (len(names) + 1)
    tier = caching.Tier(POLICIES["gdsf"](), 1 << 30, sizes)
    node = workflows.Node(tier, {name: place for place, name in enumerate([*names, stranger])}, sizes, Transport(0.0, 1e9))
    run = Run(runs[0].entry, 0.1, (Stage(stranger, -1, 0.05, 0.1),))
    found = workflows.replay(node, tier, (), iter([(0.0, run)]), graph)
    assert (found.planned, found.unplanned, found.unplanned_held) == (0, 1, 0)

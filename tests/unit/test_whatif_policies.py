"""Each policy on runs small enough to be worked out by hand, and what holds for all of them."""

import pytest
from doubles.chains import START_S, chain, simulate, starts, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.calls import StartKind
from graph.plans import Budget, Prices
from orchestrator.whatif.compare import POLICIES, Basis
from orchestrator.whatif.foreseeing import Clairvoyant
from orchestrator.whatif.keeping import GreedyDual, HybridHistogram, KeepAlive
from orchestrator.whatif.learning import MeanJustInTime, MostLikely
from orchestrator.whatif.ledger import Waste
from orchestrator.whatif.orion import Orion
from orchestrator.whatif.planned import Planned
from orchestrator.whatif.policy import Policy
from orchestrator.whatif.starts import Driver, Spread, Starts

LEAD_S = 2.0
TAUGHT = [chain(LEAD_S, number=number) for number in range(64)]
"""What is called 2 s after its entry: with starts of 0.5 s there is time to choose."""


def took(simulation) -> list[float]:
    return [run.took_s for run in simulation.replay.runs]


def starts_of(simulation) -> list[StartKind]:
    return [call.start for call in simulation.replay.calls]


def wasted(simulation) -> tuple[float, float, float]:
    return tuple(simulation.replay.ledger.total(kind) for kind in Waste)


def test_none_waits_for_every_start_and_wastes_nothing():
    made = simulate(Policy(), [(0.0, chain(LEAD_S)), (10.0, chain(LEAD_S))])
    assert took(made) == [LEAD_S + 0.375 + 2 * START_S] * 2
    assert starts_of(made) == [StartKind.COLD] * 4
    assert wasted(made) == (0.0, 0.0, 0.0)
    ledger = made.replay.ledger
    assert (ledger.starting_s, ledger.busy_s, ledger.instances) == (4 * START_S, 2 * (LEAD_S + 0.375 + START_S + 0.25), 4)


def test_keep_alive_pays_for_the_time_between_and_after():
    made = simulate(KeepAlive(10.0), [(0.0, chain(LEAD_S)), (8.0, chain(LEAD_S))])
    assert took(made) == [LEAD_S + 0.375 + 2 * START_S, LEAD_S + 0.375]
    assert starts_of(made) == [StartKind.COLD, StartKind.COLD, StartKind.WARM, StartKind.WARM]
    # e is free from 3.375 to 8, a from 3.25 to 10; both wait 10 s after the second run.
    assert wasted(made) == (0.0, (8.0 - 3.375) + (10.0 - 3.25) + 20.0, 0.0)
    late = simulate(KeepAlive(10.0), [(0.0, chain(LEAD_S)), (20.0, chain(LEAD_S))])
    assert starts_of(late) == [StartKind.COLD] * 4


def test_most_likely_path_prepares_it_when_the_entry_starts():
    made = simulate(MostLikely(0.0), [(0.0, chain(LEAD_S))], TAUGHT)
    assert took(made) == [LEAD_S + 0.375 + START_S]
    assert starts_of(made) == [StartKind.COLD, StartKind.PREWARMED]
    assert wasted(made) == (LEAD_S, 0.0, 0.0)  # ready at 0.5, called at 2.5


def test_most_likely_path_takes_one_branch_and_wastes_it_when_it_was_the_other():
    left = [trace("e", 1.0, (-1, "left", 0.5, 0.25), number=number) for number in range(60)]
    right = [trace("e", 1.0, (-1, "right", 0.5, 0.25), number=100 + number) for number in range(30)]
    taught = [one for three in zip(left[::2], left[1::2], right, strict=True) for one in three]
    made = simulate(MostLikely(0.0), [(0.0, right[0])], taught)
    assert starts_of(made) == [StartKind.COLD, StartKind.COLD]
    assert wasted(made) == (START_S + 60.0, 0.0, 0.0)  # never used: its start, too, and until it expired


def test_just_in_time_on_means_is_ready_at_the_mean_time_of_the_call():
    made = simulate(MeanJustInTime(0.0), [(0.0, chain(LEAD_S))], TAUGHT)
    assert starts_of(made) == [StartKind.COLD, StartKind.PREWARMED]
    assert wasted(made) == (START_S, 0.0, 0.0)  # ready at 2; the entry's own start took 0.5 more


def test_just_in_time_on_means_is_late_half_of_the_time():
    early, late = chain(1.0), chain(3.0)
    taught = [chain(1.0 if number % 2 else 3.0, number=number) for number in range(64)]
    for run, wait_s in ((early, 0.5), (late, 0.0)):
        made = simulate(MeanJustInTime(0.0), [(0.0, run)], taught)
        assert made.replay.calls[1].wait_s == pytest.approx(wait_s)


def test_orion_delays_as_far_as_its_percentile_allows():
    made = simulate(Orion(0.0), [(0.0, chain(LEAD_S))], TAUGHT)
    [idle_s, *_] = wasted(made)
    # Ready at 1.5 + 5 % of 2.375 s at the latest, and hardly earlier; called at 2.5.
    assert LEAD_S + START_S - (1.5 + 0.05 * 2.375 + START_S) - 1e-9 <= idle_s <= START_S
    assert starts_of(made) == [StartKind.COLD, StartKind.PREWARMED]


def test_path_prepares_everything_likely_at_once():
    branches = [trace("e", 3.0, (-1, "left" if number % 4 else "right", 2.0, 0.25), number=number) for number in range(100)]
    made = simulate(Planned("path", 0.0), [(0.0, branches[0])], branches)
    assert starts_of(made) == [StartKind.COLD, StartKind.PREWARMED]
    # right is ready at 0.5 and called at 2.5; left was ready, too, and is never used: 60 s, and its start.
    assert wasted(made) == (2.0 + 60.0 + START_S, 0.0, 0.0)


def test_priced_starts_it_so_that_it_is_ready_when_it_is_called():
    made = simulate(Planned("priced", 0.0), [(0.0, chain(LEAD_S))], TAUGHT)
    assert starts_of(made) == [StartKind.COLD, StartKind.PREWARMED]
    [idle_s, keep_s, pool_s] = wasted(made)
    assert idle_s == pytest.approx(0.0, abs=0.01)  # for 2.5: the entry's own start takes 0.5
    assert (keep_s, pool_s) == (0.0, 0.0)


def test_priced_leaves_out_what_is_not_worth_its_price_and_gives_up_what_lost():
    branches = [trace("e", 3.0, (-1, "left" if number % 10 else "right", 2.0, 0.25), number=number) for number in range(100)]
    dear = Planned("priced", 0.0, Prices(idle_gb_s=1000.0))
    made = simulate(dear, [(0.0, branches[0])], branches)
    assert starts_of(made)[1] in (StartKind.COLD, StartKind.STANDBY)
    cheap = Planned("priced", 0.0, Prices(idle_gb_s=1.0))
    made = simulate(cheap, [(0.0, branches[0])], branches)
    assert starts_of(made)[1] is StartKind.PREWARMED
    assert sum(wasted(made)) < 5.0  # left was given up once right had started, long before its 60 s


def test_clairvoyant_neither_waits_nor_wastes():
    runs = [(0.0, chain(0.125)), (0.0, chain(LEAD_S)), (1.0, chain(LEAD_S))]
    made = simulate(Clairvoyant(), runs)
    assert took(made) == pytest.approx([0.5, LEAD_S + 0.375, LEAD_S + 0.375])
    assert wasted(made) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)


def test_a_call_adopts_what_is_being_prepared_and_waits_for_the_rest_of_it():
    nothing = Spread(0.0, 0.0)
    quick = Starts(Driver("made", nothing, nothing, 16.0, "made up"), Spread(START_S, START_S), {"t/e": nothing})
    taught = [chain(0.125, number=number) for number in range(10)]
    made = simulate(Planned("path", 0.0), [(0.0, chain(0.125))], taught, starts=quick)
    entry, stage = sorted(made.replay.calls, key=lambda call: call.stage)
    assert (entry.start, entry.wait_s) == (StartKind.COLD, 0.0)
    assert (stage.start, stage.wait_s) == (StartKind.ALMOST_WARM, START_S - 0.125)  # ordered at 0, called at 0.125
    assert made.replay.ledger.instances == 2  # and no other was started
    assert wasted(made) == (0.0, 0.0, 0.0)


def test_a_pool_of_standbys_shortens_starts_and_is_paid_for():
    made = simulate(Policy(), [(10.0, chain(LEAD_S))], pool=1)
    # e takes the one standby; it is made again by the time a is called.
    assert [call.start for call in made.replay.calls] == [StartKind.STANDBY, StartKind.STANDBY]
    assert took(made) == [LEAD_S + 0.375 + 2 * 0.125]
    ledger = made.replay.ledger
    assert ledger.total(Waste.POOL) > 10.0
    assert sum(ledger.wasted_gb[Waste.POOL]) == pytest.approx(ledger.total(Waste.POOL) * 16 / 1024)


# -- hybrid histogram


def test_hybrid_histogram_unloads_and_loads_again():
    alone = trace("e", 1.0)
    made = simulate(HybridHistogram(), [(at * 601.5, alone) for at in range(12)])
    # Idle for 600.5 s or 600 s, after the first 1-minute bin that far: gone at once, back 540 s later, kept until 726 s.
    assert starts_of(made)[2:] == [StartKind.PREWARMED] * 10
    assert wasted(made)[0] == pytest.approx(10 * (600.5 - 540.0) + (726.0 - 540.0) + START_S, abs=START_S)


# -- greedy dual


def test_greedy_dual_lets_the_least_worth_go():
    often, rare, third = (trace(name, 1.0) for name in ("often", "rare", "third"))
    runs = [(10.0 * at, often) for at in range(4)] + [(40.0, rare), (50.0, third), (60.0, often), (70.0, rare)]
    made = simulate(GreedyDual(2.0), runs)
    by_run = [call.start for call in sorted(made.replay.calls, key=lambda call: call.at_s)]
    # Room for two: `third` takes the place of `rare`, which was called once, not of `often`.
    assert by_run == [StartKind.COLD, *[StartKind.WARM] * 3, StartKind.COLD, StartKind.COLD, StartKind.WARM, StartKind.COLD]


# -- what holds for all

NAMES = st.sampled_from("abc")


@st.composite
def workloads(draw: st.DrawFn):
    shapes = draw(
        st.lists(st.tuples(NAMES, st.floats(0.01, 3.0), st.booleans(), NAMES, st.floats(0.01, 1.0)), min_size=1, max_size=3)
    )
    recorded = []
    for number, (first, lead_s, both, second, work_s) in enumerate(shapes):
        calls = [(-1, f"{first}1", lead_s, work_s)] + ([(0, f"{second}2", lead_s + work_s / 2, work_s / 4)] if both else [])
        recorded.append(trace("e", lead_s + work_s + 0.1, *calls, number=number))
    gaps = draw(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=12))
    at, runs = 0.0, []
    for gap in gaps:
        at += gap
        runs.append((at, draw(st.sampled_from(recorded))))
    return recorded, runs


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=15, deadline=None)
@given(workloads())
def test_every_policy(name: str, workload):
    recorded, runs = workload
    basis = Basis(keep_s=5.0, capacity_gb=2.0, budget=Budget(unused_s=20.0))

    def once():
        return simulate(POLICIES[name][1](basis), runs, [one for one in recorded for _ in range(5)])

    made, again = once(), once()
    ledger = made.replay.ledger
    # Every instance's life is starting, idle or busy; what is wasted is idle, or the start of what nobody used.
    assert ledger.lifetime_s == pytest.approx(ledger.starting_s + ledger.busy_s + ledger.idle_s, abs=1e-5)
    assert ledger.idle_s - 1e-6 <= ledger.wasted_s <= ledger.idle_s + ledger.starting_s + 1e-6
    assert len(made.replay.calls) == sum(1 + len(one.calls) for _, one in runs)
    for run in made.replay.runs:
        assert run.took_s >= run.warm_s - 1e-6
    # The same seed, the same replay.
    assert again.replay.runs == made.replay.runs
    assert again.replay.calls == made.replay.calls
    assert (again.replay.ledger.wasted, again.replay.ledger.lifetime_s) == (ledger.wasted, ledger.lifetime_s)
    # Nobody does better than who knows everything.
    bound = simulate(Clairvoyant(), runs).replay
    assert sum(run.took_s for run in bound.runs) <= sum(run.took_s for run in made.replay.runs) + 1e-6
    assert bound.ledger.wasted_s <= 1e-4
    if name in ("none", "keep-alive", "greedy dual"):
        assert ledger.total(Waste.PREWARM) == 0.0
    if name == "none":
        assert ledger.wasted_s == 0.0


def test_starts_are_drawn_alike_for_all_policies():
    spread = starts()
    runs = [(10.0 * at, chain(LEAD_S)) for at in range(5)]
    first = simulate(Policy(), runs, starts=spread, seed=3)
    assert took(first) == took(simulate(KeepAlive(0.0), runs, starts=spread, seed=3))


def test_what_is_given_up_while_it_is_being_prepared_was_waste_from_its_order_on():
    class Fickle(Policy):
        def begins(self, run):
            one = self.world.prepare(run.number, "t/other")
            self.world.later(0.25, lambda: self.world.give_up(one))

    made = simulate(Fickle(), [(0.0, chain(LEAD_S))])
    assert wasted(made) == (0.25, 0.0, 0.0)
    assert made.replay.ledger.starting_s == 2 * START_S + 0.25

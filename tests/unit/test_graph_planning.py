"""plan() and losers(): pure functions of what is expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.pathplan import instances, losers
from graph.planning import plan
from graph.plans import Budget, EdgeSource, ExpectedCall, Prices, Trigger


def call(name, reach=1.0, concurrent=None, offset=None, samples=143, source=EdgeSource.LEARNED, memory_mb=128, **more):
    return ExpectedCall(
        function=f"t/{name}",
        reach=reach,
        concurrent=concurrent or (reach,),
        offsets_s=() if offset is None else (offset,),
        samples=samples,
        weight=float(samples),
        source=source,
        memory_mb=memory_mb,
        start_s=0.05,
        **more,
    )


def make(expected, budget=None, idle=None, **more):
    more = {"tenant": "t", "entry": "t/checkout", "trigger": Trigger.INVOCATION, "plan_id": "p"} | more
    return plan(expected, Prices(), budget or Budget(), idle or {}, 100.0, **more)


def test_path_prepares_what_is_likely_enough_and_says_why():
    made = make([call("pay", 0.96, offset=0.21), call("rare", 0.049, offset=0.1), call("edge", 0.05, offset=0.5)])
    assert [(d.decision_id, d.function) for d in made.decisions] == [("p-1", "t/pay"), ("p-2", "t/edge")]
    assert made.decisions[0].reason == "checkout reaches pay in 96 % of 143 traces, about 210 ms after it starts"
    assert [(s.function, s.why) for s in made.skipped] == [("t/rare", "reach 0.049 is under 0.05")]
    evidence = made.decisions[0].evidence
    assert (evidence.reach, evidence.samples, evidence.lead_s, evidence.start_s) == (0.96, 143, 0.21, 0.05)
    assert (made.decisions[0].start_in_s, made.decisions[0].expires_s) == (0.0, 60.0)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (call("pay", samples=0, source=EdgeSource.DECLARED), "checkout declares calls that lead to pay, no trace tells yet"),
        (
            call("pay", 0.669, samples=3, offset=1.5),
            "checkout reaches pay in at least 67 % of 3 traces, about 1.5 s after it starts",
        ),
        (
            call("pay", 0.9, samples=30, source=EdgeSource.BOTH, offset=90.0),
            "checkout reaches pay in 90 % of its runs, by 30 traces and its declared calls, about 1.5 min after it starts",
        ),
        (
            call("pay", 0.072, samples=40, offset=0.1, given="t/cart"),
            "checkout reaches pay once cart has started in 7.2 % of 40 traces, about 100 ms after it starts",
        ),
    ],
)
def test_reasons_are_sentences(expected, reason):
    assert make([expected]).decisions[0].reason == reason


def test_a_further_instance_is_prepared_when_it_is_more_likely_than_not():
    assert instances(call("a", 1.0, (1.0, 0.6, 0.5, 0.49)), Budget()) == 3
    assert instances(call("a", 0.4, (0.4, 0.3, 0.1)), Budget()) == 2  # given that it is reached at all
    assert instances(call("a", 0.06, (0.06, 0.04)), Budget()) == 1
    assert instances(call("a", 0.04, (0.04, 0.04)), Budget()) == 0
    made = make([call("part", 1.0, (1.0, 0.62), offset=0.1)])
    assert [d.ordinal for d in made.decisions] == [1, 2]
    assert made.decisions[1].reason.endswith("; 2 at once in 62 %")


def test_idle_instances_are_taken_off_and_named_when_they_are_enough():
    made = make([call("a", 1.0, (1.0, 1.0, 1.0)), call("b")], idle={"t/a": 2, "t/b": 1})
    assert [(d.function, d.ordinal) for d in made.decisions] == [("t/a", 3)]
    assert made.ready == ("t/b",)


def test_a_short_budget_goes_to_what_is_needed_soonest_and_most_likely():
    expected = [call("late", 1.0, offset=2.0), call("soon", 0.9, offset=0.1), call("soon-rare", 0.2, offset=0.1)]
    made = make(expected, Budget(instances=2))
    assert [d.function for d in made.decisions] == ["t/soon", "t/soon-rare"]
    assert made.skipped[0].why == "the budget of 2 instances is used up"
    by_memory = make([call("big", memory_mb=900, offset=0.1), call("small", offset=0.2)], Budget(memory_mb=1000))
    assert [d.function for d in by_memory.decisions] == ["t/big"]
    assert by_memory.skipped[0].why == "128 MB more would exceed the budget of 1000 MB"
    declared = make([call(f"d{n}", samples=0, source=EdgeSource.DECLARED) for n in range(3)], Budget(instances=2))
    assert [d.function for d in declared.decisions] == ["t/d0", "t/d1"]  # nothing tells them apart but their order


def test_elapsed_time_shortens_the_lead():
    made = make([call("a", offset=0.5)], elapsed_s=0.4)
    assert made.decisions[0].evidence.lead_s == pytest.approx(0.1)
    assert make([call("a", offset=0.5)], elapsed_s=9.0).decisions[0].evidence.lead_s == 0.0


def test_off_decides_nothing_and_an_unknown_policy_is_refused():
    made = make([call("a")], policy="off")
    assert (made.policy, made.decisions, made.ready, made.skipped) == ("off", (), (), ())
    with pytest.raises(ValueError, match="policy: 'clever'"):
        make([call("a")], policy="clever")


def test_ids_are_the_same_for_the_same_plan_and_differ_between_plans():
    first, again = make([call("a")], plan_id=""), make([call("a")], plan_id="")
    assert first == again
    assert len(first.plan_id) == 16
    assert make([call("a")], plan_id="", trace_id="1" * 32).plan_id != first.plan_id


def test_losers_of_a_resolved_branch_are_named_with_the_reason():
    made = make([call("left", 0.5), call("leaf", 0.5, (0.5, 0.5)), call("right", 0.5), call("end")])
    now = [call("end"), call("leaf", 0.01)]
    left = [d for d in made.decisions if d.function != "t/right"]  # it has started: its decision is about to be used
    lost = dict(losers(left, now, Budget(), "t/right"))
    by_function = {d.decision_id: d.function for d in made.decisions}
    assert {by_function[each] for each in lost} == {"t/left", "t/leaf"}
    assert sorted(set(lost.values())) == [
        "not expected any more after right",
        "reach fell to 0.010 after right, under 0.05",
    ]


def test_losers_keep_the_lowest_ordinals():
    made = make([call("part", 1.0, (1.0, 1.0, 1.0))])
    lost = losers(made.decisions, [call("part", 1.0, (1.0, 1.0))], Budget(), "t/part")
    assert lost == [("p-3", "no more than 2 at once expected after part")]


fractions = st.floats(0.0, 1.0)


@st.composite
def expectations(draw):
    calls = []
    for number in range(draw(st.integers(0, 12))):
        tail = sorted(draw(st.lists(fractions, min_size=1, max_size=5)), reverse=True)
        offset = draw(st.none() | st.floats(0.0, 9.0))
        calls.append(call(f"f{number}", tail[0], tuple(tail), offset, memory_mb=draw(st.sampled_from([128, 512, 2048]))))
    return calls


@given(
    expectations(), st.integers(0, 10), st.integers(0, 5000), fractions, st.dictionaries(st.integers(0, 12), st.integers(0, 4))
)
def test_a_plan_is_within_its_budget_and_accounts_for_every_function(expected, count, memory, floor, held):
    budget = Budget(instances=count, memory_mb=memory, min_reach=floor)
    idle = {f"t/f{number}": free for number, free in held.items()}
    made = make(expected, budget, idle)
    assert len(made.decisions) <= count
    assert sum(d.memory_mb for d in made.decisions) <= memory
    assert [d.decision_id for d in made.decisions] == [f"p-{n}" for n in range(1, len(made.decisions) + 1)]
    decided = {d.function for d in made.decisions}
    accounted = decided | set(made.ready) | {s.function for s in made.skipped}
    assert accounted == {each.function for each in expected}
    for decision in made.decisions:
        assert decision.evidence.reach >= floor
        assert decision.ordinal > idle.get(decision.function, 0)
    assert losers(made.decisions, expected, budget) == []
    assert len(losers(made.decisions, [], budget)) == len(made.decisions)


def test_what_was_asked_for_by_name_says_so():
    own = call("checkout", concurrent=(1.0, 1.0), samples=0, source=EdgeSource.REQUESTED)
    made = make([own], trigger=Trigger.WARM)
    assert [d.reason for d in made.decisions] == ["checkout was asked for by name"] * 2

"""Plans in any order: each lives exactly as long as a decision of it is open, and what is kept is bounded."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workers import live_plans
from workers.live_plans import LivePlans

DECISIONS = [f"d{number}" for number in range(12)]
PLANS = st.lists(st.dictionaries(st.sampled_from(DECISIONS), st.sampled_from(["small", "large"]), max_size=6), max_size=8)


@given(PLANS, st.lists(st.sampled_from(DECISIONS)), st.integers(0, 8))
def test_the_largest_is_that_of_the_plans_that_live(plans: list[dict[str, str]], overs: list[str], before: int) -> None:
    live = LivePlans()
    model: list[tuple[Counter[str], set[str]]] = []

    def end(decision: str) -> None:
        live.over(decision)
        for _, left in model:
            left.discard(decision)

    for number, plan in enumerate(plans):
        if number == before:
            for decision in overs:
                end(decision)
        known = {decision for _, left in model for decision in left}
        live.begin(plan)
        fresh = {decision: kind for decision, kind in plan.items() if decision not in known}
        model.append((Counter(fresh.values()), set(fresh)))
    for kind in ("small", "large"):
        assert live.largest(kind) == max((counts[kind] for counts, left in model if left), default=0)
    for decision in DECISIONS:
        end(decision)
    assert live.largest("small") == live.largest("large") == 0


def test_plans_that_never_end_are_forgotten_one_day() -> None:
    live = LivePlans()
    live.begin({"a": "small", "b": "small", "c": "small"})
    for number in range(live_plans.MOST):
        live.begin({f"d{number}": "small"})
    assert live.largest("small") == 1
    live.over("a")

"""The one reconciler, what comes down from callers, and a tick over all versions."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from graph.ids import FunctionId, VersionId, function_of
from orchestrator.scaling.feedforward import DEPTH, downstream, root_rate
from orchestrator.scaling.reconciling import Allowance, Asked, reconcile
from orchestrator.scaling.scaler import Scaler, maker
from orchestrator.scaling.terms import Bounds, Observed, Source, Term

COUNTS = st.integers(0, 40)
TERMS = st.lists(
    st.builds(
        Term,
        st.sampled_from([Source.REACTIVE, Source.FEED_FORWARD, Source.PLANS, Source.RELEASE]),
        COUNTS,
        st.just("because"),
    ),
    max_size=4,
).map(tuple)
BOUNDS = st.builds(Bounds, COUNTS, COUNTS, st.integers(0, 5), st.integers(0, 10))
ASKED = st.lists(st.tuples(st.sampled_from([128, 256, 1024]), BOUNDS, TERMS), max_size=12).map(
    lambda ones: [Asked(f"t/f{number}:1", *one) for number, one in enumerate(ones)]
)
ALLOWANCES = st.builds(Allowance, st.none() | st.integers(0, 200), st.none() | st.integers(0, 40_000))


def asks(one: Asked) -> int:
    largest = max((term.count for term in one.terms), default=0)
    return min(one.bounds.maximum, max(largest, one.bounds.minimum, one.bounds.provisioned))


# -- the reconciler


@given(asked=ASKED)
def test_without_a_budget_the_largest_term_is_wanted_within_max(asked: list[Asked]) -> None:
    for one, wanted in zip(asked, reconcile(asked), strict=True):
        assert wanted.count == asks(one)
        assert wanted.reason
        assert bool(wanted.limit) == (
            wanted.count < max([term.count for term in one.terms] + [one.bounds.minimum, one.bounds.provisioned])
        )


@given(asked=ASKED, allowance=ALLOWANCES)
def test_a_budget_is_kept_but_for_what_is_provisioned(asked: list[Asked], allowance: Allowance) -> None:
    wanted = reconcile(asked, allowance)
    provisioned = [min(asks(one), one.bounds.provisioned) for one in asked]
    for one, got, least in zip(asked, wanted, provisioned, strict=True):
        assert least <= got.count <= asks(one)
        assert bool(got.limit) or got.count == asks(one)
    if allowance.instances is not None:
        assert sum(one.count for one in wanted) <= max(allowance.instances, sum(provisioned))
    if allowance.memory_mb is not None:
        memory = sum(one.memory_mb * got.count for one, got in zip(asked, wanted, strict=True))
        assert memory <= max(
            allowance.memory_mb, sum(one.memory_mb * least for one, least in zip(asked, provisioned, strict=True))
        )


@given(asked=ASKED, allowance=st.integers(0, 200))
def test_a_larger_budget_wants_no_less(asked: list[Asked], allowance: int) -> None:
    less = sum(one.count for one in reconcile(asked, Allowance(allowance)))
    more = sum(one.count for one in reconcile(asked, Allowance(allowance + 1)))
    assert less <= more


@given(asked=ASKED, allowance=st.integers(0, 200))
def test_nothing_that_fits_is_left_over(asked: list[Asked], allowance: int) -> None:
    wanted = sum(one.count for one in reconcile(asked, Allowance(allowance)))
    assert wanted >= min(allowance, sum(map(asks, asked)))


def test_what_is_reserved_is_nobody_elses() -> None:
    greedy = Asked("t/greedy:1", 128, Bounds(), (Term(Source.REACTIVE, 100, "traffic"),))
    modest = Asked("t/modest:1", 128, Bounds(reserved=10), (Term(Source.PLANS, 10, "a plan"),))
    assert [one.count for one in reconcile([greedy, modest], Allowance(50))] == [40, 10]


def test_what_is_there_comes_before_what_is_expected() -> None:
    traffic = Asked("t/a:1", 128, Bounds(), (Term(Source.REACTIVE, 20, "traffic"),))
    planned = Asked("t/b:1", 128, Bounds(), (Term(Source.PLANS, 20, "a plan"),))
    found = reconcile([planned, traffic], Allowance(25))
    assert [one.count for one in found] == [5, 20]
    assert "20 are wanted; the tenant's budget is 25 instances" in found[0].limit


def test_the_deciding_term_is_named() -> None:
    one = Asked("t/a:1", 128, Bounds(minimum=2, provisioned=2), (Term(Source.FEED_FORWARD, 7, "calls come down"),))
    (found,) = reconcile([one])
    assert (found.by, found.reason) == (Source.FEED_FORWARD, "calls come down")
    (found,) = reconcile([Asked("t/a:1", 128, Bounds(minimum=2, provisioned=2))])
    assert (found.by, found.reason) == (Source.MINIMUM, "min_instances is 2")
    (found,) = reconcile([Asked("t/a:1", 128, Bounds(maximum=3), one.terms)])
    assert (found.count, found.limit) == (3, "max is 3")


# -- feed-forward

A, B, C = (FunctionId(f"t/{name}") for name in "abc")


def test_rates_go_down_along_the_calls() -> None:
    calls = {A: [(B, 2.0)], B: [(C, 0.5)]}
    found = downstream({A: 10.0}, lambda one: calls.get(one, []), {A: 1.0, B: 0.1, C: 3.0}.get)
    assert (found[B].per_s, found[B].demand, found[B].caller) == (20.0, 2.0, A)
    assert (found[C].per_s, found[C].demand, found[C].caller) == (10.0, 30.0, B)


def test_a_cycle_ends() -> None:
    found = downstream({A: 1.0}, {A: [(B, 1.0)], B: [(A, 1.0)]}.get, lambda one: 1.0)  # type: ignore[arg-type]
    assert found[A].per_s + found[B].per_s <= DEPTH


@given(
    edges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0.0, 1.0)), max_size=30),
    rate=st.floats(0.0, 1e4),
    more=st.floats(0.0, 1e3),
)
def test_more_at_the_entry_is_never_less_below(edges: list[tuple[int, int, float]], rate: float, more: float) -> None:
    calls: dict[FunctionId, list[tuple[FunctionId, float]]] = {}
    for caller, callee, often in edges:
        if caller != callee:
            calls.setdefault(FunctionId(f"t/{caller}"), []).append((FunctionId(f"t/{callee}"), often))
    entry = FunctionId("t/0")
    less = downstream({entry: rate}, lambda one: calls.get(one, []), lambda one: 0.1)
    grown = downstream({entry: rate + more}, lambda one: calls.get(one, []), lambda one: 0.1)
    assert all(grown[one].demand >= flow.demand * (1 - 1e-9) for one, flow in less.items())


def test_what_runs_at_once_says_as_much_as_what_arrived() -> None:
    assert root_rate(50.0, 50.0, 0.1) == 500.0
    assert root_rate(50.0, 1.0, None) == 50.0
    assert root_rate(0.0, 3.0, 0.1) == 0.0  # children only


# -- a tick


class Shapes:
    def __init__(self, bounds: dict[str, Bounds] | None = None) -> None:
        self._bounds = bounds or {}

    def bounds(self, version: str) -> Bounds:
        return self._bounds.get(version, Bounds())

    def memory_mb(self, version: str) -> int:
        return 128

    def version_of(self, function: FunctionId) -> str | None:
        return f"{function}:1"


def at_once(count: int, roots: bool = True) -> Observed:
    return Observed(count, count, count, count if roots else 0)


def test_downstream_is_wanted_in_the_tick_of_its_entry() -> None:
    calls: dict[FunctionId, Sequence[tuple[FunctionId, float]]] = {A: [(B, 2.0)], B: [(C, 1.0)]}
    scaler = Scaler(Shapes(), maker("headroom"), lambda one: calls.get(one, ()), {A: 1.0, B: 0.5, C: 0.25}.get)
    wanted = {one.version: one for one in scaler.tick(0.0, {"t/a:1": at_once(50)})}
    assert wanted["t/a:1"].count == 50
    assert wanted["t/b:1"].count >= 50
    assert wanted["t/b:1"].by is Source.FEED_FORWARD
    assert "most from a" in wanted["t/b:1"].reason
    assert wanted["t/c:1"].count >= 25


def test_a_little_flow_is_left_to_plans() -> None:
    scaler = Scaler(Shapes(), maker("headroom"), lambda one: [(B, 1.0)] if one == A else [], lambda one: 0.1)
    assert [one.version for one in scaler.tick(0.0, {"t/a:1": Observed(0.1, 1, 1, 1)})] == ["t/a:1"]


def test_terms_of_others_count_and_min_stays_without_traffic() -> None:
    scaler = Scaler(Shapes({"t/kept:1": Bounds(minimum=2)}), maker("headroom"), always=lambda: ["t/kept:1"])
    found = scaler.tick(0.0, {}, {"t/new:2": [Term(Source.RELEASE, 4, "a release")]})
    assert {one.version: (one.count, one.by) for one in found} == {
        "t/kept:1": (2, Source.MINIMUM),
        "t/new:2": (4, Source.RELEASE),
    }


def test_off_leaves_only_the_terms_of_others() -> None:
    assert Scaler(Shapes(), maker("off")).tick(0.0, {"t/a:1": at_once(50)}) == []


def test_state_is_bounded_and_goes_with_the_traffic() -> None:
    scaler = Scaler(Shapes(), maker("headroom"))
    scaler.tick(0.0, {f"t/f{number}:1": at_once(3) for number in range(100)})
    assert len(scaler) == 100
    for now in range(1, 200):
        scaler.tick(float(now), {})
    assert len(scaler) == 0
    assert scaler.tick(200.0, {}) == []


@given(
    load=st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 30), max_size=3), max_size=30), cap=st.integers(0, 40)
)
def test_no_tick_goes_over_the_tenants_budget(load: list[dict[str, int]], cap: int) -> None:
    calls: dict[FunctionId, Sequence[tuple[FunctionId, float]]] = {A: [(B, 2.0)], B: [(C, 1.0)]}
    scaler = Scaler(Shapes(), maker("headroom"), lambda one: calls.get(one, ()), lambda one: 0.5)
    for now, tick in enumerate(load):
        observed = {f"t/{name}:1": at_once(count) for name, count in tick.items()}
        found = scaler.tick(float(now), observed, None, {"t": Allowance(cap)})
        assert sum(one.count for one in found) <= cap
        assert {function_of(VersionId(one.version)) for one in found} <= {A, B, C}

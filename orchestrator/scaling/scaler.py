"""One tick over all versions with traffic: their policies, what comes down from their callers, and the reconciler. Pure: no I/O,
and `now` is passed in. The planner process and the simulation both run this."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from graph.ids import FunctionId, VersionId, function_of, tenant_of
from orchestrator.scaling.feedforward import Callees, Flow, Hold, downstream, root_rate
from orchestrator.scaling.headroom import Headroom, HeadroomSettings, per_instance, staffed
from orchestrator.scaling.kpa import Kpa, KpaSettings
from orchestrator.scaling.reconciling import Allowance, Asked, by_tenant, reconcile
from orchestrator.scaling.terms import NOTHING, Bounds, Observed, Reactive, Source, Term, Wanted

VERSIONS = 20_000
"""So many are remembered; what had no traffic for longest is forgotten first."""

LEAST_FLOW = 0.5
"""Concurrency from which a flow asks for instances. Less of it is what the plan of each run is for."""

POLICIES = ("headroom", "kpa", "off")

Make = Callable[[], Reactive]

Terms = dict[str, tuple[Term, ...]]
"""By version. Tuples: unlike lists, the collector soon leaves them alone."""

HEADROOM, KPA = HeadroomSettings(), KpaSettings()


def maker(policy: str, headroom: HeadroomSettings = HEADROOM, kpa: KpaSettings = KPA) -> Make | None:
    """What makes the policy of a version; None for off. Raises ValueError."""
    if policy == "headroom":
        return lambda: Headroom(headroom)
    if policy == "kpa":
        return lambda: Kpa(kpa)
    if policy == "off":
        return None
    raise ValueError(f"{policy!r} is no scaling policy; there are {', '.join(POLICIES)}")


class Shape(Protocol):
    """What the scaler asks about a version; the planner answers from routes, the simulation from its own."""

    def bounds(self, version: str) -> Bounds: ...

    def memory_mb(self, version: str) -> int: ...

    def version_of(self, function: FunctionId) -> str | None:
        """The one that calls of the function go to; None: nobody serves it."""


class Scaler:
    """`make`: the policy of a version (`maker`). `always()`: versions that want instances without traffic (min, provisioned)."""

    def __init__(
        self,
        shape: Shape,
        make: Make | None,
        callees: Callees = lambda function: (),
        hold_s: Hold = lambda function: None,
        headroom: float = 1.0,
        always: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._shape = shape
        self._make = make
        self._callees = callees
        self._hold_s = hold_s
        self._headroom = headroom
        self._always = always
        self._policies: OrderedDict[str, Reactive] = OrderedDict()
        self._terms: dict[str, Terms] = {}  # of the last tick but for extra ones, by tenant and version

    def __len__(self) -> int:
        return len(self._policies)

    @property
    def remembered(self) -> Collection[str]:
        """Versions whose traffic is."""
        return self._policies.keys()

    def tick(
        self,
        now: float,
        observed: Mapping[str, Observed],
        extra: Mapping[str, Sequence[Term]] | None = None,
        allowances: Mapping[str, Allowance] | None = None,
    ) -> list[Wanted]:
        """`observed`: versions with any traffic, and remembered ones with instances; others count as silent. `extra`:
        terms of plans and releases."""
        terms: Terms = dict.fromkeys(self._always(), ())
        rates: dict[FunctionId, float] = {}
        if self._make is not None:
            for version in [one for one in self._policies if one not in observed]:
                self._decide(now, version, NOTHING, terms, rates)
            for version, seen in observed.items():
                self._decide(now, version, seen, terms, rates)
            for function, flow in downstream(rates, self._callees, self._hold_s).items():
                self._forward(function, flow, terms)
        self._terms = {}
        for version, ones in terms.items():
            self._terms.setdefault(tenant_of(VersionId(version)), {})[version] = ones
        asked = {tenant: self._asked(versions) for tenant, versions in _with(self._terms, extra or {}).items()}
        return by_tenant(asked, allowances or {})

    def again(self, tenant: str, extra: Mapping[str, Sequence[Term]], allowance: Allowance) -> list[Wanted]:
        """The reconciler once more over what traffic wanted in the last tick, with other `extra` terms. Of one tenant."""
        found = _with({tenant: self._terms.get(tenant, {})}, extra)
        return reconcile(self._asked(found[tenant]), allowance)

    def _asked(self, versions: Terms) -> list[Asked]:
        shape = self._shape
        return [Asked(one, shape.memory_mb(one), shape.bounds(one), terms) for one, terms in versions.items()]

    def forget(self, version: str) -> None:
        self._policies.pop(version, None)

    def forget_functions(self, functions: Collection[str]) -> None:
        for version in [one for one in self._policies if function_of(VersionId(one)) in functions]:
            del self._policies[version]

    def forget_tenant(self, tenant: str) -> None:
        for version in [one for one in self._policies if tenant_of(VersionId(one)) == tenant]:
            del self._policies[version]

    def _decide(self, now: float, version: str, seen: Observed, terms: Terms, rates: dict[FunctionId, float]) -> None:
        policy = self._policies.get(version)
        if policy is None:
            if not seen.peak and not seen.arrivals and not seen.concurrency:
                return
            assert self._make is not None
            policy = self._policies[version] = self._make()
            if len(self._policies) > VERSIONS:
                self._policies.popitem(last=False)
        elif seen.peak:
            self._policies.move_to_end(version)
        term = policy.decide(now, seen, self._shape.bounds(version))
        terms[version] = (*terms.get(version, ()), term)
        if policy.rests():
            del self._policies[version]
            return
        function = function_of(VersionId(version))
        if not self._callees(function):
            return
        share = seen.roots / seen.arrivals if seen.arrivals else 1.0
        rate = root_rate(policy.roots_per_s(), seen.concurrency * share, self._hold_s(function))
        if rate > 0.0:
            rates[function] = rates.get(function, 0.0) + rate

    def _forward(self, function: FunctionId, flow: Flow, terms: Terms) -> None:
        version = self._shape.version_of(function)
        if version is None or flow.demand < LEAST_FLOW:
            return
        count = staffed(flow.demand, per_instance(self._shape.bounds(version)), self._headroom)
        caller = flow.caller.rpartition("/")[2]
        reason = f"{flow.per_s:.3g} calls a second come down, most from {caller}, and each holds {flow.hold_s * 1000:.3g} ms"
        terms[version] = (*terms.get(version, ()), Term(Source.FEED_FORWARD, count, reason))


def _with(terms: Mapping[str, Terms], extra: Mapping[str, Sequence[Term]]) -> dict[str, Terms]:
    """By tenant and version, what both say."""
    found = {tenant: dict(versions) for tenant, versions in terms.items()}
    for version, more in extra.items():
        versions = found.setdefault(tenant_of(VersionId(version)), {})
        versions[version] = (*versions.get(version, ()), *more)
    return found

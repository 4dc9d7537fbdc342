"""One load under each policy, all on the same keep-alive, which priced may shorten."""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from graph.plans import Budget, Prices
from orchestrator.whatif.anticipating import Anticipating
from orchestrator.whatif.engine import Settings, Simulation
from orchestrator.whatif.foreseeing import Clairvoyant
from orchestrator.whatif.keeping import GreedyDual, HybridHistogram, KeepAlive
from orchestrator.whatif.learning import MeanJustInTime, MostLikely
from orchestrator.whatif.measures import Figures, figures
from orchestrator.whatif.orion import Orion
from orchestrator.whatif.planned import Planned
from orchestrator.whatif.policy import Policy
from orchestrator.whatif.programs import Program

KEEP_S = 600.0
"""How long an instance waits for its next call; the platform's default."""


class Basis(msgspec.Struct, frozen=True):
    """What the policies have in common. `keep_s`: of all that have no rule of their own for it. `capacity_gb`: greedy dual's.

    `weighed`: priced keeps instances as long as that is worth it, `keep_s` at most, as nodes do; `keep_price`: of a GB that is
    kept so for a second, None for that of `prices`.
    """

    keep_s: float = KEEP_S
    capacity_gb: float = 4.0
    prices: Prices = Prices()
    budget: Budget = Budget()
    weighed: bool = True
    keep_price: float | None = None

    @property
    def keeping(self) -> Prices:
        """How long an instance is worth keeping goes by these."""
        return self.prices if self.keep_price is None else msgspec.structs.replace(self.prices, idle_gb_s=self.keep_price)


class Result(msgspec.Struct, frozen=True):
    """`rule`: in a few words what the policy does. `calibration`: of what it foretold, None when it foretells nothing."""

    policy: str
    rule: str
    figures: Figures
    calibration: float | None = None


POLICIES: dict[str, tuple[str, Callable[[Basis], Policy]]] = {
    "none": ("an instance goes with its call", lambda basis: Policy()),
    "keep-alive": ("kept after a call", lambda basis: KeepAlive(basis.keep_s)),
    "hybrid histogram": ("kept, unloaded, reloaded by idle times", lambda basis: HybridHistogram()),
    "greedy dual": ("kept by value while memory lasts", lambda basis: GreedyDual(basis.capacity_gb)),
    "most likely path": ("likeliest path at the entry's start", lambda basis: MostLikely(basis.keep_s)),
    "mean just in time": ("path, each for its mean time", lambda basis: MeanJustInTime(basis.keep_s)),
    "orion": ("path, delayed as the 95th percentile allows", lambda basis: Orion(basis.keep_s)),
    "path": ("foreglow: whole path at the entry's start", lambda basis: Planned("path", basis.keep_s, budget=basis.budget)),
    "priced": (
        "foreglow: each instance timed and priced, kept while worth it",
        lambda basis: Anticipating(basis.keep_s, basis.prices, basis.budget, basis.weighed, basis.keeping),
    ),
    "clairvoyant": ("knows every call: the bound", lambda basis: Clairvoyant()),
}


def compare(
    arrivals: Sequence[tuple[float, Program]],
    settings: Settings,
    basis: Basis,
    skip: int = 0,
    policies: Sequence[str] = tuple(POLICIES),
) -> Iterator[Result]:
    """Each of `policies`, as soon as it is done. The first `skip` runs teach, and are not counted. Raises KeyError."""
    for name in policies:
        rule, make = POLICIES[name]
        policy = make(basis)
        found = Simulation(arrivals, policy, settings).run()
        calibration = policy.calibration(skip).error() if isinstance(policy, Planned) else None
        yield Result(name, rule, figures(found, basis.prices, skip), calibration)

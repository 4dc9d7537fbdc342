"""What is compared: one workload under Azure load, each policy over what it can be set to."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from benchmarks.replay.load import MINUTE_S, Loaded
from graph.calls import Trace
from graph.ids import FunctionId
from graph.plans import Prices
from orchestrator.whatif.compare import POLICIES, Basis
from orchestrator.whatif.engine import Settings, Simulation
from orchestrator.whatif.measures import Figures, figures
from orchestrator.whatif.planned import Planned
from orchestrator.whatif.programs import Program, program_of
from orchestrator.whatif.starts import Starts

TAUGHT = 100
"""Runs of each entry that teach before the replay begins."""

BUSIEST, RAREST = 1000, 24
"""Calls in 8 hours: of Azure's functions those between stand for entries. 16 % of them are called more often, which have no cold
starts to speak of, and 45 % less."""

KEEPS_S = (10.0, 60.0, 600.0)
KEPT_S = (10.0, 60.0, 180.0, 600.0, 1800.0)
CAPACITY = (0.15, 0.3, 0.6)
PRICES = (1.0, 16.0)
"""Of a GB*s idle, with a late second at its default: what moves kappa."""


@dataclass(frozen=True)
class Workload:
    """`taught` are what `arrivals` were drawn from, the rest of it: nothing that runs was seen before."""

    name: str
    told: str
    arrivals: list[tuple[float, Program]]
    taught: list[Trace]
    settings: Settings

    @property
    def functions(self) -> set[FunctionId]:
        return {function for _, program in self.arrivals for function in program.functions}


def workload(
    name: str, told: str, entries: Sequence[Sequence[Trace]], functions: Sequence[Loaded], hours: float, seed: int, starts: Starts
) -> Workload:
    """`entries`: of each entry its runs; the first TAUGHT teach (half of fewer than twice that), the others are drawn.

    The entries take Azure's functions at even distances in the order of their calls; a minute's calls are uniform in it.
    """
    rows = sorted((one for one in functions if RAREST <= one.calls <= BUSIEST), key=lambda one: one.calls)
    dice = random.Random(seed)
    order = list(entries)
    dice.shuffle(order)
    arrivals: list[tuple[float, Program]] = []
    taught: list[Trace] = []
    for place, traces in enumerate(order):
        split = min(TAUGHT, len(traces) // 2)
        taught += traces[:split]
        programs = [program_of(trace) for trace in traces[split:]]
        row = rows[int((place + 0.5) * len(rows) / len(order))]
        for minute, count in enumerate(row.minutes[: round(hours * 60)]):
            arrivals += [((minute + dice.random()) * MINUTE_S, dice.choice(programs)) for _ in range(count)]
    arrivals.sort(key=lambda arrival: arrival[0])
    return Workload(name, told, arrivals, taught, Settings(starts=starts, seed=seed))


@dataclass(frozen=True)
class Case:
    """One policy at one setting. `prices`: of the priced policy."""

    policy: str
    setting: str
    basis: Basis


@dataclass(frozen=True)
class Found:
    case: Case
    figures: Figures
    calibration: float | None = None
    taught: int = 0
    gaps_ms: list[float] = field(default_factory=list)


def cases(one: Workload) -> list[Case]:
    found = [Case("none", "", Basis()), Case("clairvoyant", "", Basis()), Case("hybrid histogram", "", Basis())]
    found += [Case("keep-alive", f"{keep_s:g} s", Basis(keep_s=keep_s)) for keep_s in KEPT_S]
    all_gb = sum(one.settings.memory_mb.get(name, one.settings.default_memory_mb) for name in one.functions) / 1024
    found += [Case("greedy dual", f"{share:g} of all", Basis(capacity_gb=share * all_gb)) for share in CAPACITY]
    for policy in ("most likely path", "mean just in time", "orion", "path"):
        found += [Case(policy, f"kept {keep_s:g} s", Basis(keep_s=keep_s)) for keep_s in KEEPS_S]
    if "priced" in POLICIES:
        found += [
            Case("priced", f"c_w {price:g}, kept {keep_s:g} s", Basis(keep_s=keep_s, prices=Prices(idle_gb_s=price)))
            for keep_s in KEEPS_S
            for price in PRICES
        ]
    return found


def replay(one: Workload, case: Case) -> Found:
    policy = POLICIES[case.policy][1](case.basis)
    for trace in one.taught:
        policy.taught(trace)
    done = Simulation(one.arrivals, policy, one.settings).run()
    calibration = policy.calibration() if isinstance(policy, Planned) else None
    return Found(case, figures(done, Prices()), calibration, len(one.taught))


_held: dict[str, Workload] = {}


def _hold(workloads: dict[str, Workload]) -> None:
    _held.update(workloads)


def _replay(name: str, case: Case) -> tuple[str, Found]:
    return name, replay(_held[name], case)


def all_cases(workloads: Sequence[Workload], progress: Callable[[str], None], processes: int = 2) -> Iterator[tuple[str, Found]]:
    """Every case of every workload, as each is done, the slowest first."""
    by_name = {one.name: one for one in workloads}
    todo = [(one.name, case) for one in workloads for case in cases(one)]
    todo.sort(key=lambda each: each[1].policy not in ("priced", "path", "orion", "mean just in time"))
    progress(f"{len(todo)} replays of {sum(len(one.arrivals) for one in workloads)} runs in {processes} processes")
    with ProcessPoolExecutor(processes, initializer=_hold, initargs=(by_name,)) as pool:
        for done in as_completed([pool.submit(_replay, name, case) for name, case in todo]):
            yield done.result()

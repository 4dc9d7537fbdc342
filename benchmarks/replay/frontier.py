"""What is compared: one workload under Azure load, each policy over what it can be set to."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from benchmarks.replay.load import MINUTE_S, Loaded
from graph.calibration import Calibration, merged
from graph.callgraph import CallGraph
from graph.calls import Trace
from graph.ids import FunctionId
from graph.plans import Budget, Prices
from graph.prediction import predict
from orchestrator.whatif.compare import KEEP_S, POLICIES, Basis
from orchestrator.whatif.engine import Settings, Simulation
from orchestrator.whatif.measures import Figures, figures
from orchestrator.whatif.programs import Program, program_of
from orchestrator.whatif.starts import Starts

OURS = "priced"
TAUGHT = 100
"""Runs of each entry that teach before the replay begins."""

BUSIEST, RAREST = 1000, 24
"""Calls in 8 hours: of Azure's functions those between stand for entries, 130 of 250. 19 are called more often, and have hardly
any cold starts; 101 less, and have hardly any runs."""

KEEPS_S = (1.0, 10.0, 60.0, 600.0)
FEWER_S = (10.0, 600.0)
KEPT_S = (1.0, 10.0, 60.0, 180.0, 600.0, 1800.0)
CAPACITY = (0.15, 0.3, 0.6)
PRICES = (0.05, 0.2, 1.0)
WEIGHED_PRICES = (0.02, 0.05, 0.2, 1.0)
"""Of a GB*s idle, with a late second at its default: what moves kappa."""

KEEP_PRICES = (0.1, 0.3)
"""The same of what is kept after its use alone, all else at its defaults (FOREGLOW_KEEP_PRICE)."""

WEIGHED = "kept while worth it"
"""As nodes keep them (graph.keeping) where nobody has set anything."""

UNBOUNDED = Budget(idle_s_per_busy_s=float("inf"))


@dataclass(frozen=True)
class Workload:
    """`taught` are what `arrivals` were drawn from, the rest of it: nothing that runs was seen before."""

    name: str
    told: str
    arrivals: list[tuple[float, Program]]
    taught: list[Trace]
    settings: Settings
    recorded: list[Sequence[Trace]]

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
    return Workload(name, told, arrivals, taught, Settings(starts=starts, seed=seed), order)


@dataclass(frozen=True)
class Case:
    """One policy at one setting. `default`: what a platform does that nobody has set."""

    policy: str
    setting: str
    basis: Basis
    default: bool = False


@dataclass(frozen=True)
class Found:
    workload: str
    case: Case
    figures: Figures

    @property
    def waste_s(self) -> float:
        """Instance-seconds per run."""
        return self.figures.wasted_s.value / 1000


def cases(one: Workload) -> list[Case]:
    found = [Case("none", "", Basis()), Case("clairvoyant", "", Basis()), Case("hybrid histogram", "", Basis())]
    found += [Case("keep-alive", f"kept {keep_s:g} s", Basis(keep_s=keep_s)) for keep_s in KEPT_S]
    all_gb = sum(one.settings.memory_mb.get(name, one.settings.default_memory_mb) for name in one.functions) / 1024
    found += [Case("greedy dual", f"{share:g} of all in memory", Basis(capacity_gb=share * all_gb)) for share in CAPACITY]
    for policy, keeps_s in (("most likely path", FEWER_S), ("mean just in time", FEWER_S), ("orion", FEWER_S), ("path", KEEPS_S)):
        found += [
            Case(policy, f"kept {keep_s:g} s", Basis(keep_s=keep_s), policy == "path" and keep_s == KEEP_S) for keep_s in keeps_s
        ]
    found += [Case(OURS, WEIGHED, Basis(), default=True)]
    found += [Case(OURS, f"kept {keep_s:g} s", Basis(keep_s=keep_s, weighed=False)) for keep_s in KEEPS_S]
    found += [
        Case(OURS, f"kept {keep_s:g} s, c_w {price:g}, no purse", Basis(keep_s, 0.0, Prices(idle_gb_s=price), UNBOUNDED, False))
        for keep_s in KEEPS_S[1:]
        for price in PRICES
    ]
    found += [
        Case(OURS, f"{WEIGHED}, c_w {price:g}, no purse", Basis(KEEP_S, 0.0, Prices(idle_gb_s=price), UNBOUNDED, True))
        for price in WEIGHED_PRICES
    ]
    found += [Case(OURS, f"{WEIGHED}, keep price {price:g}", Basis(keep_price=price)) for price in KEEP_PRICES]
    return found


def replay(one: Workload, case: Case) -> Found:
    policy = POLICIES[case.policy][1](case.basis)
    for trace in one.taught:
        policy.taught(trace)
    done = Simulation(one.arrivals, policy, one.settings).run()
    return Found(one.name, case, figures(done, Prices()))


def calibration(one: Workload) -> Calibration:
    """Prequential, over all runs there are: what the planner says at the start of each, then what came, then it learns that run.

    The first TAUGHT of each entry are learned and not counted.
    """
    graph, said = CallGraph(), []
    for traces in one.recorded:
        held = Calibration()
        for number, trace in enumerate(traces):
            if number >= TAUGHT:
                foretold = {call.function: call.reach for call in predict(graph, trace.entry)}
                reached = {call.callee for call in trace.calls} - {trace.entry}
                for function in sorted(reached | foretold.keys()):
                    held.add(min(1.0, foretold.get(function, 0.0)), function in reached)
            graph.observe(trace, float(number))
        said.append(held)
    return merged(said)


def envelope(found: Sequence[Found]) -> list[Found]:
    """Those of them that no other beats in both, by rising waste."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda each: (each.waste_s, each.figures.added_s.value)):
        if not kept or one.figures.added_s.value < kept[-1].figures.added_s.value:
            kept.append(one)
    return kept


_held: dict[str, Workload] = {}


def _hold(workloads: dict[str, Workload]) -> None:
    _held.update(workloads)


def _replay(name: str, case: Case) -> Found:
    return replay(_held[name], case)


def _calibrate(name: str) -> tuple[str, Calibration]:
    return name, calibration(_held[name])


def calibrations(workloads: Sequence[Workload], processes: int = 2) -> dict[str, Calibration]:
    """By workload."""
    by_name = {one.name: one for one in workloads}
    with ProcessPoolExecutor(processes, initializer=_hold, initargs=(by_name,)) as pool:
        return dict(pool.map(_calibrate, by_name))


def all_cases(workloads: Sequence[Workload], progress: Callable[[str], None], processes: int = 2) -> Iterator[Found]:
    """Every case of every workload, as each is done, the slowest first."""
    by_name = {one.name: one for one in workloads}
    todo = [(one.name, case) for one in workloads for case in cases(one)]
    todo.sort(key=lambda each: each[1].policy not in ("priced", "path", "orion", "mean just in time"))
    progress(f"{len(todo)} replays of {sum(len(one.arrivals) for one in workloads)} runs in {processes} processes")
    with ProcessPoolExecutor(processes, initializer=_hold, initargs=(by_name,)) as pool:
        for done in as_completed([pool.submit(_replay, name, case) for name, case in todo]):
            yield done.result()

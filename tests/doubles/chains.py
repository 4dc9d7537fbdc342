"""Small recorded runs for replays: functions by name, times exact."""

from collections.abc import Sequence

from graph.calls import Call, Trace
from orchestrator.whatif.engine import Settings, Simulation
from orchestrator.whatif.policy import Policy
from orchestrator.whatif.programs import program_of
from orchestrator.whatif.starts import Driver, Spread, Starts

START_S = 0.5
STANDBY_S = 0.125


def starts(start_s: float = START_S, standby_s: float = STANDBY_S) -> Starts:
    """Every start takes exactly so long, all of it the platform's."""
    driver = Driver("made", Spread(start_s, start_s), Spread(standby_s, standby_s), 16.0, "made up")
    return Starts(driver, Spread(0.0, 0.0))


def trace(entry: str, duration_s: float, *calls: tuple[int, str, float, float], number: int = 0) -> Trace:
    """Calls are (index of the caller's call or -1, callee, offset from the entry's call, duration)."""
    names = [entry, *(callee for _, callee, _, _ in calls)]
    return Trace(
        "t",
        f"{number:032x}",
        f"t/{entry}",
        duration_s,
        tuple(Call(f"t/{names[above + 1]}", f"t/{callee}", above, at, took) for above, callee, at, took in calls),
    )


def chain(lead_s: float = 0.125, number: int = 0) -> Trace:
    """e calls a `lead_s` after it began; a runs 250 ms; e ends 125 ms after its answer."""
    return trace("e", lead_s + 0.375, (-1, "a", lead_s, 0.25), number=number)


def simulate(policy: Policy, runs: Sequence[tuple[float, Trace]], taught: Sequence[Trace] = (), **settings: object) -> Simulation:
    """A simulation that has run: its replay is at `.replay`. Orders take no time, an instance holds 1 GB."""
    settings = {"starts": starts(), "order_s": 0.0, "default_memory_mb": 1024} | settings
    for one in taught:
        policy.taught(one)
    made = Simulation([(at, program_of(one)) for at, one in runs], policy, Settings(**settings))  # type: ignore[arg-type]
    made.replay = made.run()  # type: ignore[attr-defined]
    return made

"""What came of a simulation: every run, every call, and where the time of instances went."""

import msgspec

from graph.calls import StartKind
from orchestrator.whatif.ledger import Ledger


class Called(msgspec.Struct, array_like=True):
    """One call: of which run, which of its stages (0: the entry), when, how long it waited for an instance, and what it found."""

    run: int
    stage: int
    at_s: float
    wait_s: float
    start: StartKind


class Ended(msgspec.Struct, array_like=True):
    """One run. `took_s`: the entry's, from its call to its answer; `warm_s`: had nothing waited."""

    began_s: float
    took_s: float
    warm_s: float
    stages: int


class Replay(msgspec.Struct):
    """`seconds`: of the virtual clock. `start_mean_s`: of a start on demand, over the functions that were called."""

    policy: str
    runs: list[Ended]
    calls: list[Called]
    ledger: Ledger
    seconds: float
    start_mean_s: float

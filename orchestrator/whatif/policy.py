"""What a policy is asked, and what it may do."""

from collections.abc import Callable, Sequence
from typing import Protocol

from graph.calls import Trace
from graph.ids import FunctionId
from orchestrator.whatif.instances import Instance
from orchestrator.whatif.programs import Program
from orchestrator.whatif.starts import Starts


class Run:
    """A run under way, as a policy may know it: nothing of what is still to come.

    `seen_at_s`: seconds after `began`. `waits`: the entry found no instance that was ready.
    """

    __slots__ = ("began", "entry", "number", "seen", "seen_at_s", "waits")

    def __init__(self, number: int, entry: FunctionId, began: float) -> None:
        self.number = number
        self.entry = entry
        self.began = began
        self.seen: list[FunctionId] = []
        self.seen_at_s: list[float] = []
        self.waits = False


class World(Protocol):
    """What policies see and order. Orders take `order_s` to arrive."""

    now: float
    starts: Starts

    def memory_mb(self, function: FunctionId) -> int: ...
    def free(self, function: FunctionId) -> int:
        """Instances that are idle, or being prepared and nobody's."""

    def idle(self, function: FunctionId) -> Sequence[Instance]: ...
    def alive_gb(self) -> float: ...
    def prepare(
        self, run: int, function: FunctionId, in_s: float = 0.0, expires_s: float = 60.0, decision_id: str = ""
    ) -> Instance:
        """An instance whose preparation starts in `in_s`, and that goes when unused `expires_s` after being ready."""

    def hold(self, run: int, covers: Sequence[FunctionId], in_s: float, expires_s: float, decision_id: str = "") -> Instance:
        """A standby, for the first call of one of `covers` that finds nothing better; the same in time."""

    def ready_at(self, run: int, function: FunctionId, at: float) -> None:
        """An instance that is ready exactly then: only for who knows how long its start will take."""

    def give_up(self, one: Instance) -> None:
        """Whatever nobody uses or waits for; else nothing happens."""

    def later(self, in_s: float, what: Callable[[], None]) -> None:
        """`what` is called then, unless the last run is over by that time."""

    def expire(self, one: Instance, in_s: float) -> None:
        """An idle instance goes in `in_s` when it is not used before, whatever was said earlier."""


class Policy:
    """Does nothing: every call that finds no instance starts one, which goes with it."""

    name = "none"

    def __init__(self) -> None:
        self.world: World

    def attach(self, world: World, arrivals: Sequence[tuple[float, Program]]) -> None:
        """Before the first run. `arrivals` are for who may know the future."""
        self.world = world

    def taught(self, trace: Trace) -> None:
        """A run from before, all of it warm."""

    def begins(self, run: Run) -> None:
        """A run's entry was called."""

    def called(self, run: Run, function: FunctionId) -> None:
        """A stage of it was called, and has or waits for its instance; `run.seen` ends with it."""

    def wanted(self, function: FunctionId) -> None:
        """Any call of `function`, the entry's too, before it looks for an instance."""

    def starting(self, function: FunctionId) -> None:
        """An instance of `function` is about to be started for a call that waits."""

    def ready(self, one: Instance, took_s: float) -> None:
        """An instance became ready `took_s` after its start."""

    def expired(self, one: Instance) -> None:
        """An instance that waited for a call has gone."""

    def keep_s(self, one: Instance) -> float:
        """Its call is done: for how long it waits for the next. 0: it goes."""
        return 0.0

    def ended(self, run: Run, trace: Trace) -> None:
        """A run is over, with all it called."""

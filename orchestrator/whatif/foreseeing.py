"""The bound: who knows every call, and how long every start will take."""

from collections.abc import Sequence

from orchestrator.whatif.policy import Policy, World
from orchestrator.whatif.programs import Program


class Clairvoyant(Policy):
    """Each call finds an instance that became ready at that moment, and it goes with the call: nothing waits, nothing idles."""

    name = "clairvoyant"

    def attach(self, world: World, arrivals: Sequence[tuple[float, Program]]) -> None:
        super().attach(world, arrivals)
        for number, (at, program) in enumerate(arrivals):
            for stage, called_s in zip(program.stages, program.called_s, strict=True):
                world.ready_at(number, stage.function, at + called_s)

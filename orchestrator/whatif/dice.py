"""How long each start takes in a simulation, drawn once for each."""

import random
import zlib

from graph.ids import FunctionId
from orchestrator.whatif.starts import Starts


class Dice:
    """Each function has its own: policies start alike what they start as often. Seconds, all of them."""

    def __init__(self, starts: Starts, seed: int) -> None:
        self._starts = starts
        self._seed = seed
        self._dice: dict[FunctionId, random.Random] = {}

    def start_s(self, function: FunctionId, standby: bool = False) -> float:
        """One more start of it, out of a standby or without."""
        die = self._of(function)
        driver = self._starts.driver
        return (driver.standby if standby else driver.clone).draw(die) + self._starts.init_of(function).draw(die)

    def clone_s(self, function: FunctionId | None = None) -> float:
        """One more standby; in the place of one that this function took, if any did."""
        return self._starts.driver.clone.draw(self._of(function or FunctionId("")))

    def _of(self, function: FunctionId) -> random.Random:
        die = self._dice.get(function)
        if die is None:
            die = self._dice[function] = random.Random(self._seed << 32 | zlib.crc32(function.encode()))  # noqa: S311
        return die

"""A simulated fleet for placement: nodes of mixed sizes in three zones, filled with instances of a million functions. Some have
less than the index thinks: those refuse."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.placement_index import PlacementIndex, Spot

NODE_MB = (32_768, 65_536, 131_072)
NODE_WEIGHTS = (5, 3, 2)
SHAPES = (128, 256, 512, 1024, 2048)
SHAPE_WEIGHTS = (40, 30, 15, 10, 5)
ZONES = ("a", "b", "c")
HOT = 20_000
"""Functions that get the instances beyond one each, the first of them more often than the last."""

SEED = 20261127


@dataclass(slots=True)
class Fleet:
    """`live`: every instance there: where, of what, which shape."""

    index: PlacementIndex
    source: random.Random
    functions: int
    live: list[tuple[Spot, str, int]] = field(default_factory=list)
    used_mb: int = 0
    total_mb: int = 0
    refusals: int = 0
    again: int = 0

    @property
    def full(self) -> float:
        return self.used_mb / self.total_mb


def fleet(nodes: int, functions: int) -> Fleet:
    source = random.Random(SEED)
    made = Fleet(PlacementIndex(), source, functions)
    for number in range(nodes):
        size = source.choices(NODE_MB, NODE_WEIGHTS)[0]
        made.index.add(f"node-{number}", ZONES[number % 3], size)
        made.total_mb += size
    return made


def fill(made: Fleet, share: float) -> Iterator[int]:
    """Instances until the fleet is so full, one of each function first. Yields how many there are, now and then."""
    source, index, live = made.source, made.index, made.live
    number = 0
    while made.full < share:
        version = f"t{number % 1000}/f{number}:1" if number < made.functions else hot(source, made.functions)
        shape = source.choices(SHAPES, SHAPE_WEIGHTS)[0]
        spot = index.place(version, shape)
        assert spot is not None
        index.accepted(spot, shape)
        live.append((spot, version, shape))
        made.used_mb += shape
        number += 1
        if number % 100_000 == 0:
            yield number


def hot(source: random.Random, functions: int) -> str:
    number = int(min(HOT, functions) * source.random() ** 3)
    return f"t{number % 1000}/f{number}:1"


@dataclass(slots=True)
class Steps:
    """What comes: drawn before anything is timed."""

    wanted: list[tuple[str, int, bool]]
    ends: list[float]


def steps(made: Fleet, count: int, refused: float) -> Steps:
    source = made.source
    wanted = [
        (hot(source, made.functions), source.choices(SHAPES, SHAPE_WEIGHTS)[0], source.random() < refused) for _ in range(count)
    ]
    return Steps(wanted, [source.random() for _ in range(count)])


def step(made: Fleet, version: str, shape: int, refuses: bool, end: float) -> Spot | None:
    """One placement with all that belongs to it: the node answers, a refusal is placed again, and an instance ends elsewhere."""
    index, live = made.index, made.live
    spot = index.place(version, shape)
    if spot is not None and refuses:
        made.refusals += 1
        index.refused(spot, version, shape, max(0, spot.free_mb - shape))
        spot = index.place(version, shape, but=(spot,))
        made.again += 1
    if spot is None:
        return None
    index.accepted(spot, shape)
    at = int(end * len(live))
    gone, other, size = live[at]
    live[at] = (spot, version, shape)
    index.ended(gone, other, size)
    made.used_mb += shape - size
    return spot

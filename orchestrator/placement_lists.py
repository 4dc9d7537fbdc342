"""The lists in which nodes stand sorted (orchestrator.placement_index): for each shape by rank, how many more instances of it a
node holds in powers of two. Pure."""

from collections import OrderedDict
from collections.abc import Sequence

TOP = 6
"""Powers of two told apart: 2**(TOP - 1) more instances, or any number above."""

NodeList = OrderedDict["Spot", None]
Ranks = tuple[int, ...]


class Spot:
    """A node as the index sees it. `free_mb`: what it said last, less what was placed there since; `pending_mb`: placed there,
    and it did not answer yet. `held`: instances by version."""

    __slots__ = ("free_mb", "held", "name", "pending_mb", "ranks", "section", "tenants", "zone")

    def __init__(self, name: str, zone: str, tenants: frozenset[str]) -> None:
        self.name = name
        self.zone = zone
        self.tenants = tenants
        self.free_mb = 0
        self.pending_mb = 0
        self.held: dict[str, int] = {}
        self.ranks: Ranks = ()
        self.section: Section | None = None

    def hosts(self, tenant: str) -> bool:
        return not self.tenants or tenant in self.tenants


class Section:
    """The nodes of one zone that the same tenants may use: for each shape its lists by rank, rank 0 unused."""

    __slots__ = ("lists", "nodes", "tenants", "zone")

    def __init__(self, zone: str, tenants: frozenset[str], shapes: int) -> None:
        self.zone = zone
        self.tenants = tenants
        self.nodes = 0
        self.lists: list[list[NodeList]] = [[OrderedDict() for _ in range(TOP + 1)] for _ in range(shapes)]


def rank_table(sizes: Sequence[int], unit: int, units: int) -> list[Ranks]:
    """By free units: for each size the power of two of how many fit. Equal rows are one object."""
    rows: dict[Ranks, Ranks] = {}
    table = []
    for free in range(units + 1):
        row = tuple(min(TOP, (free * unit // size).bit_length()) for size in sizes)
        table.append(rows.setdefault(row, row))
    return table

"""Where the functions of a call graph stand: left to right by who calls whom, with few crossings. Pure.

Ranks are longest paths over the condensation: a caller stands left of what it calls. Functions that call each other in a circle
stand side by side, in the order in which the circle is entered. Order within a rank is by the barycentre of the neighbours.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

SWEEPS = 4
DENSE = 24
"""A rank of more stands in STAGGER columns side by side, so that dots and names have room."""
STAGGER = 3

Edge = tuple[str, str]
Places = dict[str, tuple[float, float]]


def place(functions: Sequence[str], edges: Iterable[Edge]) -> Places:
    """(rank, row) of every function, rows one apart at least; equal input gives equal places. Edges end in `functions` only.

    Functions without any edge stand in rows of their own below the rest.
    """
    calls = [edge for edge in dict.fromkeys(edges) if edge[0] != edge[1]]
    joined = {end for edge in calls for end in edge}
    network: nx.DiGraph[str] = nx.DiGraph()
    network.add_nodes_from(one for one in functions if one in joined)
    network.add_edges_from(calls)
    ranks = _ordered(network, _ranks(network))
    places = _placed(network, ranks)
    return places | _alone([one for one in functions if one not in joined], places, max(len(ranks), 4))


def _ranks(network: "nx.DiGraph[str]") -> dict[str, int]:
    circles = nx.condensation(network)
    began: dict[int, int] = {}
    found: dict[str, int] = {}
    spans: dict[int, int] = {}
    for circle in nx.topological_sort(circles):
        members = circles.nodes[circle]["members"]
        began[circle] = max((began[before] + spans[before] for before in circles.pred[circle]), default=0)
        depths = _depths(network, members)
        spans[circle] = max(depths.values()) + 1
        found |= {one: began[circle] + depth for one, depth in depths.items()}
    return found


def _depths(network: "nx.DiGraph[str]", circle: set[str]) -> dict[str, int]:
    """Steps from where the circle is entered; of a circle nobody enters, from its first name."""
    entries = sorted(one for one in circle if any(caller not in circle for caller in network.pred[one])) or [min(circle)]
    depths = dict.fromkeys(entries, 0)
    waiting = deque(entries)
    while waiting:
        caller = waiting.popleft()
        for callee in sorted(network.succ[caller]):
            if callee in circle and callee not in depths:
                depths[callee] = depths[caller] + 1
                waiting.append(callee)
    return depths


def _ordered(network: "nx.DiGraph[str]", ranks: Mapping[str, int]) -> list[list[str]]:
    columns: list[list[str]] = [[] for _ in range(max(ranks.values(), default=-1) + 1)]
    for one in network:
        columns[ranks[one]].append(one)
    rows = {one: float(row) for column in columns for row, one in enumerate(column)}
    for sweep in range(SWEEPS):
        ahead = sweep % 2 == 0
        for column in columns if ahead else reversed(columns):
            beside = network.pred if ahead else network.succ
            column.sort(key=lambda one, beside=beside: (_mean([rows[other] for other in beside[one]], rows[one]), one))  # type: ignore[misc]
            rows |= {one: row - len(column) / 2 for row, one in enumerate(column)}
    return columns


def _placed(network: "nx.DiGraph[str]", columns: Sequence[Sequence[str]]) -> Places:
    """Rows near the neighbours' rows, in the order given, at least one apart."""
    rows = {one: row - (len(column) - 1) / 2 for column in columns for row, one in enumerate(column)}
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            near = [_mean([rows[other] for other in (*network.pred[one], *network.succ[one])], rows[one]) for one in column]
            rows |= dict(zip(column, apart(near), strict=True))
    return {
        one: (rank + (_shift(row) if len(column) > DENSE else 0.0), rows[one])
        for rank, column in enumerate(columns)
        for row, one in enumerate(column)
    }


def apart(wanted: Sequence[float]) -> list[float]:
    """Values nearest to those wanted (least squares) that keep their order and stand at least one apart."""
    blocks: list[tuple[float, int]] = []  # mean and length of what must move as one
    for index, value in enumerate(wanted):
        blocks.append((value - index, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (right, many), (left, few) = blocks.pop(), blocks.pop()
            blocks.append(((left * few + right * many) / (few + many), few + many))
    level = [mean for mean, length in blocks for _ in range(length)]
    return [mean + index for index, mean in enumerate(level)]


def _alone(functions: Sequence[str], places: Places, columns: int) -> Places:
    below = max((row for _, row in places.values()), default=-1.0) + (1.3 if places else 1.0)
    return {one: (float(index % columns), below + index // columns) for index, one in enumerate(functions)}


def _shift(row: int) -> float:
    return (row % STAGGER - (STAGGER - 1) / 2) * 0.22


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise

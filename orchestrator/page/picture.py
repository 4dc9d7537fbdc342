"""The call graph as it is drawn and as a table says it. Pure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from orchestrator.page import cells, figures
from orchestrator.page.cells import Row
from orchestrator.page.layout import Edge, Places, place

EDGES_DRAWN = 6_000
FUNCTIONS_DRAWN = 3_000
NAMED = 300  # as in components/callgraph.js
LAYOUTS = 32


class Graph(msgspec.Struct, frozen=True):
    """What is shown of a call graph. `matches`: functions the filter found; `left_out`: functions and edges not drawn."""

    functions: tuple[str, ...]
    deployed: frozenset[str]
    edges: tuple[dict[str, Any], ...]
    places: Places
    matches: frozenset[str]
    left_out: tuple[int, int] = (0, 0)


def shown(document: Mapping[str, Any], wanted: str = "") -> Graph:
    """The graph of GET /v1/graph; with `wanted`, the functions whose names hold it, and who is called by them or calls them.

    What is over the bounds is left out: first the edges least likely to be taken.
    """
    every = [one["name"] for one in document["functions"]]
    deployed = frozenset(one["name"] for one in document["functions"] if one.get("deployed"))
    edges = list(document["edges"])
    matches = frozenset(name for name in every if wanted.lower() in name.lower())
    if wanted:
        edges = [edge for edge in edges if edge["caller"] in matches or edge["callee"] in matches]
        near = matches | {edge[end] for edge in edges for end in ("caller", "callee")}
        every = [name for name in every if name in near]
    functions, drawn = every[:FUNCTIONS_DRAWN], edges
    if len(every) > FUNCTIONS_DRAWN:
        kept = set(functions)
        drawn = [edge for edge in drawn if edge["caller"] in kept and edge["callee"] in kept]
    if len(drawn) > EDGES_DRAWN:
        drawn = sorted(drawn, key=lambda edge: -float(edge["probability"]))[:EDGES_DRAWN]
    places = _places(tuple(functions), tuple((edge["caller"], edge["callee"]) for edge in drawn))
    return Graph(
        tuple(functions), deployed, tuple(drawn), places, matches, (len(every) - len(functions), len(edges) - len(drawn))
    )


@lru_cache(maxsize=LAYOUTS)
def _places(functions: tuple[str, ...], edges: tuple[Edge, ...]) -> Places:
    """Probabilities change with every run, places only with who calls whom."""
    return place(functions, edges)


def states(graph: Graph, instances: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """warm: an instance is idle or busy. preparing: one is on its way. cold: none. `instances` None: nobody could be asked."""
    if instances is None:
        return dict.fromkeys(graph.functions, "unknown")
    ready = {one["function"] for one in instances if one["idle"] or one["busy"]}
    coming = {one["function"] for one in instances if one["preparing"]}
    return {
        name: "warm" if name in ready else "preparing" if name in coming else "cold" if name in graph.deployed else "not deployed"
        for name in graph.functions
    }


def drawing(graph: Graph, now: Mapping[str, str]) -> dict[str, Any]:
    """What components/callgraph.js draws: nodes [name, x, y, state, matches], edges [from, to, probability, declared only]."""
    index = {name: number for number, name in enumerate(graph.functions)}
    return {
        "nodes": [
            [name, round(graph.places[name][0], 3), round(graph.places[name][1], 2), now[name], name in graph.matches]
            for name in graph.functions
        ],
        "edges": [
            [index[edge["caller"]], index[edge["callee"]], round(edge["probability"], 3), edge["source"] == "declared"]
            for edge in graph.edges
        ],
    }


COLUMNS = [
    cells.column("Function"),
    cells.column("State"),
    cells.column("Calls", "wide"),
    cells.column("Called by", "wide"),
]


def rows(graph: Graph, now: Mapping[str, str], chosen: str, limit: int) -> list[Row]:
    """The graph as a table, in the order it is drawn: by rank, then from the top."""
    calls: dict[str, list[str]] = {}
    callers: dict[str, list[str]] = {}
    for edge in graph.edges:
        likely = figures.percent(edge["probability"])
        calls.setdefault(edge["caller"], []).append(f"{edge['callee']} {likely}")
        callers.setdefault(edge["callee"], []).append(edge["caller"])
    names = sorted((one for one in graph.functions if one in graph.matches), key=lambda one: graph.places[one])
    return [
        cells.row(
            name,
            [
                cells.choice(name, name),
                cells.mark(now[name]),
                _listed(calls.get(name, ())),
                _listed(callers.get(name, ())),
            ],
            name == chosen,
        )
        for name in names[:limit]
    ]


EDGE_COLUMNS = [
    cells.column("Call"),
    cells.column("Probability", "number"),
    cells.column("Calls a run", "number"),
    cells.column("Traces", "number"),
    cells.column("Known from"),
    cells.column("After", "number"),
]


def edge_rows(document: Mapping[str, Any], name: str) -> list[Row]:
    """Every edge of one function, its calls first, the likeliest on top."""
    own = [edge for edge in document["edges"] if name in (edge["caller"], edge["callee"])]
    own.sort(key=lambda edge: (edge["caller"] != name, -edge["probability"]))
    return [
        cells.row(
            f"{edge['caller']} {edge['callee']}",
            [
                _end(edge, name),
                figures.percent(edge["probability"]),
                f"{edge['fan_out']:.1f}",
                f"{edge['traces']:,}",
                edge["source"],
                figures.milliseconds(None if edge["offset_p50_s"] is None else edge["offset_p50_s"] * 1000),
            ],
        )
        for edge in own
    ]


def _end(edge: Mapping[str, Any], name: str) -> cells.Cell:
    if edge["caller"] == name:
        return cells.choice(f"calls {edge['callee']}", edge["callee"])
    return cells.choice(f"called by {edge['caller']}", edge["caller"])


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

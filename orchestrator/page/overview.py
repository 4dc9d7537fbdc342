"""Functions, nodes and the other processes, as tables say them. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.page import cells, figures
from orchestrator.page.cells import Cell, Row

NODE_COLUMNS = [
    cells.column("Node"),
    cells.column("State"),
    cells.column("Instances", "number"),
    cells.column("Standbys", "number"),
    cells.column("Memory promised", "wide"),
    cells.column("Isolation", "wide"),
    cells.column("Code", "wide"),
    cells.column("Function templates", "wide"),
    cells.column("Tunnels", "wide"),
]
VPC_COLUMNS = [
    cells.column("Private network"),
    cells.column("State"),
    cells.column("CIDRs", "wide"),
    cells.column("Proxies", "wide"),
    cells.column("Tunnels", "wide"),
    cells.column("Functions", "wide"),
]
PROCESS_COLUMNS = [cells.column("Part"), cells.column("State"), cells.column("What it says", "wide")]
FUNCTION_COLUMNS = [
    cells.column("Function"),
    cells.column("State"),
    cells.column("Instances", "wide"),
    cells.column("Conditions", "wide"),
    cells.column("Invocations", "number"),
    cells.column("Errors", "number"),
    cells.column("Last error", "wide"),
    cells.column("Code", "wide"),
]


def node_rows(status: Mapping[str, Any]) -> list[Row]:
    """The nodes in GET /v1/status: what says of itself which isolation is in force, and those of them that are away."""
    return [
        _node(name, state)
        for name, state in status.items()
        if (isinstance(state, dict) and "isolation" in state) or (state == "away" and name not in ("planner", "redis"))
    ]


def _node(name: str, state: Any) -> Row:
    if not isinstance(state, dict):
        return cells.row(
            name, [name, cells.mark("false", "away"), "", "", "", "it holds no instance that can be reached", "", "", ""]
        )
    memory, isolation = state["memory_mb"], state["isolation"]
    share = memory["promised"] / memory["total"] if memory["total"] else 0.0
    missing = "; ".join(isolation["missing"])
    return cells.row(
        name,
        [
            {"text": name, "sub": state["name"] if state["name"] != name else ""},
            cells.mark("true", "up"),
            f"{state['instances']:,}",
            f"{state['standbys']:,}",
            {
                "track": [{"left": 0, "width": round(100 * min(1.0, share), 1), "tone": "run", "title": figures.percent(share)}],
                "text": f"{figures.megabytes(memory['promised'])} of {figures.megabytes(memory['total'])}",
            },
            {"text": f"{isolation['driver']}: {isolation['tier']}", "sub": f"not in force: {missing}" if missing else ""},
            _code([state["code"]] if "code" in state else [], "held"),
            _templates(state.get("templates", {})),
            _tunnels(state.get("tunnels", {})),
        ],
    )


def _templates(templates: Mapping[str, int]) -> Cell:
    said = {standing: templates.get(standing, 0) for standing in ("held", "making", "refused")}
    if not any(said.values()):
        return ""
    beside = ", ".join(f"{count:,} {standing}" for standing, count in said.items() if count and standing != "held")
    held = f"{said['held']:,} held" + (f", {figures.megabytes(templates['memory_mb'])}" if said["held"] else "")
    return {"text": held, "sub": beside}


def _tunnels(tunnels: Mapping[str, Any]) -> Cell:
    if not tunnels:
        return ""
    counts = f"{tunnels['ready']:,} open, {figures.count(tunnels['attached'], 'instance')} attached"
    if tunnels["not-ready"]:
        counts = f"{tunnels['not-ready']:,} not open, {counts}"
    return {"text": f"{tunnels['backend']}: {counts}", "sub": tunnels["reason"]}


def vpc_rows(vpcs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Private networks as GET /v1/vpcs/{name} tells of each."""
    return [_vpc(one) for one in vpcs]


def _vpc(one: Mapping[str, Any]) -> Row:
    ready = [tunnel for tunnel in one["tunnels"] if tunnel["ready"]]
    lacking = [f"{tunnel['node']}: {tunnel['reason']}" for tunnel in one["tunnels"] if not tunnel["ready"]]
    lacking += [f"{node}: does not answer" for node in one["away"]]
    reached = ", ".join(f"{tunnel['node']} ({tunnel['backend']}, {tunnel['attached']:,} attached)" for tunnel in ready)
    return cells.row(
        one["name"],
        [
            one["name"],
            cells.mark("true", "reached") if ready else cells.mark("false", "not reached"),
            {"text": ", ".join(one["cidrs"]), "sub": ", ".join(one["rules"]) or "all of it may be reached"},
            ", ".join(f"{proxy['name']} ({proxy['role']})" for proxy in one["proxies"]) or "none has joined",
            {"text": reached or "none", "sub": "; ".join(lacking)},
            ", ".join(one["functions"]),
        ],
    )


def process_rows(status: Mapping[str, Any]) -> list[Row]:
    """Planner, Redis, and what the control flow still has to do."""
    planner, events = status["planner"], status["events"]
    up = isinstance(planner, dict)
    learned = figures.count(planner["learned"]["observed"], "run") + " learned since it started" if up else ""
    if up and planner.get("spans", {}).get("received"):
        spans = planner["spans"]
        learned += f"; of {figures.count(spans['received'], 'span')} from elsewhere {spans['left_out']:,} were left out"
    parked = events["parked"]
    waiting = f"{events['open']:,} open, {parked:,} parked"
    return [
        cells.row("control", ["control", cells.mark("true", "up"), f"version {status['version']}"]),
        cells.row(
            "planner", ["planner", cells.mark("true", "up") if up else cells.mark("false", "away"), learned or _NO_PLANNER]
        ),
        cells.row("flow", ["control flow", cells.mark("false" if parked else "true", "parked" if parked else "ok"), waiting]),
        cells.row(
            "redis",
            ["redis", cells.mark("true", "up"), "routes and events travel"]
            if status["redis"] == "ok"
            else ["redis", cells.mark("false", "away"), "invocations go on; deploys wait until it is back"],
        ),
        *(_zone_cache(one) for one in status.get("zone_caches", ())),
    ]


def _zone_cache(one: Mapping[str, Any]) -> Row:
    up, zone = one["state"] == "up", f"zone {one['zone']}"
    said = f"code for {zone}" if up else f"nodes of {zone} go to the origin"
    return cells.row(
        f"cache {one['name']}", [f"zone cache {one['name']}", cells.mark("true" if up else "false", one["state"]), said]
    )


_NO_PLANNER = "nothing is prepared ahead; invocations start cold and are answered"


def function_rows(
    functions: Sequence[Mapping[str, Any]],
    instances: Sequence[Mapping[str, Any]] | None,
    activity: Mapping[str, Mapping[str, Any]],
    wanted: str,
    limit: int,
    code: Sequence[Mapping[str, Any]] = (),
) -> list[Row]:
    """`functions` as GET /v1/functions lists them, `activity` by name, `code` as GET /v1/code; None of `instances`: no node could
    be asked."""
    found = [one for one in functions if wanted.lower() in one["name"].lower()]
    return [_function(one, instances, activity.get(one["name"]), code) for one in found[:limit]]


def _function(
    one: Mapping[str, Any],
    instances: Sequence[Mapping[str, Any]] | None,
    done: Mapping[str, Any] | None,
    code: Sequence[Mapping[str, Any]],
) -> Row:
    own = [count for count in instances or () if count["function"] == one["name"]]
    counts = {state: sum(count[state] for count in own) for state in ("idle", "busy", "preparing")}
    state = "warm" if counts["idle"] or counts["busy"] else "preparing" if counts["preparing"] else "cold"
    nodes = sorted({count["node"] for count in own if count["idle"] or count["busy"] or count["preparing"]})
    alone = len({count["node"] for count in instances or ()}) < 2
    newest = one["versions"][0] if one["versions"] else None
    serves = f"version {one['latest']} serves" if one["latest"] is not None else "no version serves yet"
    error = done["last_error"] if done is not None else None
    return cells.row(
        one["name"],
        [
            {"text": one["name"], "sub": serves + (f", {figures.megabytes(newest['memory_mb'])}" if newest else "")},
            cells.mark(state if instances is not None else "unknown"),
            {
                "text": ", ".join(f"{many} {name}" for name, many in counts.items() if many) or "none",
                "sub": "" if alone else "on " + ", ".join(nodes) if nodes else "",
            },
            _conditions(newest),
            f"{done['invocations']:,}" if done is not None else "0",
            f"{done['errors']:,}" if done is not None else "0",
            {"text": f"{error['status']} {error['type']}".strip(), "at": error["at"], "choose": f"run {error['trace_id']}"}
            if error
            else "",
            _code([at for at in code if at["function"] == one["name"]], "brought"),
        ],
    )


def _code(told: Sequence[Mapping[str, Any]], bytes_are: str) -> cells.Cell:
    """How many starts found their code on the node, of all that asked; below it where the others had it from, and bytes."""
    requests: Counter[str] = Counter()
    for one in told:
        requests.update(one["requests"])
    size = figures.megabytes(sum(one["bytes"] for one in told) / (1 << 20))
    if not requests.total():
        return {"text": "not asked yet", "sub": f"{size} {bytes_are}"} if told else ""
    others = [f"{count:,} {_FROM[tier]}" for tier, count in requests.items() if count and tier in _FROM]
    evicted = sum(one["evictions"] for one in told)
    said = [*others, f"{size} {bytes_are}", *([figures.count(evicted, "layer") + " evicted"] if evicted else [])]
    return {"text": f"{figures.percent(requests['tier1'] / requests.total())} at hand", "sub": ", ".join(said)}


_FROM = {"tier2": "from the zone", "origin": "from the origin", "failed": "failed"}


def _conditions(version: Mapping[str, Any] | None) -> cells.Cell:
    """The newest version's: in one word when all that is needed holds, else what does not and why."""
    if version is None:
        return ""
    needed = [one for one in version["conditions"] if one["status"] != "not needed"]
    open_ones = [one for one in needed if one["status"] != "true"]
    if not open_ones:
        return cells.mark("true", "hold", ", ".join(one["name"] for one in needed))
    worst = "false" if any(one["status"] == "false" for one in open_ones) else "pending"
    why = "; ".join(f"{one['name']} {one['status']}" + (f": {one['reason']}" if one["reason"] else "") for one in open_ones)
    what = "waits" if worst == "pending" else "failed"
    return cells.mark(worst, f"version {version['number']} {what}", why)

"""Releases: the list, and one with its steps, its gate and how the new version does. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.page import cells, figures
from orchestrator.page.cells import Row

PHASES = ("preparing", "holding", "done", "stopped", "aborted", "superseded")
OPEN = ("preparing", "holding")
PATIENCE = 5.0
"""As orchestrator.releases has it: with too few requests to be judged, a step holds so many times as long."""

COLUMNS = [
    cells.column("Release"),
    cells.column("State"),
    cells.column("Leads to"),
    cells.column("Steps", "wide"),
    cells.column("Since"),
    cells.column("Why", "wide"),
]
GATE_COLUMNS = [cells.column("Instances of"), cells.column("State"), cells.column("Ready of needed", "line")]
WATCH_COLUMNS = [
    cells.column("Version"),
    cells.column("Requests", "number"),
    cells.column("Failed", "number"),
    cells.column("95th percentile", "number"),
]
Release = Mapping[str, Any]
Pointer = Mapping[str, Any]


def shares(pointer: Pointer) -> dict[int, float]:
    """The part of the runs that each version gets."""
    if pointer["second"] is None:
        return {int(pointer["version"]): 1.0}
    return {int(pointer["version"]): 1.0 - pointer["share"], int(pointer["second"]): pointer["share"]}


def meaning(pointer: Pointer) -> str:
    """ "version 3", or "version 3 70 %, version 4 30 %"."""
    if pointer["second"] is None:
        return f"version {pointer['version']}"
    return ", ".join(f"version {number} {_percent(share)}" for number, share in shares(pointer).items())


def list_rows(releases: Iterable[Release], chosen: int) -> list[Row]:
    """In the order given."""
    return [
        cells.row(
            str(one["id"]),
            [
                cells.choice(f"{one['function']} {one['alias']}", str(one["id"]), f"release {one['id']}"),
                cells.mark(one["phase"]),
                f"version {one['target']}",
                " → ".join(_percent(shares(step).get(one["target"], 0.0)) for step in one["steps"]),
                {"at": one["since"]},
                _why(one),
            ],
            one["id"] == chosen,
        )
        for one in releases
    ]


def _why(one: Release) -> str:
    if one["phase"] == "done":
        return "all that was needed was ready"
    return str(one["reason"])


def heading(one: Release) -> str:
    return f"{one['function']} {one['alias']} to version {one['target']}"


def state(one: Release, now: float) -> str:
    """In a line: how far it is, and since when. `now`: Unix time."""
    many, took = len(one["steps"]), figures.seconds(max(0.0, now - one["since"]))
    which = f"step {one['step'] + 1} of {many} " if many > 1 else ""
    if one["phase"] == "preparing":
        return f"{which}in preparation for {took}"
    if one["phase"] == "holding":
        return f"{which}in force for {took}"
    whole = figures.seconds(max(0.0, (one["ended_at"] or now) - one["created_at"]))
    return f"{one['phase']} after {whole}, {one['flipped']} of {figures.count(many, 'step')} came into force"


def reason(one: Release) -> str:
    """What it waits for, or why it ended, as a sentence."""
    if one["phase"] == "preparing":
        return f"The gate is shut: {one['reason']}."
    if one["phase"] == "holding":
        return f"The step {one['reason']}." if not one["reason"][:1].isdigit() else f"{one['reason']}."
    if one["phase"] == "done":
        return "All that its steps needed was ready before traffic came."
    return f"{one['reason'][:1].upper()}{one['reason'][1:]}." if one["reason"] else ""


def steps(one: Release) -> list[tuple[str, str, str]]:
    """(state, share of the new version, what it means) of each step, in order."""
    return [(_standing(one, place), _share(one, step), meaning(step)) for place, step in enumerate(one["steps"])]


def _standing(one: Release, place: int) -> str:
    """One of "was in force", "in force", "preparing", "to come", "not reached", "stopped", "aborted", "superseded"."""
    phase, flipped = one["phase"], one["flipped"]
    if place < flipped:
        last = place == flipped - 1
        if last and phase in ("done", *OPEN):
            return "in force"
        return str(phase) if last and place == one["step"] else "was in force"
    if place == one["step"]:
        return str(phase)
    return "to come" if phase in OPEN else "not reached"


def _share(one: Release, step: Pointer) -> str:
    return _percent(shares(step).get(one["target"], 0.0))


def traffic(one: Release, alias: Pointer | None) -> list[tuple[str, float, str]]:
    """("old" or "new", percent, in words) of each version that gets traffic now, the new one last. `alias`: what it means now;
    None: not known."""
    pointer = alias if alias is not None else one["steps"][one["flipped"] - 1] if one["flipped"] else one["back"]
    parts = [
        (
            "new" if number == one["target"] else "old",
            round(100 * share, 2),
            f"version {number}: {_percent(share)} of the runs",
        )
        for number, share in shares(pointer).items()
    ]
    return sorted(parts, reverse=True)


def gate_rows(one: Release) -> list[Row]:
    """What the step needs ready before the route changes: the new version, and what it calls."""
    return [_need(one, need) for need in one["gate"]]


def _need(one: Release, need: Mapping[str, Any]) -> Row:
    ready, wanted = int(need["ready"]), int(need["wanted"])
    enough = ready >= wanted
    waits = cells.mark("preparing") if one["phase"] in OPEN else cells.mark("false", "not ready")
    width = round(100 * min(1.0, ready / max(1, wanted)), 1)
    piece = {"left": 0, "width": width, "tone": "run" if enough else "init", "title": "ready"}
    return cells.row(
        need["version"],
        [
            {"text": need["version"], "sub": "" if _is_own(one, need["version"]) else "on its call path"},
            cells.mark("true", "ready") if enough else waits,
            {
                "track": [piece] if width else [],
                "text": f"{min(ready, wanted):,} of {wanted:,}" + (f", {ready:,} are there" if ready > wanted else ""),
                "sub": need["limit"],
            },
        ],
    )


def _is_own(one: Release, version: str) -> bool:
    return version.rpartition(":")[0] == str(one["function"])


def held(one: Release, now: float) -> tuple[float, str] | None:
    """The part of its hold that has passed, from 0 to 1, and the rest in words; None: it holds not."""
    if one["phase"] != "holding":
        return None
    passed = max(0.0, now - one["since"])
    whole = one["hold_s"] if passed <= one["hold_s"] else PATIENCE * one["hold_s"]
    left = max(0.0, whole - passed)
    why = ": too few requests yet to judge it" if passed > one["hold_s"] else ""
    return min(1.0, passed / max(0.001, whole)), f"Hold: {figures.seconds(left)} of {figures.seconds(whole)} left{why}"


def watch_rows(one: Release) -> list[Row]:
    return [
        cells.row(
            seen["version"],
            [
                {"text": seen["version"], "sub": "the new one" if _number(seen["version"]) == one["target"] else ""},
                f"{seen['requests']:,}",
                _failed(seen),
                figures.milliseconds(seen["p95_ms"] or None),
            ],
        )
        for seen in one["watch"]
    ]


def _failed(seen: Mapping[str, Any]) -> str:
    return f"{seen['errors']:,} ({figures.percent(seen['errors'] / seen['requests'])})" if seen["requests"] else "0"


def facts(one: Release, alias: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(what, what it is). `alias` as GET /v1/functions/{name}/aliases has it; None: not known, or not there any more."""
    if one["phase"] in OPEN:
        words = f"foreglow release abort {one['id']}"
        return [("When it stops", f"traffic goes back to {meaning(one['back'])}, at once; by hand: {words}")]
    found = []
    if one["phase"] in ("stopped", "aborted"):
        found.append(("Traffic", f"went back to {meaning(one['back'])}, at once"))
    if alias is not None:
        found.append(("Now", f"{alias['name']} means {meaning(alias)}"))
        if alias["before"] is not None:
            found.append(("A rollback", f"brings back {meaning(alias['before'])}, at once: foreglow rollback {_words(one)}"))
        if alias["sticky"]:
            found.append(("Sticky by", alias["sticky"]))
    return found


def _words(one: Release) -> str:
    return one["function"] if one["alias"] == "$LATEST" else f"{one['function']} {one['alias']}"


def said(releases: Sequence[Release], matching: int) -> str:
    open_ones = sum(1 for one in releases if one["phase"] in OPEN)
    return f"{figures.count(matching, 'release')}; {open_ones or 'none'} under way" if releases else ""


def _number(version: str) -> int:
    return int(version.rpartition(":")[2])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

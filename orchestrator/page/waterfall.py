"""Runs: a list of them, and one as a waterfall in which each start shows its steps. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.page import cells, figures
from orchestrator.page.cells import Row

STEPS = ("queue", "place", "clone", "code", "net", "init", "run")
INVOCATIONS = 500
SHOWN_MS = 0.05
"""Steps under this are not named: they did not happen, or nobody would see them."""

LIST_COLUMNS = [
    cells.column("Run"),
    cells.column("Started"),
    cells.column("Took", "number"),
    cells.column("Invocations", "number"),
    cells.column("Starts", "wide"),
    cells.column("Status"),
]
COLUMNS = [
    cells.column("Invocation"),
    cells.column("Start"),
    cells.column("Took", "number"),
    cells.column("When", "line"),
]


def list_rows(runs: Sequence[Mapping[str, Any]], chosen: str) -> list[Row]:
    """Newest first; `runs` as GET /v1/runs gives them."""
    return [
        cells.row(
            one["trace_id"],
            [
                cells.choice(one["entry"], one["trace_id"], one["trace_id"][:8]),
                {"at": one["started_at"]},
                figures.milliseconds(one["duration_ms"]),
                f"{one['invocations']:,}",
                ", ".join(f"{many} {kind}" for kind, many in sorted(one["starts"].items())),
                cells.mark(one["status"]),
            ],
            one["trace_id"] == chosen,
        )
        for one in reversed(runs)
    ]


def rows(run: Mapping[str, Any]) -> list[Row]:
    """One row an invocation, callers before callees; at most INVOCATIONS. `run` as GET /v1/runs/{trace_id} gives it."""
    decisions = {one["decision_id"]: one for one in run.get("decisions", ())}
    whole = max(run["duration_ms"], 0.001)
    found: list[Row] = []
    for depth, one in _walk(run["root"]):
        if len(found) == INVOCATIONS:
            break
        decision = decisions.get(one["decision_id"])
        found.append(
            cells.row(
                one["invocation_id"],
                [
                    {"text": one["function"], "sub": _said(one), "depth": depth},
                    cells.mark(one["start"]),
                    figures.milliseconds(one["duration_ms"]),
                    {"track": _pieces(run, one, decision, whole), "text": _steps(one, decision, run["started_at"])},
                ],
            )
        )
    return found


def _walk(one: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield depth, one
    for child in one["children"]:
        yield from _walk(child, depth + 1)


def _said(one: Mapping[str, Any]) -> str:
    where = f"version {one['version']}" + (f" on {one['node']}" if one["node"] else "")
    return where if one["status"] == "ok" else f"{where} · {one['status']} {one['error_type']}".rstrip()


def _pieces(
    run: Mapping[str, Any], one: Mapping[str, Any], decision: Mapping[str, Any] | None, whole: float
) -> list[dict[str, Any]]:
    pieces = []
    if decision is not None and decision["ready_at"]:
        began = max(0.0, (decision["created_at"] - run["started_at"]) * 1000)
        ready = (decision["ready_at"] - run["started_at"]) * 1000
        if ready > began:
            pieces.append(_piece(began, ready - began, whole, "ahead", "prepared ahead"))
    at, end = one["offset_ms"], one["offset_ms"] + one["duration_ms"]
    pieces.append(_piece(at, end - at, whole, "whole", "in all"))
    for step in STEPS:
        took = one["timings_ms"][step]
        if took > SHOWN_MS:
            pieces.append(_piece(at, min(took, max(0.0, end - at)), whole, step, step))
            at += took
    return pieces


def _piece(at: float, took: float, whole: float, tone: str, what: str) -> dict[str, Any]:
    left = min(100.0, max(0.0, 100 * at / whole))
    return {
        "left": round(left, 2),
        "width": round(min(100.0 - left, 100 * took / whole), 2),
        "tone": tone,
        "title": f"{what} {figures.milliseconds(took)}",
    }


def _steps(one: Mapping[str, Any], decision: Mapping[str, Any] | None, began: float) -> str:
    """The same in words: when it was called, what it waited for, what was done ahead."""
    said = [f"at {figures.milliseconds(max(0.0, one['offset_ms']))}"]
    said += [f"{step} {figures.milliseconds(one['timings_ms'][step])}" for step in STEPS if one["timings_ms"][step] > SHOWN_MS]
    if decision is not None and decision["ready_at"] and one["start"] == "prewarmed":
        ready = max(0.0, (decision["ready_at"] - began) * 1000)
        said.append(f"ready since {figures.milliseconds(ready)}, prepared in {figures.milliseconds(decision['start_ms'])}")
    return " · ".join(said)

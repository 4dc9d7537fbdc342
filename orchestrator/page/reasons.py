"""What one decision stands on, and what prewarming comes to per function: facts and rows. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.page import cells, figures
from orchestrator.page.cells import Row

FUNCTION_COLUMNS = [
    cells.column("Function", "wide"),
    cells.column("Predicted", "number"),
    cells.column("Called", "number"),
    cells.column("Invocations", "number"),
    cells.column("Started cold", "number"),
    cells.column("Waited", "number"),
    cells.column("Stood idle", "number"),
    cells.column("Cost of waiting", "number"),
    cells.column("Cost of idling", "number"),
]
ALTERNATIVE_COLUMNS = [cells.column("Weighed"), cells.column("Begun in", "number"), cells.column("Expected cost", "number")]
STEPS = {"queue": "waiting", "clone": "clone", "code": "code", "net": "tunnel", "init": "init"}
QUANTILES = "5 / 25 / 50 / 75 / 95 %"


def tiles(told: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, what it says), out of GET /v1/calibration."""
    functions, spending = told["functions"], told["spending"]
    runs = sum(one["runs"] for one in functions)
    error = "no figure yet" if told["error"] is None else figures.percent(told["error"])
    waited, idle = (sum(one[name] for one in functions) for name in ("waited_s", "idle_s"))
    wait_cost, idle_cost = (sum(one[name] for one in functions) for name in ("wait_cost", "idle_cost"))
    dearer = f", idling {spending['dearer']:.2g} times as dear" if spending["dearer"] > 1.005 else ""
    return [
        ("Calibration error", error, f"predicted against seen, in {figures.count(runs, 'prediction')}"),
        ("Cost of waiting", f"{wait_cost:,.3g}", f"{figures.seconds(waited)} waited for instances"),
        ("Cost of idling", f"{idle_cost:,.3g}", f"{figures.seconds(idle)} prepared and not used yet"),
        (
            "Idle budget",
            figures.seconds(spending["left_s"]),
            f"left; {spending['idle_s_per_busy_s']:g} s for each busy second{dearer}",
        ),
    ]


def function_rows(functions: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [_function(one) for one in functions]


def _function(one: Mapping[str, Any]) -> Row:
    said = [one["resting"]] if one["resting"] else []
    said += ["called much more or less than before"] if one["changing"] else []
    if one["keep_why"]:
        how = "as long as nodes keep any" if one["keep_s"] is None else figures.seconds(one["keep_s"])
        said.append(f"kept idle {how}: {one['keep_why']}")
    return cells.row(
        one["function"],
        [
            {"text": one["function"], "sub": "; ".join(said)},
            _share(one["predicted"]),
            _share(one["observed"]),
            f"{one['invocations']:,}",
            f"{one['cold']:,}",
            figures.seconds(one["waited_s"]),
            figures.seconds(one["idle_s"]),
            f"{one['wait_cost']:,.3g}",
            f"{one['idle_cost']:,.3g}",
        ],
    )


def _share(value: float | None) -> str:
    return "" if value is None else figures.percent(value)


def heading(one: Mapping[str, Any]) -> str:
    which = f" #{one['ordinal']}" if one["ordinal"] > 1 else ""
    return f"A standby for {', '.join(one['covers'])}" if one["level"] == "standby" else f"{one['function']}{which}"


def facts(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, what it is) of a decision, as GET /v1/decisions has it."""
    evidence = one["evidence"]
    begun = f"begun {figures.milliseconds(one['start_in_ms'])} after it was decided" if one["start_in_ms"] else "begun at once"
    seen = f"{evidence['source']}, {figures.count(evidence['samples'], 'trace')}"
    found = [
        ("Why", one["reason"]),
        ("Outcome", one["outcome"] + (f": {one['detail']}" if one["detail"] else "")),
        ("Decided", f"for {one['trigger']} {one['entry']}, on {one['node']}, {begun}"),
        ("Probability", f"{figures.percent(evidence['concurrent'])} ({seen})"),
    ]
    if evidence["lead_quantiles_ms"]:
        leads = " / ".join(figures.milliseconds(value) for value in evidence["lead_quantiles_ms"])
        idles = f"{figures.milliseconds(evidence['idle_ms'])} of idling expected"
        found += [
            (f"Needed in ({QUANTILES})", leads),
            ("Ready after", figures.milliseconds(evidence["start_ms"])),
            ("Expected cost", f"{evidence['wait_cost']:.3g} of waiting, {evidence['idle_cost']:.3g} of idling ({idles})"),
            ("Against never", f"{evidence['price']:+.3g}; does not pay under {figures.percent(evidence['kappa'])}"),
        ]
    if one["ready_at"]:
        became = f"; became {one['became']}" if one["became"] else ""
        took = f"after {figures.milliseconds(one['start_ms'])}, from {one['source'] or 'what was there'}"
        found.append(("Ready", f"{took}; idle for {figures.milliseconds(one['idle_ms'])}{became}"))
        steps = one.get("steps_ms", {})
        told = [f"{named} {figures.milliseconds(steps[step])}" for step, named in STEPS.items() if steps.get(step)]
        if told:
            found.append(("Its steps", ", ".join(told)))
    if evidence["trace_ids"]:
        found.append(("Seen in", ", ".join(evidence["trace_ids"])))
    return found


def alternative_rows(evidence: Mapping[str, Any]) -> list[Row]:
    return [
        cells.row(
            f"{place} {one['what']}",
            [
                one["what"],
                "never" if one["start_in_ms"] is None else figures.milliseconds(one["start_in_ms"]),
                f"{one['cost']:.3g}",
            ],
        )
        for place, one in enumerate(evidence["alternatives"])
    ]

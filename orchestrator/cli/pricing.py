"""Why a prewarm was decided, how predictions held and what they cost, and by which policy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder

if TYPE_CHECKING:
    from rich.table import Table

STEPS = {"queue": "waiting", "clone": "clone", "code": "code", "net": "tunnel", "init": "init"}
POLICIES = ("path", "priced", "off")


def why(
    decision: Annotated[str, typer.Argument(metavar="DECISION", help="Its id, or a function: the newest about it.")],
    state: State = None,
    json: Json = False,
) -> None:
    """Show all that one prewarm decision stands on, and how it ended."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        newest = client.get("/v1/decisions", function=decision, limit=1)["decisions"]
        document = newest[0] if newest else client.get(f"/v1/decisions/{segment(decision)}")
    if json:
        show.as_json(document)
        return
    out = show.console()
    for line in decision_lines(document):
        out.print(line)
    if document["evidence"]["alternatives"]:
        out.print(alternatives_table(document["evidence"]))


def decision_lines(one: Mapping[str, Any]) -> list[str]:
    """What it was, why, and how it ended."""
    from orchestrator.cli import show

    evidence = one["evidence"]
    what = f"[bold]{show.plain(one['function'])}[/]:{one['version']}" + (f" #{one['ordinal']}" if one["ordinal"] > 1 else "")
    if one["level"] == "standby":
        what = "a standby for " + ", ".join(f"[bold]{show.plain(name)}[/]" for name in one["covers"])
    begun = f", begun {show.ms(one['start_in_ms'])} ms later" if one["start_in_ms"] else ""
    lines = [
        f"{what}  {show.outcome_text(one['outcome'])}  [dim]{show.plain(one['detail'])}[/]",
        show.plain(one["reason"]),
        f"decided {show.clock(one['created_at'])} for {one['trigger']} {show.plain(one['entry'])}, on {show.plain(one['node'])}"
        + begun,
        f"probability {show.percent(evidence['concurrent'])} ({evidence['source']}, {evidence['samples']} traces)",
    ]
    if evidence["lead_quantiles_ms"]:
        quantiles = " / ".join(show.ms(value) for value in evidence["lead_quantiles_ms"])
        lines.append(
            f"needed in {quantiles} ms (5 / 25 / 50 / 75 / 95 %), ready {show.ms(evidence['start_ms'])} ms after it is begun"
        )
        lines.append(
            f"price: waiting {evidence['wait_cost']:.3g}, idling {evidence['idle_cost']:.3g} "
            f"({show.ms(evidence['idle_ms'])} ms expected), against never {evidence['price']:+.3g}; "
            f"does not pay under {show.percent(evidence['kappa'])}"
        )
    if one["ready_at"]:
        became = f", became {show.plain(one['became'])}" if one["became"] else ""
        lines.append(
            f"ready after {show.ms(one['start_ms'])} ms ({one['source']}), idle for {show.ms(one['idle_ms'])} ms{became}"
        )
        steps = one.get("steps_ms", {})
        told = [f"{named} {show.ms(steps[step])} ms" for step, named in STEPS.items() if steps.get(step)]
        if told:
            lines.append(f"its steps, side by side where they can be: {', '.join(told)}")
    if evidence["trace_ids"]:
        lines.append("seen in " + ", ".join(show.plain(trace) for trace in evidence["trace_ids"]))
    return lines


def alternatives_table(evidence: Mapping[str, Any]) -> "Table":
    from orchestrator.cli import show

    rows = [(show.plain(one["what"]), show.ms(one["start_in_ms"]), f"{one['cost']:.3g}") for one in evidence["alternatives"]]
    return show.table("weighed, the cheapest first", ("what", "begun in ms>", "expected cost>"), rows)


def calibration(state: State = None, json: Json = False) -> None:
    """Show how predictions held, what waiting and idling cost per function, and what may still be spent."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        document = client.get("/v1/calibration")
    if json:
        show.as_json(document)
        return
    out = show.console()
    prices, spending = document["prices"], document["spending"]
    out.print(f"policy [bold]{document['policy']}[/], calibration error {_share(document['error'])}")
    out.print(f"prices: {prices['idle_gb_s']:g} for a GB idle for a second, {prices['late_s']:g} for a second late")
    out.print(
        f"budget: {spending['idle_s_per_busy_s']:g} s idle per busy second, {spending['left_s']:.1f} s left; "
        f"{spending['spent_s']:.1f} s idle for {spending['busy_s']:.1f} s busy, idling {spending['dearer']:.2g} times as dear"
    )
    if document["functions"]:
        out.print(reckoning_table(document["functions"]))
    for one in document["functions"]:
        if one["resting"]:
            out.print(f"[yellow]{show.plain(one['function'])}[/] rests: {show.plain(one['resting'])}")
    for one in document["functions"]:
        if one["keep_why"]:
            out.print(f"[bold]{show.plain(one['function'])}[/]: {show.plain(kept(one))}")


def kept(one: Mapping[str, Any]) -> str:
    """How long idle instances of a function are kept, and why. `one` as GET /v1/calibration tells of it."""
    if one["keep_s"] is None:
        how = "idle instances are kept as long as nodes keep any"
    elif one["keep_s"] <= 0:
        how = "idle instances are not kept"
    else:
        how = f"idle instances are kept {one['keep_s']:.3g} s"
    return f"{how}: {one['keep_why']}" if one["keep_why"] else how


def reckoning_table(functions: "list[dict[str, Any]]") -> "Table":
    from orchestrator.cli import show

    rows = [
        (
            f"[bold]{show.plain(one['function'])}[/]" + (" [yellow]changing[/]" if one["changing"] else ""),
            one["runs"] or "",
            _share(one["predicted"]),
            _share(one["observed"]),
            one["invocations"],
            one["cold"],
            f"{one['waited_s']:.2f}",
            f"{one['idle_s']:.2f}",
            f"{one['wait_cost']:.3g}",
            f"{one['idle_cost']:.3g}",
        )
        for one in functions
    ]
    columns = (
        "function",
        "runs>",
        "predicted>",
        "called>",
        "invoked>",
        "cold>",
        "waited s>",
        "idle s>",
        "wait cost>",
        "idle cost>",
    )
    return show.table("", columns, rows)


def _share(value: float | None) -> str:
    from orchestrator.cli import show

    return "none yet" if value is None else show.percent(value)


def prewarm(
    policy: Annotated[str | None, typer.Argument(metavar="[POLICY]", help="path, priced or off; without it: what holds.")] = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Show or set by which policy this tenant's functions are prepared ahead."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    if policy is not None and policy not in POLICIES:
        raise Failure(f"POLICY: {policy!r} is not one of {', '.join(POLICIES)}")
    with Client(state_folder(state)) as client:
        answer = client.get("/v1/prewarm") if policy is None else client.put("/v1/prewarm", {"policy": policy})
    if json:
        show.as_json(answer)
    else:
        show.console().print(answer["policy"])

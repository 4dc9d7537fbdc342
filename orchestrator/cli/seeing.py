"""See what the platform knows and does: graph, plan, decisions, runs."""

import json as jsonlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.cli.client import Client


def graph(
    form: Annotated[str, typer.Option("--format", help="table, dot or mermaid.")] = "table",
    state: State = None,
    json: Json = False,
) -> None:
    """Show who calls whom: learned from runs and traces, or declared."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    if form not in ("table", "dot", "mermaid"):
        raise Failure(f"--format: {form!r} is not one of table, dot, mermaid")
    with Client(state_folder(state)) as client:
        if form != "table" and not json:
            print(client.text("/v1/graph", format=form).rstrip("\n"))
            return
        document = client.get("/v1/graph", format="json")
    if json:
        show.as_json(document)
    else:
        show.console().print(graph_table(document["edges"]))


def graph_table(edges: Sequence[Mapping[str, Any]], title: str = "") -> "Table":
    from orchestrator.cli import show

    rows = [
        (
            show.plain(edge["caller"]),
            show.plain(edge["callee"]),
            show.percent(edge["probability"]),
            f"{edge['fan_out']:.1f}",
            edge["traces"],
            edge["source"],
            show.ms(None if edge["offset_p50_s"] is None else edge["offset_p50_s"] * 1000),
        )
        for edge in edges
    ]
    return show.table(title, ("caller", "callee", "called>", "fan-out>", "traces>", "source", "after ms>"), rows)


def plan(name: Annotated[str, typer.Argument(metavar="NAME")], state: State = None, json: Json = False) -> None:
    """Show what would be prepared if NAME were invoked now, and why."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        document = client.get(f"/v1/plans/{segment(name)}")
    if json:
        show.as_json(document)
    else:
        print_plan(document)


def print_plan(document: Mapping[str, Any]) -> None:
    from orchestrator.cli import show

    out = show.console()
    out.print(f"plan for [bold]{document['entry']}[/], policy {document['policy']}, trigger {document['trigger']}")
    if document["decisions"]:
        out.print(plan_table(document["decisions"]))
    else:
        out.print("nothing to prepare")
    if document["ready"]:
        out.print("ready already: " + ", ".join(show.plain(name) for name in document["ready"]))
    for one in document["skipped"]:
        out.print(f"left out: {show.plain(one['function'])}, reach {show.percent(one['reach'])}: {show.plain(one['why'])}")


def plan_table(decisions: Sequence[Mapping[str, Any]]) -> "Table":
    from orchestrator.cli import show

    rows = [
        (
            (
                "a standby for " + show.plain(", ".join(one["covers"]))
                if one["level"] == "standby"
                else f"[bold]{show.plain(one['function'])}[/]"
            )
            + (f" #{one['ordinal']}" if one["ordinal"] > 1 else ""),
            show.ms(one["start_in_ms"]),
            show.percent(one["evidence"]["reach"]),
            one["evidence"]["samples"],
            show.plain(one["reason"]),
        )
        for one in decisions
    ]
    return show.table("", ("prepare", "in ms>", "reach>", "traces>", "why"), rows)


def decisions(
    function: Annotated[str | None, typer.Option(help="Only about this function.")] = None,
    run: Annotated[str | None, typer.Option(help="Only of this run (trace id).")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest last.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as they are made and end; Ctrl-C stops.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Show prewarm decisions: reason, evidence, outcome."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        if follow:
            _follow(client, function, run, json)
            return
        answer = client.get("/v1/decisions", function=function, run=run, limit=limit)
    if json:
        show.as_json(answer)
    else:
        show.console().print(decisions_table(answer["decisions"]))


def decisions_table(found: Sequence[Mapping[str, Any]], one_run: bool = False) -> "Table":
    """`one_run`: they are all of the same run, so that when and for which entry go without saying."""
    from orchestrator.cli import show

    rows = []
    for one in found:
        why = show.plain(one["reason"])
        if one["outcome"] in ("cancelled", "wasted") and one["detail"]:
            why += f" [dim]({show.plain(one['detail'])})[/]"
        function = f"[bold]{show.plain(one['function'])}[/]" + (f" #{one['ordinal']}" if one["ordinal"] > 1 else "")
        if one["level"] == "standby":
            function = f"[bold]{len(one['covers'])} branches[/]"
        took = show.ms(one["start_ms"]) if one["start_ms"] else ""
        said = (function, show.outcome_text(one["outcome"]), took, why)
        rows.append(said if one_run else (show.clock(one["created_at"]), show.plain(one["entry"]), *said, one["decision_id"]))
    columns = ("function", "outcome", "took ms>", "why")
    return show.table("", columns if one_run else ("at", "entry", *columns, "id"), rows)


def _follow(client: "Client", function: str | None, run: str | None, json: bool) -> None:
    from orchestrator.cli import show

    out = show.console()
    chosen = {name: value for name, value in (("function", function), ("run", run)) if value}
    try:
        for one in client.events("/v1/decisions/stream", **chosen):
            if json:
                print(jsonlib.dumps(one), flush=True)
            else:
                out.print(
                    f"{show.clock(one['created_at'])}  [bold]{show.plain(one['function'])}[/]  "
                    f"{show.outcome_text(one['outcome'])}  {show.plain(one['reason'])}  [dim]{show.plain(one['detail'])}[/]"
                )
    except KeyboardInterrupt:
        return


def runs(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Trace id: that run as a tree.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest last.")] = 20,
    state: State = None,
    json: Json = False,
) -> None:
    """List runs, or show one as a tree with start kinds and milliseconds."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        document = client.get(f"/v1/runs/{segment(run)}") if run else client.get("/v1/runs", limit=limit)
    if json:
        show.as_json(document)
        return
    out = show.console()
    if run:
        out.print(show.run_tree(document))
        if document.get("decisions"):
            out.print(decisions_table(document["decisions"], one_run=True))
        return
    rows = [
        (
            one["trace_id"],
            f"[bold]{show.plain(one['entry'])}[/]",
            show.ago(one["started_at"]),
            show.ms(one["duration_ms"]),
            one["invocations"],
            ", ".join(f"{count} {show.start_text(kind)}" for kind, count in sorted(one["starts"].items())),
            one["status"] if one["status"] == "ok" else f"[red]{one['status']}[/]",
        )
        for one in document["runs"]
    ]
    out.print(show.table("", ("run", "entry", "when", "ms>", "invocations>", "starts", "status"), rows))

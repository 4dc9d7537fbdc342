"""`foreglow scaling`: how many instances are wanted, ready and busy, who decided, and why."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import Json, State, state_folder

if TYPE_CHECKING:
    from rich.table import Table


def scaling(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A function: its terms, and each change.")] = None,
    limit: Annotated[int, typer.Option(help="How many changes of each version, newest last.")] = 20,
    state: State = None,
    json: Json = False,
) -> None:
    """Show instances wanted, ready and busy of each version, the term that decided, and its reason."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        told = client.get(f"/v1/functions/{segment(name)}/scaling") if name else client.get("/v1/scaling")
    if json:
        show.as_json(told)
        return
    out = show.console()
    out.print(now_table(told["versions"], f"policy {told['policy']}"))
    if not name:
        return
    for one in told["versions"]:
        if one["terms"]:
            out.print(terms_table(one))
        if one["history"]:
            out.print(changes_table(one, limit))


def now_table(versions: Sequence[Mapping[str, Any]], title: str = "") -> "Table":
    from orchestrator.cli import show

    rows = [
        (
            f"[bold]{show.plain(one['version'])}[/]",
            one["wanted"],
            one["ready"],
            one["busy"],
            one["coming"] or "",
            f"[red]{one['short']}[/]" if one["short"] else "",
            one["by"],
            _why(one["reason"], one["limit"]),
        )
        for one in versions
    ]
    columns = ("version", "wanted>", "ready>", "busy>", "coming>", "no room>", "decided by", "why")
    return show.table(title, columns, rows)


def terms_table(one: Mapping[str, Any]) -> "Table":
    from orchestrator.cli import show

    rows = [
        (
            f"[bold]{term['source']}[/]" if term["source"] == one["by"] else term["source"],
            term["count"],
            show.plain(term["reason"]),
        )
        for term in one["terms"]
    ]
    return show.table(f"{show.plain(one['version'])}: what each policy asks for", ("term", "asks for>", "why"), rows)


def changes_table(one: Mapping[str, Any], limit: int) -> "Table":
    """Newest last."""
    from orchestrator.cli import show

    rows = [
        (
            show.clock(point["at"]),
            point["wanted"],
            point["ready"],
            point["busy"],
            point["by"],
            _why(point["reason"], point["limit"]),
        )
        for point in one["history"][-limit:]
    ]
    columns = ("at", "wanted>", "ready>", "busy>", "decided by", "why")
    return show.table(f"{show.plain(one['version'])}: changes", columns, rows)


def _why(reason: str, limit: str) -> str:
    from orchestrator.cli import show

    return show.plain(reason) + (f" [dim]({show.plain(limit)})[/]" if limit else "")

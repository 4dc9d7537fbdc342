"""What the control flow has not finished, and another try for what it gave up."""

from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder

PAGE = 1000

events = typer.Typer(help="Show what the control flow has not finished, or try again what it gave up.")


@events.callback(invoke_without_command=True)
def list_events(
    context: typer.Context,
    parked: Annotated[bool, typer.Option("--parked", help="Only what was given up after too many tries.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Show what the control flow has not finished, oldest first."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    if context.invoked_subcommand is not None:
        return
    found: list[dict[str, Any]] = []
    with Client(state_folder(state)) as client:
        while page := client.get("/v1/events", parked=parked, after=found[-1]["id"] if found else 0, limit=PAGE)["events"]:
            found += page
    if json:
        show.as_json({"events": found})
        return
    rows = [
        (
            one["id"],
            one["kind"],
            show.plain(one["subject"]),
            one["module"],
            one["tries"],
            show.ago(one["created"]),
            _state(one),
            show.plain(one["reason"]),
        )
        for one in found
    ]
    show.console().print(show.table("", ("event>", "kind", "of", "module", "tries>", "since", "state", "why"), rows))


@events.command("retry")
def retry(
    event: Annotated[int | None, typer.Argument(metavar="ID", help="Number of a parked event.", min=1)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every parked event.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Try a parked event again, or all of them."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    if (event is None) is not everything:
        raise Failure("name one event, or --all; `foreglow events --parked` lists them")
    with Client(state_folder(state)) as client:
        answer = client.post("/v1/events/retry" if event is None else f"/v1/events/{event}/retry")
    if json:
        show.as_json(answer)
    else:
        print(f"tried again: {', '.join(map(str, answer['retried'])) or 'none was parked'}")


def _state(one: dict[str, Any]) -> str:
    if one["parked"] is not None:
        return "[red]parked[/]"
    return "waits for others" if one["due"] is None else "open"

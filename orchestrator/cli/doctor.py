"""`foreglow doctor`: what is wrong here, and what to do."""

import sys
from typing import Annotated

import typer

from orchestrator.cli.options import Json, State, settings_with


def doctor(
    state: State = None,
    json: Json = False,
    host: Annotated[str | None, typer.Option(help="Address the three listeners would bind.")] = None,
    functions_port: Annotated[int | None, typer.Option(help="Invocations (8700).")] = None,
    control_port: Annotated[int | None, typer.Option(help="Management API (8701).")] = None,
    otlp_port: Annotated[int | None, typer.Option(help="OTLP/HTTP traces (4318).")] = None,
) -> None:
    """Look at this machine and installation; changes nothing. Ends with 1 when something fails."""
    settings = settings_with(
        state=state, host=host, functions_port=functions_port, control_port=control_port, otlp_port=otlp_port
    )
    from orchestrator.cli import show
    from orchestrator.doctor.examination import examine
    from orchestrator.doctor.findings import Finding, Level

    colours = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
    found: list[Finding] = []
    for finding in examine(settings):
        found.append(finding)
        if not json:
            console = show.console()
            console.print(
                f"[{colours[finding.level]}]{finding.level:<5}[/]{finding.probe:<16} {show.plain(finding.found)}", soft_wrap=True
            )
            if finding.advice:
                console.print(f"{'':<22}-> {show.plain(finding.advice)}", soft_wrap=True)
    if json:
        import msgspec

        show.as_json([msgspec.to_builtins(one) for one in found])
    if any(one.level is Level.FAIL for one in found):
        sys.exit(1)

"""`foreglow up`, and each process alone."""

from typing import Annotated

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import State, settings_with


def up(
    state: State = None,
    host: Annotated[str | None, typer.Option(help="Address the three listeners bind.")] = None,
    functions_port: Annotated[int | None, typer.Option(help="Invocations (8700); 0: any free one.")] = None,
    control_port: Annotated[int | None, typer.Option(help="Management API (8701); 0: any free one.")] = None,
    otlp_port: Annotated[int | None, typer.Option(help="OTLP/HTTP traces (4318); 0: any free one.")] = None,
    prewarm: Annotated[str | None, typer.Option(help="path (default) or off.")] = None,
    driver: Annotated[str | None, typer.Option(help="process.")] = None,
    allow_no_isolation: Annotated[bool | None, typer.Option("--allow-no-isolation", help="Run without a sandbox.")] = None,
    standbys: Annotated[int | None, typer.Option(help="Waiting clones per tenant and memory shape.")] = None,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops it."""
    settings = settings_with(
        state=state,
        host=host,
        functions_port=functions_port,
        control_port=control_port,
        otlp_port=otlp_port,
        prewarm=prewarm,
        driver=driver,
        allow_no_isolation=allow_no_isolation,
        standbys=standbys,
    )
    from orchestrator import preflight, supervisor, valkey

    try:
        supervisor.run(settings, announce=lambda line: print(line, flush=True))
    except (preflight.NotPossible, supervisor.StartFailed, valkey.ValkeyMissing) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"cannot run: {error.filename or settings.state}: {error.strerror or error}") from error


def control(state: State = None) -> None:
    """Run the management API alone."""
    settings = settings_with(state=state)
    _log("control", settings.log_level)
    from orchestrator.control.app import run

    run(settings)


def flow(state: State = None) -> None:
    """Run the control-flow modules alone."""
    settings = settings_with(state=state)
    _log("flow", settings.log_level)
    from orchestrator.flow import run

    run(settings)


def gateway(state: State = None) -> None:
    """Run the gateway alone."""
    settings = settings_with(state=state)
    _log("gateway", settings.log_level)
    from orchestrator.gateway import run

    run(settings)


def planner(state: State = None) -> None:
    """Run the planner alone."""
    settings = settings_with(state=state)
    _log("planner", settings.log_level)
    from orchestrator.planner import run

    run(settings)


def node(state: State = None) -> None:
    """Run the node alone."""
    settings = settings_with(state=state)
    _log("node", settings.log_level)
    from orchestrator.node import run

    run(settings)


def _log(process: str, level: str) -> None:
    from orchestrator.logging import configure

    try:
        configure(process, level)
    except ValueError as error:
        raise Failure(str(error)) from error

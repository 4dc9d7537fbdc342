"""`foreglow up`, and each process alone."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import State, settings_with

if TYPE_CHECKING:
    from orchestrator.settings import Settings


def up(
    state: State = None,
    host: Annotated[str | None, typer.Option(help="Address the three listeners bind.")] = None,
    functions_port: Annotated[int | None, typer.Option(help="Invocations (8700); 0: any free one.")] = None,
    control_port: Annotated[int | None, typer.Option(help="Management API (8701); 0: any free one.")] = None,
    otlp_port: Annotated[int | None, typer.Option(help="OTLP/HTTP traces (4318); 0: any free one.")] = None,
    join_port: Annotated[int | None, typer.Option(help="Where processes of other hosts join; 0 (default): nowhere.")] = None,
    prewarm: Annotated[str | None, typer.Option(help="path (default), priced or off.")] = None,
    driver: Annotated[str | None, typer.Option(help="process (default) or microvm.")] = None,
    accel: Annotated[str | None, typer.Option(help="Of microVMs: auto (default), tcg or kvm.")] = None,
    allow_no_isolation: Annotated[bool | None, typer.Option("--allow-no-isolation", help="Run even without isolation.")] = None,
    standbys: Annotated[int | None, typer.Option(help="Waiting clones per tenant and memory shape.")] = None,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops it."""
    settings = settings_with(
        state=state,
        host=host,
        functions_port=functions_port,
        control_port=control_port,
        otlp_port=otlp_port,
        join_port=join_port,
        prewarm=prewarm,
        driver=driver,
        accel=accel,
        allow_no_isolation=allow_no_isolation,
        standbys=standbys,
    )
    from orchestrator import guest_image, preflight, supervisor, valkey

    try:
        guest_image.ensure(settings, _say)
        supervisor.run(settings, announce=_say)
    except (preflight.NotPossible, supervisor.StartFailed, valkey.ValkeyMissing) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"cannot run: {error.filename or settings.state}: {error.strerror or error}") from error


def _say(line: str) -> None:
    """Whoever read what we say may be gone: that stops nothing."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def control(
    state: State = None,
    join_port: Annotated[int | None, typer.Option(help="Where processes of other hosts join; 0 (default): nowhere.")] = None,
) -> None:
    """Run the management API alone."""
    settings = alone("control", state, join_port=join_port)
    from orchestrator.control.app import run

    with said():
        run(settings)


def flow(state: State = None) -> None:
    """Run the control-flow modules alone."""
    settings = alone("flow", state)
    from orchestrator.flow import run

    run(settings)


def gateway(state: State = None) -> None:
    """Run the gateway alone."""
    settings = alone("gateway", state)
    from orchestrator.gateway import run

    with said():
        run(settings)


def planner(state: State = None) -> None:
    """Run the planner alone."""
    settings = alone("planner", state)
    from orchestrator.planner import run

    with said():
        run(settings)


def node(
    state: State = None,
    driver: Annotated[str | None, typer.Option(help="process (default) or microvm.")] = None,
    accel: Annotated[str | None, typer.Option(help="Of microVMs: auto (default), tcg or kvm.")] = None,
) -> None:
    """Run the node alone."""
    settings = alone("node", state, driver=driver, accel=accel)
    from orchestrator import guest_image
    from orchestrator.node import run

    with said():
        guest_image.ensure(settings, _say)
        run(settings)


def zone_cache(state: State = None) -> None:
    """Run the second code tier of a zone."""
    settings = alone("zone-cache", state)
    from orchestrator.zone_cache import run

    with said():
        run(settings)


def page(state: State = None) -> None:
    """Run the live page alone, behind control's listener."""
    settings = alone("page", state)
    from orchestrator.ops.page import page_operations
    from orchestrator.page import run

    run(settings, page_operations)


def alone(process: str, state: Path | None, **chosen: int | str | None) -> "Settings":
    """Settings, logs and the two folders of a process that nobody else prepared the ground for."""
    from orchestrator import preflight, remains
    from orchestrator.logging import configure
    from orchestrator.membership import NotJoined, with_member

    # Before a server takes the signals over, and after it has raised them again: an end like any other, with every `finally`.
    signal.signal(signal.SIGTERM, _end)
    settings = settings_with(state=state, **chosen)
    try:
        configure(process, settings.log_level)
        preflight.make_state_folder(settings.state)
        preflight.make_runtime_folder(settings.runtime_folder)
        remains.check_keys(settings)
        if process == "control":
            remains.check_database(settings)
        return with_member(settings)
    except (ValueError, preflight.NotPossible, NotJoined) as error:
        raise Failure(str(error)) from error


@contextlib.contextmanager
def said() -> Iterator[None]:
    """What a process cannot be, in one line. Nothing may be loaded here before a node has left its first namespace."""
    try:
        yield
    except Exception as error:
        from orchestrator.joining import JoinFailed
        from orchestrator.membership import NotJoined
        from orchestrator.planner.state import AlreadyRuns
        from orchestrator.preflight import NotPossible

        if isinstance(error, NotJoined | JoinFailed | AlreadyRuns | NotPossible):
            raise Failure(str(error)) from error
        raise


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)

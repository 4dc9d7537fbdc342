"""What a planner knows, on disk: written aside and renamed, so that kill -9 leaves the last whole one."""

import os
from pathlib import Path

import msgspec
import structlog

from orchestrator.planner.log import LogEntry
from tracing.records import InvocationRecord

FORMAT = 1

log = structlog.get_logger(__name__)


class PlannerState(msgspec.Struct, frozen=True):
    """`graph` is what graph.snapshot made of the call graph."""

    format: int
    graph: bytes
    decisions: list[LogEntry] = []
    runs: dict[str, list[InvocationRecord]] = {}
    policies: dict[str, str] = {}


def save(path: Path, state: PlannerState) -> None:
    """Raises OSError; the old file then stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    try:
        with aside.open("wb") as file:
            file.write(msgspec.msgpack.encode(state))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def load(path: Path) -> PlannerState | None:
    """None when there is none, or none that can be read: a planner can start from nothing. The file is kept aside."""
    try:
        state = msgspec.msgpack.decode(path.read_bytes(), type=PlannerState)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        log.error("planner.state_unreadable", path=str(path), error=str(error), kept=set_aside(path))
        return None
    if state.format != FORMAT:
        log.error("planner.state_format", path=str(path), found=state.format, known=FORMAT, kept=set_aside(path))
        return None
    return state


def set_aside(path: Path) -> str:
    """Moves a file that cannot be read where the next save does not replace it. Its new path, empty when that failed."""
    kept = path.with_name(f"{path.name}.unreadable")
    try:
        path.replace(kept)
    except OSError:
        return ""
    return str(kept)

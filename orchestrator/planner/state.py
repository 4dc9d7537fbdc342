"""What a planner knows, on disk: written aside and renamed, so that kill -9 leaves the last whole one."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from orchestrator.planner.learned import Learned
from orchestrator.planner.log import LogEntry
from tracing.records import InvocationRecord

FORMAT = 1

log = structlog.get_logger(__name__)


class AlreadyRuns(Exception):
    """Another planner has this state folder."""


class PlannerState(msgspec.Struct, frozen=True):
    """`graph` is what graph.snapshot made of the call graph. `names`: per tenant, observed functions to deployed ones."""

    format: int
    graph: bytes
    decisions: list[LogEntry] = []
    runs: dict[str, list[InvocationRecord]] = {}
    policies: dict[str, str] = {}
    names: dict[str, dict[str, str]] = {}
    learned: Learned = msgspec.field(default_factory=Learned)


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


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One planner per state folder: it takes its own lease over at once, so there must not be two of the name. Raises
    AlreadyRuns, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRuns(f"another planner already runs on {path.parent.parent}; give each its own --state") from error
        yield
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> str:
    """Moves a file that cannot be read where the next save does not replace it. Its new path, empty when that failed."""
    kept = path.with_name(f"{path.name}.unreadable")
    try:
        path.replace(kept)
    except OSError:
        return ""
    return str(kept)

"""Teach the platform from recorded traces of other systems."""

import gzip
import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder

MAX_TRACE_BYTES = 64 << 20  # what control takes, with room for the request around it
IMPORT_TIMEOUT_S = 300.0

traces = typer.Typer(help="Traces of other systems.", no_args_is_help=True)


@traces.command("import")
def import_traces(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="CSV, or CSV in gzip.")],
    names: Annotated[Path | None, typer.Option("--map", help="JSON: observed name -> deployed name.")] = None,
    no_decay: Annotated[bool, typer.Option("--no-decay", help="Old traces count as much as new ones.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Learn the call graph from recorded traces."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    renamed = _names(names)
    answers = []
    with Client(state_folder(state)) as client:
        for file in files:
            document = {"format": "csv", "text": _trace_text(file), "map": renamed, "decay": not no_decay}
            answers.append({"file": str(file), **client.post("/v1/traces/import", document, IMPORT_TIMEOUT_S)})
            if not json:
                print(f"{file.name}: {_counts(answers[-1])}")
    if json:
        show.as_json(answers)


def _counts(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in answer.items() if isinstance(value, int) and value)


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        names = jsonlib.loads(path.read_text())
    except OSError as error:
        raise Failure(f"--map: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"--map: {path} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise Failure(f"--map: {path} must be one JSON object of texts")
    return names


def _trace_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as content:
            found = content.read(MAX_TRACE_BYTES + 1)
        if len(found) > MAX_TRACE_BYTES:
            raise Failure(f"{path}: over {MAX_TRACE_BYTES >> 20} MB; split it")
        return found.decode()
    except (OSError, EOFError) as error:
        raise Failure(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not UTF-8 text") from error

"""Teach the platform from traces of other systems, see what became of them, and say which functions they speak of."""

import json as jsonlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder

if TYPE_CHECKING:
    from orchestrator.cli.client import Client
    from tracing.gathering import Gathering

IMPORT_TIMEOUT_S = 300.0
SPANS_AT_ONCE = 10_000
"""In one request, whole traces only. About 3 MB."""

MAX_MAP = 16 << 20  # bytes of --map
MORE = 1000  # names asked for at once

traces = typer.Typer(help="Traces of other systems.", no_args_is_help=True)


@traces.command("import")
def import_traces(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="OTLP JSON, Jaeger JSON, Zipkin v2 JSON, X-Ray JSON or CSV; plain or in gzip."),
    ],
    form: Annotated[
        str, typer.Option("--format", help="otlp, jaeger, zipkin, xray, csv or spans; found out from each file by itself.")
    ] = "auto",
    names: Annotated[Path | None, typer.Option("--map", help="JSON: observed name -> deployed name.")] = None,
    no_decay: Annotated[bool, typer.Option("--no-decay", help="Old traces count as much as new ones.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Learn the call graph from recorded traces. A trace may be spread over the files."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client
    from tracing.gathering import Gathering

    renamed = _names(names)
    with Client(state_folder(state)) as client, Gathering() as gathering, _progress(quiet=json) as step:
        told = _read(files, "" if form == "auto" else form, gathering, step)
        answer = _send(client, gathering, {"map": renamed, "decay": not no_decay}, step)
    left_out = Counter(answer.pop("reasons"))
    for file in told:
        left_out.update(file["left_out"])
    left_out.update(gathering.left_out)
    document = {**answer, "left_out": left_out.total(), "reasons": dict(left_out), "files": told}
    if json:
        show.as_json(document)
        return
    for file in told:
        print(f"{file['file']}: {_counts({'spans': file['spans'], **file['left_out']}) or 'no spans'}")
    print(f"taught: {_counts({name: answer[name] for name in ('traces', 'calls', 'spans')}) or 'nothing'}")
    if left_out:
        print(f"left out: {_counts(left_out)}")


@traces.command("status")
def traces_status(state: State = None, json: Json = False) -> None:
    """What came of spans from elsewhere, sent or imported, and why some were not used."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        intake = client.get("/v1/traces")
    if json:
        show.as_json(intake)
        return
    print(f"since the planner started: {intake['spans']} spans, {intake['traces']} traces; {intake['waiting_spans']} spans wait")
    if intake["early"]:
        print(f"complete before their time, to make room: {intake['early']} traces without a root")
    if intake["left_out"]:
        rows = sorted(intake["left_out"].items(), key=lambda row: -row[1])
        show.console().print(show.table("", ("left out because", "spans>"), rows))


@traces.command("names")
def list_names(state: State = None, json: Json = False) -> None:
    """Functions known from traces that are not deployed, and which deployed ones they were said to be."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    found: list[dict[str, Any]] = []
    with Client(state_folder(state)) as client:
        while True:
            page = client.get("/v1/traces/names", limit=MORE, after=found[-1]["observed"] if found else None)["names"]
            found += page
            if len(page) < MORE:
                break
    if json:
        show.as_json(found)
        return
    rows = [(show.plain(one["observed"]), show.plain(one["function"] or ""), _standing(one)) for one in found]
    show.console().print(show.table("", ("observed", "is", ""), rows))


@traces.command("name")
def give_name(
    observed: Annotated[str, typer.Argument(help="As traces name it: service/entry operation.")],
    function: Annotated[str | None, typer.Argument(help="The deployed function it is; nothing: take the name away.")] = None,
    state: State = None,
) -> None:
    """Say which deployed function an observed one is. It counts for traces that come, or are imported, from now on."""
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        client.put("/v1/traces/names", {"map": {observed: function}})
    print(f"{observed} is {function}" if function else f"{observed} is nothing deployed any more")


def _standing(one: Mapping[str, Any]) -> str:
    if one["function"] is None:
        return ""
    return "deployed" if one["deployed"] else "[yellow]not deployed[/]"


class _Reading:
    """How far a file was read."""

    def __init__(self, name: str, size: int, step: Callable[[str, int, int], None]) -> None:
        self._name, self._size, self._step = name, size, step
        self._done = 0

    def read(self, count: int) -> None:
        self._done += count
        self._step(f"reading {self._name}", self._done, self._size)


def _read(
    files: Sequence[Path], form: str, gathering: "Gathering", step: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    from tracing.formats import FORMS, FormatError, read_file

    if form and form not in FORMS:
        raise Failure(f"--format: {form!r} is not one of auto, {', '.join(FORMS)}")
    told = []
    for file in files:
        left_out: Counter[str] = Counter()
        try:
            progress = _Reading(file.name, file.stat().st_size, step)
            spans = gathering.add(read_file(file, left_out, form, progress.read))
        except FormatError as error:
            raise Failure(str(error)) from error
        except OSError as error:
            raise Failure(f"cannot read {error.filename or file}: {error.strerror or error}") from error
        told.append({"file": str(file), "spans": spans, "left_out": dict(left_out)})
    return told


def _send(
    client: "Client", gathering: "Gathering", options: Mapping[str, Any], step: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """All of it, in requests of whole traces. Raises Failure, which says how far it came."""
    from tracing.formats import span_lines

    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    done = 0
    for count, batch in gathering.batches(SPANS_AT_ONCE):
        try:
            answer = client.post(
                "/v1/traces/import", {"format": "spans", "text": span_lines.write(batch), **options}, IMPORT_TIMEOUT_S
            )
        except Failure as failure:
            if done:
                said = f"{failure} (the first {done} of {gathering.traces} traces were taught; importing them again counts twice)"
                raise Failure(said, failure.more) from failure
            raise
        done += count
        step("teaching", done, gathering.traces)
        reasons.update(answer["reasons"])
        totals.update({name: answer[name] for name in ("traces", "calls", "spans")})
    return {**{name: totals[name] for name in ("traces", "calls", "spans")}, "reasons": reasons}


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """`step(what, done, of)`. Drawn where somebody can see it."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from orchestrator.cli.show import plain, progress_console

    console = progress_console()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, of: progress.update(task, description=plain(what), completed=done, total=of or None)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in counts.items() if value)


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MAP + 1)
        if len(content) > MAX_MAP:
            raise Failure(f"--map: {path} is longer than {MAX_MAP >> 20} MB")
        names = jsonlib.loads(content)
    except OSError as error:
        raise Failure(f"--map: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Failure(f"--map: {path} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise Failure(f"--map: {path} must be one JSON object of texts")
    return names

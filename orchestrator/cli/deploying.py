"""From a folder to functions: a new project, deploy."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.functions import is_settled, reason_of, state_text, waits_for
from orchestrator.cli.options import Json, State, state_folder
from orchestrator.cli.releasing import Hold, NoGate, Ramp, plan_of

if TYPE_CHECKING:
    from orchestrator.cli.client import Client
    from orchestrator.cli.manifest import FunctionEntry

READY_TIMEOUT_S = 1500.0  # the first build of a package downloads its dependencies, and may build them from source
POLL_S = 0.1
SHOWN = 3  # of the versions that wait

MANIFEST = """\
# One table a function; `foreglow deploy .` makes a new version of each.
[defaults]
memory_mb = 128
timeout_s = 10

[functions.hello]
handler = "hello:handle"
calls = ["greeting"]  # started together with hello from the very first request; traces teach the rest

[functions.greeting]
handler = "greeting:handle"
"""
HELLO = '''\
def handle(event, context):
    """Asks another function for the words."""
    name = (event or {}).get("name", "world")
    return {"message": context.invoke("greeting", {"name": name})}
'''
GREETING = """\
def handle(event, context):
    return f"Hello, {event['name']}!"
"""


def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make it; may be empty or new.")]) -> None:
    """Make a small working project of two functions."""
    files = {"foreglow.toml": MANIFEST, "hello.py": HELLO, "greeting.py": GREETING}
    for name in files:
        if (folder / name).exists():
            raise Failure(f"{folder / name} is there already; nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content)
    except OSError as error:
        raise Failure(f"cannot write {error.filename}: {error.strerror}") from error
    print(f"Made {', '.join(files)} in {folder}. Next:\n  foreglow deploy {folder}")
    print("""  foreglow invoke hello --data '{"name": "you"}'""")


def deploy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the manifest.")],
    manifest: Annotated[str, typer.Option(help="Name of the manifest in DIR.")] = "foreglow.toml",
    ramp: Ramp = None,
    hold: Hold = None,
    no_gate: NoGate = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Deploy the functions of DIR: a new version of each. It gets traffic once instances of it and of its call path are ready."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client
    from orchestrator.cli.manifest import ManifestError, read_manifest

    release = plan_of(ramp, hold, no_gate)
    try:
        entries = read_manifest(folder, manifest)
    except ManifestError as error:
        raise Failure(str(error)) from error
    with Client(state_folder(state)) as client, _progress(len(entries), quiet=json) as step:
        versions = deploy_entries(client, entries, step, release)
    if json:
        show.as_json(versions)
    else:
        columns = ("function", "version>", "state", "handler", "memory>", "reason")
        rows = [
            (
                f"[bold]{name}[/]",
                one["number"],
                state_text(one["state"]),
                one["handler"],
                f"{one['memory_mb']} MB",
                show.plain(reason_of(one)),
            )
            for name, one in versions.items()
        ]
        show.console().print(show.table("", columns, rows))
    if ramp and not json:
        print("on their ramps now: `foreglow release status --wait` shows how they do")
    failed = [name for name, one in versions.items() if one["state"] != "ready"]
    if failed:
        raise Failure(
            f"{len(failed)} of {len(versions)} not ready: " + "; ".join(f"{n}: {reason_of(versions[n])}" for n in failed)
        )


def deploy_entries(
    client: "Client",
    entries: "Sequence[FunctionEntry]",
    step: Callable[[str, int], None] = lambda what, done: None,
    release: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Uploads each distinct package once, makes a version of every function, waits until each is ready or has failed.

    `step(what, done)` hears of progress; `release`: how each gets its traffic, as the API takes it. Returns the version
    descriptions by name. Raises Failure.
    """
    from orchestrator.cli.archive import ArchiveError, pack
    from orchestrator.cli.client import segment

    digests: dict[tuple[Path, Path | None], str] = {}
    for entry in entries:
        source = (entry.folder, entry.requirements)
        if source not in digests:
            step(f"uploading {entry.folder.name or entry.folder}", 0)
            try:
                digests[source] = client.upload(pack(*source))["digest"]
            except ArchiveError as error:
                raise Failure(f"functions.{entry.name}.path: {error}") from error
            except Failure as error:
                raise Failure(f"functions.{entry.name}: {error}", error.more) from error
    versions: dict[str, dict[str, Any]] = {}
    for entry in entries:
        document = {"package": digests[entry.folder, entry.requirements], "handler": entry.handler, **entry.settings}
        if release:
            document["release"] = release
        try:
            described = client.put(f"/v1/functions/{segment(entry.name)}", document)
        except Failure as error:
            raise Failure(f"functions.{entry.name}: {error}", error.more) from error
        versions[entry.name] = max(described["versions"], key=lambda one: int(one["number"]))
    deadline = time.monotonic() + READY_TIMEOUT_S
    while waiting := [name for name, one in versions.items() if not is_settled(one)]:
        step(_waiting_text(waiting, versions), len(versions) - len(waiting))
        if time.monotonic() > deadline:
            raise Failure(
                f"not ready in {READY_TIMEOUT_S:.0f} s: {_waiting_text(waiting, versions)}; see `foreglow describe {waiting[0]}`"
            )
        time.sleep(POLL_S)
        for name in waiting:
            versions[name] = client.get(f"/v1/functions/{segment(name)}/versions/{versions[name]['number']}")
    step("done", len(versions))
    return versions


def _waiting_text(names: Sequence[str], versions: Mapping[str, Mapping[str, Any]]) -> str:
    """The first few that wait, each with the condition it waits for."""
    said = []
    for name in names[:SHOWN]:
        condition = waits_for(versions[name])
        said.append(f"{name} waits for {condition}" if condition else f"{name} is being prepared")
    return "; ".join(said) + (f"; {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from orchestrator.cli.show import plain, progress_console

    columns = (
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=progress_console(), transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=total)
        yield lambda what, done: progress.update(task, description=plain(what), completed=done)

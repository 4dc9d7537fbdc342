"""Use a function: invoke, warm, logs."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder


def invoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Function, or function:version, or function:alias.")],
    data: Annotated[str | None, typer.Option(help="JSON to send.")] = None,
    file: Annotated[Path | None, typer.Option(help="File to send; - is stdin.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The file is bytes, not JSON; print the answer as it comes.")] = False,
    method: Annotated[str, typer.Option(help="For http functions.")] = "POST",
    path: Annotated[str, typer.Option(help="For http functions: what follows /function/NAME.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Print start kind and timings to stderr.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Invoke a function and print its answer."""
    from orchestrator.cli import show as output
    from orchestrator.cli.client import Client, problem_line

    body, content_type = _payload(data, file, raw, method.upper())
    with Client(state_folder(state)) as client:
        answer = client.invoke(name, body, content_type, method.upper(), path)
    if show:
        steps = "  ".join(f"{step} {output.ms(value)}" for step, value in answer.steps_ms.items())
        print(f"{answer.start or 'unknown'}  {steps}  (ms)  run {answer.trace_id}", file=sys.stderr)
    if answer.status >= 400 and answer.content_type.startswith("application/problem+json"):
        line, stack = problem_line(answer.status, answer.body)
        raise Failure(f"{name}: {line}", stack)
    if json:
        output.as_json(
            {
                "status": answer.status,
                "start": answer.start,
                "steps_ms": answer.steps_ms,
                "trace_id": answer.trace_id,
                "invocation_id": answer.invocation_id,
                "content_type": answer.content_type,
                "body": _decoded(answer.body, answer.content_type),
            }
        )
    elif not raw and answer.content_type.startswith("application/json"):
        output.as_json(_decoded(answer.body, answer.content_type))
    else:
        sys.stdout.buffer.write(answer.body)
        if sys.stdout.isatty() and not answer.body.endswith(b"\n"):
            print()
    if answer.status >= 400:
        raise Failure(f"{name}: answered with status {answer.status}")


def _payload(data: str | None, file: Path | None, raw: bool, method: str) -> tuple[bytes, str]:
    if data is not None and file is not None:
        raise Failure("--data and --file cannot be used together")
    if data is None and file is None:
        return (b"null", "application/json") if method == "POST" else (b"", "")
    if data is not None:
        content = data.encode()
    else:
        try:
            content = sys.stdin.buffer.read() if str(file) == "-" else Path(str(file)).read_bytes()
        except OSError as error:
            raise Failure(f"--file: cannot read {file}: {error.strerror}") from error
    if raw:
        return content, "application/octet-stream"
    try:
        jsonlib.loads(content)
    except ValueError as error:
        option = "--data" if data is not None else "--file"
        raise Failure(f"{option}: not JSON ({error}); quote texts, or send bytes with --raw") from error
    return content, "application/json"


def _decoded(body: bytes, content_type: str) -> Any:
    if content_type.startswith("application/json"):
        try:
            return jsonlib.loads(body)
        except ValueError:
            pass
    return body.decode(errors="replace")


def warm(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    count: Annotated[int, typer.Option(help="Instances of NAME; what it calls follows by the plan.")] = 1,
    state: State = None,
    json: Json = False,
) -> None:
    """Prepare a function and its whole path now."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        plan = client.post(f"/v1/functions/{segment(name)}/warm", {"count": count})
    if json:
        show.as_json(plan)
        return
    from orchestrator.cli.seeing import print_plan

    print_plan(plan)


def logs(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    invocation: Annotated[str | None, typer.Option(help="Only this invocation.")] = None,
    limit: Annotated[int, typer.Option(help="Invocations to show, newest last.")] = 20,
    state: State = None,
    json: Json = False,
) -> None:
    """Show what a function printed, per invocation."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment
    from orchestrator.cli.functions import rows_of

    with Client(state_folder(state)) as client:
        answer = client.get(f"/v1/functions/{segment(name)}/logs", invocation=invocation, limit=limit)
    if json:
        show.as_json(answer)
        return
    out = show.console()
    written = rows_of(answer, "logs")
    if not written:
        out.print("nothing printed yet")
    for one in written:
        cut = "  [yellow](cut)[/]" if one["cut"] else ""
        version = show.plain(one["version"].rpartition(":")[2])
        out.print(f"[dim]{show.clock(one['at'])}  {show.plain(one['invocation_id'])}  version {version}[/]{cut}")
        for part in one["output"]:
            colour = "red" if part["stream"] == "err" else "default"
            out.print(show.plain(part["text"].rstrip("\n")), style=colour)

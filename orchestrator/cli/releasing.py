"""Where traffic goes: published versions, aliases, rollback, releases."""

import re
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.functions import reason_of, state_text
from orchestrator.cli.options import Json, State, state_folder

LATEST = "$LATEST"
POLL_S = 0.25
PHASES = {"done": "green", "preparing": "yellow", "holding": "cyan", "stopped": "red", "aborted": "magenta", "superseded": "dim"}
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?\Z")
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Ramp = Annotated[str | None, typer.Option("--ramp", metavar="10,30,100", help="Growing percents of traffic, step by step.")]
Hold = Annotated[str | None, typer.Option("--hold", metavar="60s", help="How long each step of the ramp is watched.")]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Change the route at once, with nothing made ready.")]

releases = typer.Typer(help="Releases on their way: status, abort.", no_args_is_help=True)


def plan_of(ramp: str | None, hold: str | None, no_gate: bool) -> dict[str, Any]:
    """The `release` of a request. Raises Failure."""
    if no_gate:
        if ramp or hold:
            raise Failure("--no-gate changes the route at once: leave --ramp and --hold out")
        return {"gate": False}
    plan: dict[str, Any] = {}
    if ramp:
        try:
            percents = [float(part) for part in ramp.removesuffix("%").split(",")]
        except ValueError:
            raise Failure(f"--ramp: {ramp[:80]!r} is no list of percents; write 10,30,100") from None
        grows = all(one < other for one, other in pairwise(percents))
        if not grows or not all(0 < one <= 100 for one in percents):
            raise Failure("--ramp: percents grow from step to step, above 0 and at most 100")
        plan["ramp"] = [one / 100 for one in percents]
    if hold:
        plan["hold_s"] = seconds(hold, "--hold")
    return plan


def seconds(text: str, option: str) -> float:
    """`60`, `60s`, `500ms`, `2m`, `1h`. Raises Failure."""
    found = _SECONDS.match(text.strip())
    if found is None:
        raise Failure(f"{option}: {text[:40]!r} is no time; write 60s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def publish(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    version: Annotated[int | None, typer.Option("--version", help="Its number; else the one that serves.")] = None,
    label: Annotated[str, typer.Option(help="What it is called.")] = "",
    alias: Annotated[str | None, typer.Option(help="An alias that is to point at it.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Keep it no longer.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Name a version: it is kept, and stays invocable as NAME:NUMBER."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        if remove:
            if version is None:
                raise Failure("--remove: name the version with --version")
            client.delete(f"/v1/functions/{segment(name)}/published/{version}")
            print(f"{name}:{version} is not published any more")
            return
        wanted = {"version": version, "label": label, "alias": alias}
        made = client.post(f"/v1/functions/{segment(name)}/published", wanted)
    if json:
        show.as_json(made)
        return
    print(f"published {name}:{made['version']}" + (f" ({made['label']})" if made["label"] else ""))
    if made["alias"] is not None:
        print(_told(name, made["alias"]))


def versions(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    state: State = None,
    json: Json = False,
) -> None:
    """List the versions of a function: which are published, and which aliases mean them."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        one = client.get(f"/v1/functions/{segment(name)}")
        aliases = client.get(f"/v1/functions/{segment(name)}/aliases")["aliases"]
    if json:
        show.as_json({"versions": one["versions"], "aliases": aliases})
        return
    meant: dict[int, list[str]] = {}
    for alias in aliases:
        for number, share in shares_of(alias).items():
            meant.setdefault(number, []).append(alias["name"] if share >= 1 else f"{alias['name']} {show.percent(share)}")
    rows = [
        (
            version["number"],
            state_text(version["state"]),
            ", ".join(meant.get(int(version["number"]), ())),
            show.ago(version.get("published_at")),
            show.plain(version.get("label", "")),
            show.ago(version["created_at"]),
            version["handler"],
            show.plain(reason_of(version)),
        )
        for version in sorted(one["versions"], key=lambda version: -int(version["number"]))
    ]
    columns = ("version>", "state", "meant by", "published", "label", "deployed", "handler", "reason")
    show.console().print(show.table("", columns, rows))


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    alias: Annotated[str | None, typer.Argument(metavar="[ALIAS]", help="To be set; without it all are shown.")] = None,
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[VERSION | VERSION:PERCENT VERSION:PERCENT]", help="3, or 3:70 4:30.")
    ] = None,
    sticky: Annotated[
        str | None, typer.Option(help="Who gets the same version each time: key, header:NAME, or '' for nobody.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    ramp: Ramp = None,
    hold: Hold = None,
    no_gate: NoGate = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Show aliases, point one at a version or at two by weight, or remove it."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    path = f"/v1/functions/{segment(name)}/aliases"
    with Client(state_folder(state)) as client:
        if alias is None:
            found = client.get(path)
            if json:
                show.as_json(found)
            else:
                rows = [_row(one) for one in found["aliases"]]
                columns = ("alias", "means", "sticky", "before", "changed", "release")
                show.console().print(show.table("", columns, rows))
            return
        if remove:
            client.delete(f"{path}/{segment(alias)}")
            print(f"removed {name}:{alias}")
            return
        wanted = {**pointer_of(targets or []), "release": plan_of(ramp, hold, no_gate)}
        if sticky is not None:
            wanted["sticky"] = sticky.lower()
        made = client.put(f"{path}/{segment(alias)}", wanted)
    if json:
        show.as_json(made)
    else:
        print(_told(name, made))


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    alias: Annotated[str, typer.Argument(metavar="[ALIAS]", help="Which alias.")] = LATEST,
    state: State = None,
    json: Json = False,
) -> None:
    """Point an alias where it pointed before its last change, at once."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        made = client.post(f"/v1/functions/{segment(name)}/aliases/{segment(alias)}/rollback")
    if json:
        show.as_json(made)
    else:
        print(_told(name, made))


@releases.command("status")
def release_status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only of this function.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20,
    wait: Annotated[bool, typer.Option("--wait", help="Until those on their way have ended; fails unless all are done.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Show releases: the step, what its gate waits for, how a step in force does, and why one ended."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        found = client.get("/v1/releases", function=name, limit=limit)["releases"]
        awaited = {one["id"] for one in found if one["ended_at"] is None}
        while wait and any(one["ended_at"] is None for one in found):
            time.sleep(POLL_S)
            found = client.get("/v1/releases", function=name, limit=limit)["releases"]
    if json:
        show.as_json({"releases": found})
    else:
        show.console().print(
            show.table("", ("release>", "function", "phase", "steps", "gate or requests", "since", "why"), map(_line, found))
        )
    failed = [one for one in found if one["id"] in awaited and one["phase"] not in ("done", "preparing", "holding")]
    if failed:
        raise Failure("; ".join(f"release {one['id']} of {one['function']}: {one['phase']}: {one['reason']}" for one in failed))


@releases.command("abort")
def release_abort(
    release: Annotated[str, typer.Argument(metavar="NUMBER | NAME", help="Its number, or the function whose release it is.")],
    state: State = None,
    json: Json = False,
) -> None:
    """End a release: traffic goes where it went before, at once."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        number = int(release) if release.isascii() and release.isdigit() else 0
        if not number:
            found = client.get("/v1/releases", function=release, limit=100)["releases"]
            number = next((one["id"] for one in found if one["ended_at"] is None), 0)
            if not number:
                raise Failure(f"no release of {release} is on its way")
        ended = client.post(f"/v1/releases/{number}/abort")
    if json:
        show.as_json(ended)
    else:
        print(f"release {number} of {ended['function']} aborted; {ended['alias']} means {meaning(ended['back'])}")


def shares_of(pointer: Mapping[str, Any]) -> dict[int, float]:
    """By version."""
    if pointer["second"] is None:
        return {int(pointer["version"]): 1.0}
    return {int(pointer["version"]): 1 - pointer["share"], int(pointer["second"]): pointer["share"]}


def meaning(pointer: Mapping[str, Any] | None) -> str:
    """`3`, or `3 (70 %), 4 (30 %)`."""
    if pointer is None:
        return ""
    if pointer["second"] is None:
        return str(pointer["version"])
    return ", ".join(f"{number} ({share * 100:g} %)" for number, share in _rounded(pointer).items())


def _rounded(pointer: Mapping[str, Any]) -> dict[int, float]:
    return {number: round(share, 4) for number, share in shares_of(pointer).items()}


def pointer_of(targets: list[str]) -> dict[str, Any]:
    """What an alias is to mean, as the API takes it. Raises Failure."""
    if not 1 <= len(targets) <= 2:
        raise Failure("name one version (3), or two with their percents (3:70 4:30)")
    numbers, percents = [], []
    for target in targets:
        number, colon, percent = target.partition(":")
        try:
            numbers.append(int(number))
            percents.append(float(percent.removesuffix("%")) if colon else None)
        except ValueError:
            raise Failure(f"{target[:40]!r} is no version; write 3, or 3:70 4:30") from None
    if len(targets) == 1:
        if percents[0] not in (None, 100.0):
            raise Failure("one version alone has 100 %; name a second one for the rest")
        return {"version": numbers[0]}
    if any(percent is None for percent in percents) or abs(sum(percent or 0 for percent in percents) - 100) > 1e-6:
        raise Failure("the percents of two versions add up to 100: 3:70 4:30")
    return {"version": numbers[0], "second": numbers[1], "share": round((percents[1] or 0) / 100, 6)}


def _row(one: Mapping[str, Any]) -> tuple[object, ...]:
    from orchestrator.cli import show

    release = one["release"]
    coming = f"{release['id']}: {release['phase']}" if release is not None else ""
    return one["name"], meaning(one), one["sticky"], meaning(one["before"]), show.ago(one["changed_at"]), coming


def _told(name: str, made: Mapping[str, Any]) -> str:
    release = made["release"]
    now = f"{name}:{made['name']} means {meaning(made)}"
    if release is None:
        return now
    return f"{now}; release {release['id']} leads to {meaning(release['steps'][-1])} (`foreglow release status {name}`)"


def _line(one: Mapping[str, Any]) -> tuple[object, ...]:
    from orchestrator.cli import show

    steps = []
    for number, step in enumerate(one["steps"]):
        text = meaning(step)
        here = one["ended_at"] is None and number == one["step"]
        steps.append(f"[bold]{text}[/]" if here else f"[green]{text}[/]" if number < one["flipped"] else f"[dim]{text}[/]")
    seen = [f"{need['version']} {need['ready']}/{need['wanted']}" for need in one["gate"]]
    seen += [
        f"{of['version']} {of['requests']} requests, {of['errors']} failed, p95 {show.ms(of['p95_ms'])} ms" for of in one["watch"]
    ]
    phase = f"[{PHASES.get(one['phase'], 'default')}]{one['phase']}[/]"
    return (
        one["id"],
        f"{one['function']}:{one['alias']}",
        phase,
        " > ".join(steps),
        show.plain("; ".join(seen)),
        show.ago(one["since"]),
        show.plain(one["reason"]),
    )

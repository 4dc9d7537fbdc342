"""The functions that are there: list, describe, remove."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, state_folder
from orchestrator.cli.pricing import kept

ORDER = ("code", "network", "capacity", "route")  # of conditions


def list_functions(state: State = None, json: Json = False) -> None:
    """List the functions."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        answer = client.get("/v1/functions")
    functions = rows_of(answer, "functions")
    if json:
        show.as_json(answer)
        return
    rows = []
    for one in functions:
        newest = max(one["versions"], key=lambda version: int(version["number"]), default=None)
        rows.append(
            (
                f"[bold]{one['name']}[/]",
                one["kind"],
                one["latest"],
                state_text(newest["state"]) if newest else "",
                f"{newest['memory_mb']} MB" if newest else "",
                ", ".join(call["name"] for call in one.get("calls", ())),
            )
        )
    show.console().print(show.table("", ("function", "kind", "serves>", "newest", "memory>", "declared calls"), rows))


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    lock: Annotated[bool, typer.Option("--lock", help="What its newest version installed: versions and hashes.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Show one function: its versions, what each waits for, its declared calls."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        one = client.get(f"/v1/functions/{segment(name)}")
        if lock:
            newest = max(int(version["number"]) for version in one["versions"])
            locked = client.get(f"/v1/functions/{segment(name)}/versions/{newest}/lock")
            if json:
                show.as_json(locked)
            else:
                print(locked["lock"], end="")
                if not locked["lock"]:
                    why = "it requires nothing, or an earlier release resolved it"
                    print(f"version {newest} of {name!r} has no lock: {why}", file=sys.stderr)
            return
        if json:
            show.as_json(one)
            return
        templates = [found for found in client.get("/v1/instances").get("templates", ()) if found["function"] == one["name"]]
        weighed: list[dict[str, Any]] = []
        with contextlib.suppress(Failure):  # the planner is away: all else is known without it
            weighed = [found for found in client.get("/v1/calibration")["functions"] if found["function"] == one["name"]]
    out = show.console()
    serves = f"version {one['latest']} serves" if one["latest"] else "no version serves yet"
    out.print(f"[bold]{one['name']}[/]  {one['kind']}, {serves}")
    calls = [call["name"] if call["deployed"] else f"{call['name']} [yellow](declared, not deployed)[/]" for call in one["calls"]]
    if calls:
        out.print("calls " + ", ".join(calls))
    for found in weighed:
        out.print(show.plain(kept(found)))
    versions = sorted(one["versions"], key=lambda version: -int(version["number"]))
    if versions and (network := network_text(versions[0])):
        out.print(network)
    rows: list[tuple[object, ...]] = [
        (
            version["number"],
            state_text(version["state"]),
            version["handler"],
            f"{version['memory_mb']} MB",
            f"{version['timeout_s']:g} s",
            version["concurrency"],
            version.get("initial_instances", 0),
            show.plain(reason_of(version)),
        )
        for version in versions
    ]
    columns = ("version>", "state", "handler", "memory>", "timeout>", "concurrency>", "initial>", "reason")
    out.print(show.table("", columns, rows))
    # of old versions that serve or could nobody asks any more what they waited for
    asked = [version for version in versions if version is versions[0] or version["state"] == "pending"]
    rows = [
        (version["number"], part["name"], status_text(part["status"]), show.ago(part.get("since")), show.plain(part["reason"]))
        for version in asked
        for part in conditions_of(version)
    ]
    out.print(show.table("", ("version>", "condition", "status", "since", "why"), rows))
    if templates:
        held: list[tuple[object, ...]] = [
            (
                found["version"],
                found["node"],
                found["standing"],
                f"{found['init_ms']:.0f} ms",
                f"{found['memory_mb']} MB" if found["memory_mb"] else "",
                found["clones"],
                show.plain(found["reason"]),
            )
            for found in sorted(templates, key=lambda found: (-int(found["version"]), found["node"]))
        ]
        named = ("version>", "node", "function template", "init>", "memory>", "clones>", "why not")
        out.print(show.table("", named, held))


def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    state: State = None,
) -> None:
    """Remove functions with all their versions."""
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        for name in names:
            client.delete(f"/v1/functions/{segment(name)}")
            print(f"removed {name}")


def rows_of(answer: Any, name: str) -> list[dict[str, Any]]:
    """The list in an answer that is one, or holds one under `name`."""
    return list(answer[name] if isinstance(answer, dict) else answer)


def reason_of(version: Mapping[str, Any]) -> str:
    """Why a version is not ready: the reasons of its conditions that do not hold."""
    if version["state"] == "ready":
        return ""
    reasons = [
        f"{part['name']}: {part['reason']}" for part in version["conditions"] if part["status"] == "false" and part["reason"]
    ]
    return "; ".join(reasons)


def conditions_of(version: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In the order in which they come true; one that this release does not know comes last."""
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(version["conditions"], key=lambda part: places.get(part["name"], len(places)))


def waits_for(version: Mapping[str, Any]) -> str:
    """The first condition that is not decided, with what it says; empty when all are."""
    for part in conditions_of(version):
        if part["status"] == "unknown":
            return f"{part['name']} ({part['reason']})" if part["reason"] else str(part["name"])
    return ""


def is_settled(version: Mapping[str, Any]) -> bool:
    """Nothing more happens to it by itself."""
    return version["state"] != "pending" or any(part["status"] == "false" for part in version["conditions"])


def network_text(version: Mapping[str, Any]) -> str:
    """Where a version's instances get to; empty: nowhere."""
    network = f"in private network {version['vpc']}" if version.get("vpc") else ""
    internet = "reaches the internet" if version.get("egress") == "internet" else ""
    return ", ".join(part for part in (network, internet) if part)


def status_text(status: str) -> str:
    colour = {"true": "green", "false": "red", "unknown": "yellow"}.get(status, "dim")
    return f"[{colour}]{status}[/]"


def state_text(state: str) -> str:
    colour = {"ready": "green", "failed": "red"}.get(state, "yellow")
    return f"[{colour}]{state}[/]"

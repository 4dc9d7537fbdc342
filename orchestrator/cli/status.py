"""What runs, what is away, and what isolation is in force."""

from collections.abc import Mapping
from typing import Any

from orchestrator.cli.options import Json, State, state_folder


def status(state: State = None, json: Json = False) -> None:
    """Show what runs, where, and what isolation is in force."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        document = client.get("/v1/status")
    if json:
        show.as_json(document)
        return
    show.console().print(show.table("", ("what", "state"), _state_rows(document)))


def _state_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    from orchestrator.cli import show

    rows = [("version", str(document["version"])), ("redis", str(document["redis"]))]
    rows.append(("control flow", ", ".join(f"{count} events {name}" for name, count in document["events"].items())))
    for name, state in document.items():
        if name in ("version", "redis", "events", "zone_caches"):
            continue
        if not isinstance(state, dict):
            rows.append((name, f"[red]{show.plain(state)}[/]"))
        elif "isolation" in state:
            isolation, memory = state["isolation"], state["memory_mb"]
            promised = f"{memory['promised']} of {memory['total']} MB promised"
            held = f"{state['instances']} instances, {state['standbys']} standbys, {promised}"
            rows.append((name, held))
            limits = ", ".join(f"{what} by {means}" for what, means in isolation["limits"].items())
            if templates := templates_text(state.get("templates", {})):
                rows.append(("", templates))
            rows.append(("isolation", f"{isolation['driver']}: {isolation['tier']}; {show.plain(limits)}"))
            if tunnels := state.get("tunnels"):
                rows.append(("tunnels", show.plain(tunnels_text(tunnels))))
            rows += [("", f"[yellow]not in force:[/] {show.plain(line)}") for line in isolation["missing"]]
        else:
            learned = state.get("learned", {})
            rows.append(
                (name, f"{learned.get('observed', 0)} run(s) learned since it started, {len(state.get('nodes', ()))} node(s)")
            )
            spans = state.get("spans", {})
            if spans.get("received"):
                rows.append(
                    ("", f"of {spans['received']} spans from elsewhere {spans['left_out']} were left out: foreglow traces status")
                )
    for one in document.get("zone_caches", ()):
        shown = one["state"] if one["state"] == "up" else f"[red]{one['state']}[/]: nodes of its zone go to the origin"
        rows.append((f"zone cache {show.plain(one['name'])}", f"{shown}, zone {show.plain(one['zone'])}"))
    return rows


def tunnels_text(tunnels: Mapping[str, Any]) -> str:
    """A node's ways into private networks, and why its backend is no better one."""
    why = f" (not a better backend: {tunnels['reason']})" if tunnels["reason"] else ""
    lacking = f", {tunnels['not-ready']} not open" if tunnels["not-ready"] else ""
    return f"{tunnels['backend']}: {tunnels['ready']} open{lacking}, {tunnels['attached']} instances attached{why}"


def templates_text(templates: Mapping[str, int]) -> str:
    """What a node says of its function templates; empty when it has and makes none."""
    held = f"{templates['held']} held in {templates['memory_mb']} MB" if templates.get("held") else ""
    others = [f"{templates[standing]} {standing}" for standing in ("making", "refused") if templates.get(standing)]
    parts = [*([held] if held else []), *others]
    return f"function templates: {', '.join(parts)}" if parts else ""

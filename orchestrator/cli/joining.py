"""The cluster: tokens, joining, who is there."""

import time
from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, settings_with, state_folder

Role = Annotated[str, typer.Option(help="node, gateway, planner, flow, zone-cache or vpc-proxy.")]
nodes = typer.Typer(help="Who has joined the cluster.", invoke_without_command=True, rich_markup_mode=None)


def node_token(
    role: Role = "node",
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.")] = 3600.0,
    vpc: Annotated[str, typer.Option(metavar="TENANT/NAME", help="Of a vpc-proxy: the private network it is for.")] = "",
    state: State = None,
    json: Json = False,
) -> None:
    """Make a token that lets one process join, once (operators)."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        made = client.post("/v1/join-tokens", {"role": role, "ttl_s": ttl, "vpc": vpc})
    if json:
        show.as_json(made)
    else:
        print(made["token"])


def join(
    control: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Control's join listener.")],
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="From `foreglow node-token`; - reads it from standard input.")],
    name: Annotated[str, typer.Option(help="Its name in the cluster.")],
    role: Role = "node",
    listen: Annotated[str, typer.Option(help="HOST:PORT where the others reach it.")] = "",
    zone: Annotated[str, typer.Option(help="Its failure domain (FOREGLOW_ZONE, else `default`).")] = "",
    state: State = None,
) -> None:
    """Make this state folder a member of a cluster."""
    from orchestrator import preflight
    from orchestrator.joining import JoinFailed
    from orchestrator.joining import join as join_cluster
    from orchestrator.membership import NotJoined
    from orchestrator.vpcs import PROXY_ROLE

    settings = settings_with(state=state)
    if token == "-":  # noqa: S105
        token = typer.get_text_stream("stdin").readline().strip()
    try:
        preflight.make_state_folder(settings.state)
        member = join_cluster(settings.state, control, token, role, name, listen, zone or settings.zone)
    except (JoinFailed, NotJoined, preflight.NotPossible, ValueError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"cannot join: {error.filename or settings.state}: {error.strerror or error}") from error
    command = "vpc proxy" if member.role == PROXY_ROLE else member.role
    print(f"joined as {member.role} {member.name}; start it with: foreglow {command} --state {settings.state}")


@nodes.callback()
def list_nodes(context: typer.Context, state: State = None, json: Json = False) -> None:
    """List the members: name, address, zone, state, epoch, last seen."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    if context.invoked_subcommand is not None:
        return
    with Client(state_folder(state)) as client:
        answer = client.get("/v1/nodes")
    if json:
        show.as_json(answer)
        return
    rows = [_row(one) for one in answer["nodes"]]
    show.console().print(show.table("", ("name", "role", "address", "zone", "state", "epoch>", "last seen", "tenants"), rows))


@nodes.command("remove")
def remove(name: Annotated[str, typer.Argument(metavar="NAME")], state: State = None) -> None:
    """Let a member go: its certificate does not count any more."""
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        client.delete(f"/v1/nodes/{segment(name)}")
    print(f"removed {name}")


@nodes.command("allow")
def allow(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    tenants: Annotated[list[str] | None, typer.Argument(metavar="TENANT...", help="None: everybody's again.")] = None,
    state: State = None,
) -> None:
    """Bind a node to tenants: it gets no instance and no code of others (operators)."""
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        client.put(f"/v1/nodes/{segment(name)}/tenants", {"tenants": tenants or []})
    print(f"{name} hosts {', '.join(tenants) if tenants else 'all tenants'}")


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    from orchestrator.cli import show

    color = {"up": "green", "silent": "red"}.get(one["state"], "dim")
    seen = show.ago(one["last_seen"])
    since = one.get("silent_since")
    state = f"silent since {time.strftime('%m-%d %H:%M', time.localtime(since))}" if since else one["state"]
    return (
        one["name"],
        one["role"],
        one["address"],
        one["zone"],
        f"[{color}]{state}[/]",
        one["epoch"],
        seen,
        " ".join(one["tenants"]),
    )

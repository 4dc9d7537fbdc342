"""Private networks: making and seeing them, and the proxy that runs inside one."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from orchestrator.cli.functions import rows_of
from orchestrator.cli.options import Json, State, state_folder

vpc = typer.Typer(help="Private networks that functions reach.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Cidrs = Annotated[list[str] | None, typer.Option("--cidr", help="What belongs to it, such as 10.0.0.0/16; may be repeated.")]
Rules = Annotated[
    list[str] | None,
    typer.Option("--rule", help="What may be reached, such as tcp:10.0.1.0/24:5432; may be repeated. None: all of it."),
]
Source = Annotated[str, typer.Option("--address", help="Where functions come from as its servers see it; none: the proxy's.")]
Resolver = Annotated[str, typer.Option("--resolver", help="A DNS server inside, for names.")]


@vpc.command("create")
def create(
    name: Name,
    cidr: Cidrs = None,
    rule: Rules = None,
    address: Source = "",
    resolver: Resolver = "",
    state: State = None,
    json: Json = False,
) -> None:
    """Make a private network; a proxy inside it joins next."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    wanted = _settings(cidr, rule, address, resolver)
    with Client(state_folder(state)) as client:
        made = client.post("/v1/vpcs", {"name": name, **wanted})
        tenant = client.get("/v1/tenant")["name"]
    if json:
        show.as_json(made)
        return
    print(f"made private network {name} (number {made['number']}): {', '.join(made['cidrs'])}")
    print(f"its proxy, on a host inside: foreglow node-token --role vpc-proxy --vpc {tenant}/{name}")
    print(f"or beside control: foreglow vpc proxy --vpc {tenant}/{name} --listen HOST:PORT")


@vpc.command("change")
def change(
    name: Name,
    cidr: Cidrs = None,
    rule: Rules = None,
    address: Annotated[str | None, typer.Option("--address", help="As with create.")] = None,
    resolver: Annotated[str | None, typer.Option("--resolver", help="As with create.")] = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Change what is given; the rest stays as it is."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    given = {"cidrs": cidr, "rules": rule, "address": address, "resolver": resolver}
    with Client(state_folder(state)) as client:
        before = client.get(f"/v1/vpcs/{segment(name)}")
        wanted = {field: before[field] if value is None else value for field, value in given.items()}
        made = client.put(f"/v1/vpcs/{segment(name)}", wanted)
    if json:
        show.as_json(made)
    else:
        print(f"changed private network {name}: {', '.join(made['cidrs'])}; rules: {', '.join(made['rules']) or 'none'}")


@vpc.command("list")
def list_vpcs(state: State = None, json: Json = False) -> None:
    """List the private networks."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        answer = client.get("/v1/vpcs")
    if json:
        show.as_json(answer)
        return
    rows = [
        (
            f"[bold]{one['name']}[/]",
            one["number"],
            ", ".join(one["cidrs"]),
            ", ".join(one["rules"]) or "all",
            ", ".join(proxy["name"] for proxy in one["proxies"]) or "[yellow]none[/]",
            ", ".join(one["functions"]),
        )
        for one in rows_of(answer, "vpcs")
    ]
    show.console().print(show.table("", ("private network", "number>", "CIDRs", "rules", "proxies", "functions"), rows))


@vpc.command("describe")
def describe(name: Name, state: State = None, json: Json = False) -> None:
    """Show one: its rules and proxies, each node's tunnel with the backend and why, what is attached, the functions in it."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        one = client.get(f"/v1/vpcs/{segment(name)}")
    if json:
        show.as_json(one)
        return
    out = show.console()
    out.print(f"[bold]{one['name']}[/]  number {one['number']}, generation {one['generation']}: {', '.join(one['cidrs'])}")
    out.print(f"rules: {', '.join(one['rules']) or 'none, all of it may be reached'}")
    out.print(f"functions come from {one['address'] or 'the address of the proxy'}; names: {one['resolver'] or 'not resolved'}")
    out.print(f"functions in it: {', '.join(one['functions']) or 'none'}")
    proxies = [(proxy["name"], proxy["role"], proxy["address"]) for proxy in one["proxies"]]
    out.print(show.table("", ("proxy", "role", "address"), proxies))
    out.print(show.table("", ("node", "backend", "tunnel", "attached>", "why"), tunnel_rows(one["tunnels"])))
    if one["away"]:
        out.print(f"[yellow]did not answer: {', '.join(one['away'])}[/]")


@vpc.command("proxy")
def proxy(
    vpc: Annotated[str, typer.Option(metavar="TENANT/NAME", help="Beside control: the private network it is for.")] = "",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Beside control: where nodes reach it; port 0: any.")] = "",
    backup: Annotated[bool, typer.Option("--backup", help="Beside control: the second of a pair.")] = False,
    state: State = None,
) -> None:
    """Run the proxy inside a private network: of a state folder that joined as vpc-proxy, or beside control."""
    from orchestrator.cli.processes import alone, said

    settings = alone("vpc-proxy", state)
    from orchestrator.vpc_proxy import run

    with said():
        run(settings, vpc, listen, backup)


@vpc.command("remove")
def remove(name: Name, state: State = None) -> None:
    """Remove a private network that no version is in which can still be asked for."""
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        client.delete(f"/v1/vpcs/{segment(name)}")
    print(f"removed private network {name}")


def tunnel_rows(tunnels: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    from orchestrator.cli import show

    return [
        (
            one["node"],
            one["backend"],
            "[green]ready[/]" if one["ready"] else "[red]not ready[/]",
            one["attached"],
            show.plain(one["reason"]),
        )
        for one in tunnels
    ]


def _settings(cidr: list[str] | None, rule: list[str] | None, address: str, resolver: str) -> dict[str, Any]:
    return {"cidrs": cidr or [], "rules": rule or [], "address": address, "resolver": resolver}

"""Who owns functions: tenants with their quotas, and the keys of each."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.functions import rows_of
from orchestrator.cli.options import Json, State, state_folder

QUOTAS = {
    "functions": int,
    "concurrency": int,
    "package_bytes": int,
    "invocations_per_s": float,
    "prewarm_instances": int,
    "vpcs": int,
    "prewarm_idle_s_per_busy_s": float,
}
DEFAULT = "default"

tenants = typer.Typer(help="Tenants and their quotas; making and changing them needs an operator key.", no_args_is_help=True)
keys = typer.Typer(help="The keys of a tenant.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Whose = Annotated[str | None, typer.Option("--tenant", help="Another tenant, for operators.")]
Functions = Annotated[str | None, typer.Option(help="How many it may have, or `default`.")]
Concurrency = Annotated[str | None, typer.Option(help="Invocations in flight, or `default`.")]
PackageBytes = Annotated[str | None, typer.Option(help="Of all its packages, unpacked, or `default`.")]
Invocations = Annotated[str | None, typer.Option("--invocations-per-s", help="A second, or `default`.")]
Prewarm = Annotated[str | None, typer.Option(help="Speculative instances at once, or `default`.")]
Idle = Annotated[str | None, typer.Option(help="Seconds prewarmed ones may idle for each busy one, or `default`.")]

Vpcs = Annotated[str | None, typer.Option("--vpcs", help="Private networks, or `default`.")]


@tenants.command("list")
def list_tenants(state: State = None, json: Json = False) -> None:
    """List all tenants with their quotas and what of them is in use."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        answer = client.get("/v1/tenants")
    if json:
        show.as_json(answer)
        return
    rows = [
        (
            f"[bold]{one['name']}[/]",
            show.ago(one["created"]),
            one["use"]["keys"],
            *(_cell(one, name) for name in QUOTAS),
        )
        for one in rows_of(answer, "tenants")
    ]
    columns = ("tenant", "made", "keys>", *(f"{name.replace('_', ' ')}>" for name in QUOTAS))
    show.console().print(show.table("", columns, rows))


@tenants.command("create")
def create(
    name: Name,
    functions: Functions = None,
    concurrency: Concurrency = None,
    package_bytes: PackageBytes = None,
    invocations_per_s: Invocations = None,
    prewarm_instances: Prewarm = None,
    vpcs: Vpcs = None,
    prewarm_idle_s_per_busy_s: Idle = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Make a tenant. Its first key: foreglow keys create NAME --tenant TENANT."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    given = _read(functions, concurrency, package_bytes, invocations_per_s, prewarm_instances, vpcs, prewarm_idle_s_per_busy_s)
    with Client(state_folder(state)) as client:
        made = client.post("/v1/tenants", {"name": name, "quotas": given})
    if json:
        show.as_json(made)
    else:
        print(f"made tenant {name}; its first key: foreglow keys create admin --tenant {name}")


@tenants.command("quotas")
def quotas(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="None: your own, to look at.")] = None,
    functions: Functions = None,
    concurrency: Concurrency = None,
    package_bytes: PackageBytes = None,
    invocations_per_s: Invocations = None,
    prewarm_instances: Prewarm = None,
    vpcs: Vpcs = None,
    prewarm_idle_s_per_busy_s: Idle = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Show the quotas of a tenant, or change those that are given; `default` takes one back."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client, segment

    given = _read(functions, concurrency, package_bytes, invocations_per_s, prewarm_instances, vpcs, prewarm_idle_s_per_busy_s)
    with Client(state_folder(state)) as client:
        if name is None:
            if given:
                raise Failure("name the tenant whose quotas are to change")
            one = client.get("/v1/tenant")
        else:
            found = [one for one in rows_of(client.get("/v1/tenants"), "tenants") if one["name"] == name]
            if not found:
                raise Failure(f"no tenant {name!r}; foreglow tenants list shows them")
            one = client.put(f"/v1/tenants/{segment(name)}/quotas", {**found[0]["own"], **given}) if given else found[0]
    if json:
        show.as_json(one)
        return
    rows = [
        (
            quota.replace("_", " "),
            "" if one["use"].get(quota) is None else f"{one['use'][quota]:,}",
            f"{one['quotas'][quota]:,}",
            "default" if one["own"][quota] is None else "set",
        )
        for quota in QUOTAS
    ]
    show.console().print(show.table(f"tenant {one['name']}", ("quota", "in use>", "limit>", "from"), rows))


@tenants.command("remove")
def remove(
    name: Name,
    functions: Annotated[bool, typer.Option("--functions", help="Its functions go with it.")] = False,
    state: State = None,
) -> None:
    """Remove a tenant for good: its keys die at once, its code and what was learned of it go. Its name is never given again."""
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        client.delete(f"/v1/tenants/{segment(name)}", functions=functions or None)
    print(f"removed tenant {name}")


@keys.command("list")
def list_keys(tenant: Whose = None, state: State = None, json: Json = False) -> None:
    """List the keys: what for, since when, when used last."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        answer = client.get("/v1/keys", tenant=tenant)
    if json:
        show.as_json(answer)
        return
    rows = [
        (
            one["key_id"],
            f"[bold]{show.plain(one['name'])}[/]",
            one["role"],
            show.ago(one["created"]),
            show.ago(one["last_used"]) or "never",
            f"[red]revoked {show.ago(one['revoked'])}[/]" if one["revoked"] else "[green]live[/]",
        )
        for one in rows_of(answer, "keys")
    ]
    show.console().print(show.table("", ("key", "name", "role", "made", "used last", "state"), rows))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    tenant: Whose = None,
    operator: Annotated[bool, typer.Option("--operator", help="It may run the platform.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Make a key and print its token, this once."""
    import sys

    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    wanted = {"name": name, "role": "operator" if operator else "tenant"}
    with Client(state_folder(state)) as client:
        made = client.post("/v1/keys", wanted, tenant=tenant)
    if json:
        show.as_json(made)
        return
    print(f"key {made['key_id']} ({name}); the token is shown this once, use it as FOREGLOW_KEY:", file=sys.stderr)
    print(made["token"])


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="As foreglow keys list shows it.")],
    tenant: Whose = None,
    state: State = None,
) -> None:
    """Revoke a key: it opens nothing any more."""
    from orchestrator.cli.client import Client, segment

    with Client(state_folder(state)) as client:
        client.delete(f"/v1/keys/{segment(key_id)}", tenant=tenant)
    print(f"revoked {key_id}")


def _read(*given: str | None) -> dict[str, Any]:
    """What was given on the command line, as the API takes it. Raises Failure."""
    found: dict[str, Any] = {}
    for (name, kind), text in zip(QUOTAS.items(), given, strict=True):
        if text is None:
            continue
        try:
            found[name] = None if text == DEFAULT else kind(text)
        except ValueError:
            raise Failure(f"--{name.replace('_', '-')}: {text!r} is neither a number nor `{DEFAULT}`") from None
    return found


def _cell(one: Mapping[str, Any], quota: str) -> str:
    used = one["use"].get(quota)
    return f"{one['quotas'][quota]:,}" if used is None else f"{used:,} / {one['quotas'][quota]:,}"

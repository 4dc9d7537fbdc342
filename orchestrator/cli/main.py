"""The `foreglow` command: every subcommand and where it lives. Heavy imports happen inside the commands."""

import sys

import typer

from orchestrator.cli import (
    deploying,
    doctor,
    events,
    functions,
    imaging,
    invoking,
    joining,
    networking,
    opening,
    owning,
    pricing,
    processes,
    releasing,
    scaling,
    seeing,
    status,
    teaching,
    whatif,
)
from orchestrator.cli.failure import Failure

app = typer.Typer(
    name="foreglow",
    help="Functions in clones of warm templates; the whole call path starts ahead of need.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("up")(processes.up)
app.command("init")(deploying.init)
app.command("deploy")(deploying.deploy)
app.command("invoke")(invoking.invoke)
app.command("list")(functions.list_functions)
app.command("describe")(functions.describe)
app.command("logs")(invoking.logs)
app.command("remove")(functions.remove)
app.command("publish")(releasing.publish)
app.command("versions")(releasing.versions)
app.command("alias")(releasing.alias)
app.command("rollback")(releasing.rollback)
app.add_typer(releasing.releases, name="release")
app.command("graph")(seeing.graph)
app.command("plan")(seeing.plan)
app.command("decisions")(seeing.decisions)
app.command("why")(pricing.why)
app.command("calibration")(pricing.calibration)
app.command("scaling")(scaling.scaling)
app.command("prewarm")(pricing.prewarm)
app.command("runs")(seeing.runs)
app.command("warm")(invoking.warm)
app.command("status")(status.status)
app.command("node-token")(joining.node_token)
app.command("join")(joining.join)
app.add_typer(joining.nodes, name="nodes")
app.add_typer(events.events, name="events")
app.command("whatif")(whatif.whatif)
app.command("doctor")(doctor.doctor)
app.command("open")(opening.open_page)
app.add_typer(imaging.image, name="image")
app.add_typer(teaching.traces, name="traces")
app.add_typer(networking.vpc, name="vpc")
app.add_typer(owning.tenants, name="tenants")
app.add_typer(owning.keys, name="keys")
app.command("control")(processes.control)
app.command("flow")(processes.flow)
app.command("gateway")(processes.gateway)
app.command("planner")(processes.planner)
app.command("node")(processes.node)
app.command("zone-cache")(processes.zone_cache)
app.command("page")(processes.page)


MAX_NAME = 200  # of a file that is told of


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="foreglow")
    except Failure as failure:
        print(f"foreglow: {failure}", file=sys.stderr)
        if failure.more:
            print(failure.more.rstrip("\n"), file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"foreglow: {str(error.filename)[:MAX_NAME]!r}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

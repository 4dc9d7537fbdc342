"""The `foreglow` command: every subcommand and where it lives. Heavy imports happen inside the commands."""

import sys

import typer

from orchestrator.cli import processes
from orchestrator.cli.failure import Failure

app = typer.Typer(
    name="foreglow",
    help="Functions in clones of warm templates; the whole call path starts ahead of need.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (
    processes.up,
    processes.control,
    processes.flow,
    processes.gateway,
    processes.planner,
    processes.node,
):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="foreglow")
    except Failure as failure:
        print(f"foreglow: {failure}", file=sys.stderr)
        if failure.more:
            print(failure.more.rstrip("\n"), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

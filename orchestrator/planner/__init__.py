"""Takes in triggers, records and traces; keeps the call graph; plans prewarms; tells why."""

from orchestrator.settings import Settings


def run(settings: Settings) -> None:
    """`foreglow planner`: blocks until SIGTERM."""
    from orchestrator.planner.serving import run as run_planner

    run_planner(settings)

"""The management API: functions, packages, and what the planner and nodes know. Pydantic stops here."""

from orchestrator.settings import Settings


def run(settings: Settings) -> None:
    """`foreglow control`: blocks until SIGTERM."""
    from orchestrator.control.app import run as run_control

    run_control(settings)

"""The control flow: a relay sends open events to Celery modules, each with its own queue. Never on a request's path."""

from orchestrator.settings import Settings


def run(settings: Settings) -> None:
    """`foreglow flow`: blocks until SIGTERM. Waits for the database's schema and for Redis as long as it takes."""
    from orchestrator.flow.process import run as run_flow

    run_flow(settings)

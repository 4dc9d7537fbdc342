"""Invocations, the data flow: authenticate, resolve, place, invoke, answer. Knows routes and nodes; no database, no Celery."""

from orchestrator.settings import Settings


def run(settings: Settings) -> None:
    """`foreglow gateway`: blocks until SIGTERM; in-flight invocations are finished first."""
    from orchestrator.gateway.serving import run as run_gateway

    run_gateway(settings)

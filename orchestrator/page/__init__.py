"""The live page: what the API knows, watched in a browser. A process of its own that reads control's API like any client."""

from orchestrator.settings import Settings


def run(settings: Settings) -> None:
    """`foreglow page`: blocks until SIGTERM."""
    from orchestrator.page.serving import run as run_page

    run_page(settings, settings.control_address)

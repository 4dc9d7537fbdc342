"""The live page: what the API knows, watched in a browser. A process of its own that reads control's API like any client."""

from typing import TYPE_CHECKING

from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.page.serving import Beside


def run(settings: Settings, beside: "Beside") -> None:
    """`foreglow page`: blocks until SIGTERM. `beside` makes what tells operators of it."""
    from orchestrator.page.serving import run as run_page

    run_page(settings, settings.control_address, beside)

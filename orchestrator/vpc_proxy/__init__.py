"""The process inside a private network: nodes reach it, and it reaches the network's servers for their functions."""

from orchestrator.settings import Settings


def run(settings: Settings, vpc: str = "", listen: str = "", backup: bool = False) -> None:
    """`foreglow vpc proxy`: blocks until SIGTERM. `vpc`, `listen`, `backup`: as the command line says, beside control only."""
    from orchestrator.vpc_proxy.serving import run as run_proxy

    run_proxy(settings, vpc, listen, backup)

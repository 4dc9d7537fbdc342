"""Tier 2 of a zone: all code of its tenants, near the nodes, in front of the origin."""

from orchestrator.settings import Settings


def run(settings: Settings) -> None:
    """`foreglow zone-cache`: blocks until SIGTERM."""
    from orchestrator.zone_cache.serving import run as run_zone_cache

    run_zone_cache(settings)

"""Which backend a node's tunnels have: the first that works when it is tried, the better ones first."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog

from workers.network.none import NoPlane
from workers.ports import TunnelPlane

START_S = 20.0
AUTO, NONE = "auto", "none"

log = structlog.get_logger(__name__)


class Backend(msgspec.Struct, frozen=True):
    """`make(why not a better one)` gives a plane that was not started. It raises OSError when it is out of the question here."""

    name: str
    make: Callable[[str], TunnelPlane]


async def choose(backends: Sequence[Backend], wanted: str = AUTO) -> TunnelPlane:
    """Started. `wanted`: auto, the name of one, or none; one that was named is not replaced by another."""
    if wanted == NONE:
        return NoPlane("this node was started with tunnels = none")
    refused: list[str] = []
    for backend in backends:
        if wanted not in (AUTO, backend.name):
            continue
        try:
            plane = backend.make("; ".join(refused) if wanted == AUTO else "it was asked for")
        except OSError as error:
            refused.append(f"{backend.name}: {said(error)}")
            continue
        try:
            async with asyncio.timeout(START_S):
                await plane.start()
        except (OSError, TimeoutError) as error:
            refused.append(f"{backend.name}: {said(error)}")
            await plane.stop()
        except BaseException:
            await plane.stop()
            raise
        else:
            return plane
    for why in refused:
        log.warning("tunnels.refused", reason=why)
    return NoPlane("; ".join(refused) or f"this release has no backend {wanted!r}")


def said(error: OSError | TimeoutError) -> str:
    """In words for whoever runs the node."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or "it took too long"

"""Tries both backends of private networks and says why one does not work: `python -m orchestrator.doctor.tunnels`, a process of
its own."""

import asyncio
import sys

import msgspec

from workers.drivers.process.isolation import enter_user_namespace


async def _probe() -> dict[str, str]:
    """By backend why it does not work here; empty: it does."""
    from workers.network.choosing import START_S, said
    from workers.network.kernel.plane import KernelPlane
    from workers.network.portable.plane import PortablePlane
    from workers.networks import own_address
    from workers.ports import TunnelPlane

    found: dict[str, str] = {}
    planes: list[TunnelPlane] = [KernelPlane(own_address(), PROBE_NUMBER), PortablePlane(None)]
    for plane in planes:
        try:
            async with asyncio.timeout(START_S):
                await plane.start()
        except (OSError, TimeoutError) as error:
            found[plane.backend] = said(error)
        else:
            found[plane.backend] = ""
        finally:
            await plane.stop()
    return found


PROBE_NUMBER = 65535
"""No tunnel is opened under it."""

if __name__ == "__main__":
    enter_user_namespace()  # with one thread, as a node does
    try:
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_probe())))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(1)

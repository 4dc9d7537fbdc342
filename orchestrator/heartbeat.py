"""How a link notices that its peer has gone silent: nothing heard for SILENT_S, counted only while this process itself runs."""

import asyncio

SILENT_S = 2.5
"""A node tells its whole inventory once a second: two in a row are missing, and a half."""

TICK_S = 0.25


class Pulse:
    """`beat` at every message; `tick` says True once the peer is silent. Time in which this process itself stood still (stopped,
    starved) hardly counts: whoever comes back to life must not take everybody else for dead."""

    def __init__(self, silent_s: float = SILENT_S) -> None:
        self._silent_s = silent_s
        self._quiet = 0.0

    def beat(self) -> None:
        self._quiet = 0.0

    def tick(self, elapsed: float) -> bool:
        self._quiet += min(elapsed, 2 * TICK_S)
        return self._quiet >= self._silent_s


async def until_lost(lost: asyncio.Event, pulse: Pulse) -> bool:
    """Waits for the end of a connection. True when the peer went silent instead."""
    loop = asyncio.get_running_loop()
    pulse.beat()
    before = loop.time()
    while True:
        try:
            async with asyncio.timeout(TICK_S):
                await lost.wait()
        except TimeoutError:
            now = loop.time()
            if pulse.tick(now - before):
                return True
            before = now
        else:
            return False

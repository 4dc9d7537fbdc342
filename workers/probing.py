"""One question to a guest that is ready: does it answer, after its init? Asked of what is to get traffic with nobody watching."""

import asyncio
from collections.abc import Callable

from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import Frame
from workers.ports import Clone, DriverError

PROBE_S = 5.0


class ProbeFailed(DriverError):
    """Its guest did not answer, or ended instead."""


async def probe(clone: Clone | None, on_frame: Callable[[Frame], None], timeout_s: float = PROBE_S) -> None:
    """Other frames of the guest go on to `on_frame`. Raises ProbeFailed: nothing is left of the clone then."""
    if clone is None:
        raise ProbeFailed("it is gone")
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def heard(frame: Frame) -> None:
        if frame.kind != FromGuest.PONG:
            on_frame(frame)
        elif not answered.done():
            answered.set_result(None)

    def ended(reason: str) -> None:
        if not answered.done():
            answered.set_exception(ProbeFailed(reason))

    clone.on_frame, clone.on_exit = heard, ended
    clone.send(ToGuest.PING, 0)
    try:
        async with asyncio.timeout(timeout_s):
            await answered
    except TimeoutError:
        await clone.kill("it did not answer a probe")
        raise ProbeFailed(f"its guest did not answer within {timeout_s:g} s of its init") from None

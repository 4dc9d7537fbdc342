"""Goes once through all that an instance does with a function of our own, so that the guest's code is in memory and, emulated,
translated. The runtime that did it ends, and a fresh one takes its place: what is kept has run nothing."""

import asyncio
from collections.abc import Mapping

import msgspec

from workers.drivers.frames import FromGuest, FromInit, ToGuest, ToInit
from workers.drivers.microvm.machine import Machine
from workers.framing import Frame
from workers.ports import DriverError

SOURCE = """
def handler(event, context):
    print("exercise")
    return context.invoke("exercise", event)
"""
INVOCATIONS = 3
STEP_TIMEOUT_S = 30.0
PAYLOAD = b'{"a":[1,2.5,null,"text"]}'

Warmth = tuple[Mapping[str, object], bytes]
"""SOURCE as the guest takes it: what SPECIALISE's meta has beside the usual, and its body."""

_encode = msgspec.json.Encoder().encode


async def exercise(machine: Machine, code: Warmth) -> None:
    """Raises DriverError, TimeoutError; its answers are not looked at."""
    frames: asyncio.Queue[Frame] = asyncio.Queue()
    before, machine.on_frame = machine.on_frame, frames.put_nowait
    gone = asyncio.ensure_future(machine.qemu.gone.wait())
    meta, body = code
    told = {"version": "-/exercise:1", "handler": "exercise:handler", "kind": "event", "environment": {}, **meta}
    try:
        machine.activate(told, body, hostname="standby", clock=True)
        await _until(frames, gone, FromGuest.READY)
        for number in range(1, INVOCATIONS + 1):
            head = {"invocation": "exercise", "content_type": "application/json", "deadline_s": STEP_TIMEOUT_S, "depth": 0}
            machine.channel.send(ToGuest.INVOKE, number, _encode(head), PAYLOAD)
            call = await _until(frames, gone, FromGuest.CALL)
            answer = _encode({"status": "ok", "content_type": "application/json"})
            machine.channel.send(ToGuest.CALL_RESULT, call.id, answer, PAYLOAD)
            await _until(frames, gone, FromGuest.RESULT)
        standing = machine.heard(FromInit.STANDING)
        machine.tell(ToInit.RENEW, {})
        await asyncio.wait_for(standing, STEP_TIMEOUT_S)
    finally:
        gone.cancel()
        machine.on_frame = before


async def _until(frames: "asyncio.Queue[Frame]", gone: "asyncio.Future[bool]", kind: int) -> Frame:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while True:
            got = asyncio.ensure_future(frames.get())
            await asyncio.wait({got, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not got.done():
                got.cancel()
                raise DriverError("the microVM ended while it was exercised")
            frame = got.result()
            if frame.kind == kind:
                return frame
            if frame.kind in (FromGuest.ERROR, FromGuest.RESULT):
                raise DriverError(f"the exercise of a microVM failed: {frame.meta[:500].decode(errors='replace')}")

"""Goes once through all that an instance does with a function of our own, so that the guest's code is in memory and, emulated,
translated. The runtime then forgets it, and waits as before: what is kept has run nothing of anybody's."""

import asyncio
from typing import Any, Literal

import msgspec

from workers.drivers.frames import FromGuest, FromInit, ToGuest, ToInit
from workers.drivers.microvm.carried import Carried
from workers.drivers.microvm.code import written
from workers.drivers.microvm.machine import Machine
from workers.framing import Frame
from workers.ports import DriverError

SOURCE = """
def handler(event, context):
    {first}
    print("exercise")
    return context.invoke("exercise", event)
"""
WARMTH = written({"exercise.py": SOURCE.format(first="pass")})
TOUCHED = "import csv, decimal, statistics, zipfile"
"""All are loaded, and no exercise of a template counts references to them: their pages, still shared with the first process, are
copied in the standby, and the kernel's way of doing that is translated there."""
STANDBYS_WARMTH = written({"exercise.py": SOURCE.format(first=TOUCHED)})
INVOCATIONS = 3
STEP_TIMEOUT_S = 30.0
PAYLOAD = b'{"a":[1,2.5,null,"text"]}'

_encode = msgspec.json.Encoder().encode


async def exercise(machine: Machine, code: Carried = WARMTH) -> None:
    """Raises DriverError, TimeoutError; its answers are not looked at."""
    frames: asyncio.Queue[Frame] = asyncio.Queue()
    before, machine.on_frame = machine.on_frame, frames.put_nowait
    gone = asyncio.get_running_loop().create_task(machine.qemu.gone.wait())
    told = {"version": "-/exercise:1", "handler": "exercise:handler", "kind": "event", "environment": {}, "exercise": INVOCATIONS}
    try:
        machine.activate(told, code, "standby", clock=True)
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


async def _until(frames: "asyncio.Queue[Frame]", gone: "asyncio.Task[Literal[True]]", kind: int) -> Frame:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while True:
            got = asyncio.ensure_future(frames.get())
            both: set[asyncio.Future[Any]] = {got, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not got.done():
                got.cancel()
                raise DriverError("the microVM ended while it was exercised")
            frame = got.result()
            if frame.kind == kind and not (kind == FromGuest.READY and b'"error"' in frame.meta):
                return frame
            if frame.kind in (FromGuest.ERROR, FromGuest.RESULT, FromGuest.READY):
                raise DriverError(f"the exercise of a microVM failed: {frame.meta[:500].decode(errors='replace')}")

"""One microVM that runs: its QEMU, and the wires to the two processes in it that matter."""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from workers.drivers.cells import Cell
from workers.drivers.frames import FromInit, ToGuest, ToInit
from workers.drivers.microvm.carried import Carried
from workers.drivers.microvm.confinement import Confinement
from workers.drivers.microvm.image import GuestImage
from workers.drivers.microvm.qemu import Ends, Qemu, Shape, arguments, spawn
from workers.drivers.microvm.taps import Tap
from workers.drivers.wire import CLOSED, OUTPUT_BURST, OUTPUT_PER_S, Wire
from workers.framing import Frame
from workers.ports import DriverError

RESUME_TIMEOUT_S = 20.0
BOOT_TIMEOUT_S = 120.0
"""An emulated machine on a busy host takes its time."""
PAUSE_TIMEOUT_S = 5.0
HOLD_TIMEOUT_S = 20.0
DISK_TIMEOUT_S = 5.0
IGNORE_SHARED = ("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]})

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class Place:
    """What a machine takes up on the host: a user (0: ours), control groups, a network namespace with a tap."""

    confinement: Confinement
    user: int = 0
    cell: Cell | None = None
    tap: Tap | None = None

    def confined(self, line: Sequence[str]) -> list[str]:
        """The command line that runs `line` here."""
        return self.confinement.command(line, self.user, self.cell, -1 if self.tap is None else self.tap.namespace)


class Machine:
    """Made by `boot` and `resume`. Callbacks run on the event loop; the owner may replace them at any time.

    `on_frame` gets the runtime's frames, `on_init` those of the machine's first process with their meta read. `on_gone` is
    called once, with a reason, when the QEMU has ended for whatever cause: then nothing is left but the owner's `place`."""

    def __init__(self, line: Callable[[Sequence[int]], list[str]], descriptors: Sequence[int], place: Place) -> None:
        """Raises DriverError, with nothing left but `place`."""
        self.place = place
        self.on_frame: Callable[[Frame], None] = lambda _frame: None
        self.on_init: Callable[[int, dict[str, Any], Frame], None] = lambda _kind, _meta, _frame: None
        self.on_gone: Callable[[str], None] = lambda _reason: None
        self.paused = False
        self.thread = 0  # that runs the guest's CPU
        self._reason = ""
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        tap = [] if place.tap is None else [place.tap.tap]
        try:
            ends = Ends.open()
        except OSError as error:
            raise DriverError(f"descriptors of a microVM: {error.strerror}") from error
        monitor, channel, init = ends.ours
        try:
            theirs = [sock.fileno() for sock in ends.theirs]
            self.qemu: Qemu = spawn(place.confined(line(theirs)), [*theirs, *descriptors, *tap], monitor, self._ended)
        except BaseException:
            ends.close()
            raise
        finally:
            ends.close_theirs()
        if place.tap is not None:
            place.tap.handed_over()
        self.channel = Wire(channel, self._take, self._lost)
        self.init = Wire(init, self._take_init, self._lost, OUTPUT_PER_S, OUTPUT_BURST)  # what it says at length is output

    # -- what comes

    def _take(self, frame: Frame) -> None:
        self.on_frame(frame)

    def _take_init(self, frame: Frame) -> None:
        """Raises what the guest provokes with nonsense: the wire ends it."""
        meta = _decode(frame.meta) if frame.meta else {}
        if frame.kind == FromInit.ASK_CLOCK:
            self.tell(ToInit.CLOCK, {"now_ns": time.time_ns()})
        elif (future := self._answers.pop(frame.kind, None)) is not None and not future.done():
            future.set_result(meta)
        else:
            self.on_init(frame.kind, meta, frame)

    def heard(self, kind: int) -> "asyncio.Future[dict[str, Any]]":
        """The meta of the next such frame of the first process; fails with DriverError when the machine goes first."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda one: one.cancelled() or one.exception())
        self._answers[kind] = future
        if self.qemu.gone.is_set():
            future.set_exception(DriverError(self._reason))
        return future

    def tell(self, kind: int, meta: Mapping[str, Any]) -> None:
        self.init.send(kind, 0, _encode(meta))

    # -- life

    async def hello(self) -> None:
        await self.qemu.qmp.run("qmp_capabilities", RESUME_TIMEOUT_S)

    async def incoming(self, state: int) -> None:
        """Loads the state and runs. Raises DriverError, TimeoutError."""
        qmp = self.qemu.qmp
        running = qmp.event("RESUME")
        greeting: tuple[str, Mapping[str, Any]] = ("qmp_capabilities", {})
        cpus = qmp.post(greeting, IGNORE_SHARED, ("migrate-incoming", {"uri": f"fd:{state}"}), ("query-cpus-fast", {}))
        async with asyncio.timeout(RESUME_TIMEOUT_S):
            found = await cpus
            await running
        with contextlib.suppress(LookupError, TypeError, ValueError):
            self.thread = int(found[0]["thread-id"])

    def activate(self, meta: Mapping[str, Any], code: Carried, hostname: str, clock: bool) -> None:
        """Makes it an instance: fresh identity and `code`, then `meta` as SPECIALISE. `clock`: tell the time now, which is right
        only for one that reads at once; a cold one asks. Raises DriverError."""
        identity: dict[str, Any] = {
            "entropy": secrets.token_hex(32),
            "hostname": hostname,
            "files": code.files,
            "disks": code.disks,
        }
        if self.paused:
            self.paused = False
            self.qemu.qmp.post(("cont", {}))
        if clock:
            identity["now_ns"] = time.time_ns()  # reading a fraction is dear in a cold guest
        self.init.send(ToInit.ACTIVATE, 0, _encode(identity), code.body)
        told = {**meta, "entropy": secrets.token_hex(32), "paths": code.paths}
        self.channel.send(ToGuest.SPECIALISE, 0, _encode(told))

    async def put_in(self, images: Sequence[int]) -> None:
        """Makes the images (descriptors) its disks, which were empty. The guest must not have looked at them. Raises DriverError,
        TimeoutError."""
        for number, image in enumerate(images):
            file = {"driver": "file", "node-name": f"image{number}", "read-only": True, "locking": "off"}
            disk = {"driver": "raw", "node-name": f"disk{number}", "file": f"image{number}", "read-only": True}
            done = self.qemu.qmp.post(
                ("add-fd", {"fdset-id": number}),
                ("blockdev-add", {**file, "filename": f"/dev/fdset/{number}"}),
                ("blockdev-reopen", {"options": [disk]}),
                descriptors=[image],
            )
            await asyncio.wait_for(done, DISK_TIMEOUT_S)

    async def pause(self) -> None:
        """Takes no CPU from then on, until `activate`. Raises DriverError, TimeoutError."""
        await self.qemu.qmp.run("stop", PAUSE_TIMEOUT_S)
        self.paused = True

    async def hold(self) -> None:
        """Stops every thread of the function that runs in it, until `activate` of a clone. Raises DriverError."""
        frozen = self.heard(FromInit.FROZEN)
        self.tell(ToInit.HOLD, {})
        try:
            stopped = (await asyncio.wait_for(frozen, HOLD_TIMEOUT_S)).get("frozen") is True
        except TimeoutError:
            stopped = False
        if not stopped:
            raise DriverError("what the import started could not be stopped for the snapshot, so clones would not be safe")

    # -- the end

    def lives(self) -> None:
        """Raises DriverError when it has ended."""
        if self.qemu.gone.is_set():
            raise DriverError(self._reason)

    def end(self, reason: str) -> None:
        """Kills; the first reason counts."""
        if not self._reason:
            self._reason = reason
        self.qemu.kill()

    def _lost(self, why: str) -> None:
        self.end("" if why == CLOSED else why)

    def _ended(self, how: str) -> None:
        self.channel.drain()
        self.init.drain()
        self.channel.close()
        self.init.close()
        self._reason = self._reason or f"the microVM ended: {how}"
        for future in self._answers.values():
            if not future.done():
                future.set_exception(DriverError(self._reason))
        self._answers.clear()
        self.on_gone(self._reason)

    async def gone(self, timeout_s: float) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self.qemu.gone.wait()


def line_of(
    shape: Shape,
    memory: int,
    image: GuestImage | None = None,
    *,
    shared: bool = False,
    tap: int | None = None,
    images: Sequence[int] = (),
) -> Callable[[Sequence[int]], list[str]]:
    """As qemu.arguments, with descriptors. `image`: it boots."""
    path = f"/proc/self/fd/{memory}"
    return lambda ends: arguments(shape, ends, path, shared=shared, tap=tap, boot=image, images=images)


def reopened(descriptor: int) -> int:
    """The same file with a position of its own, to read. Raises OSError."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)

"""Templates: a machine's memory and state at rest. Made once per shape by booting, and cloned many times.

Both are files in memory without a name, sealed once written: nobody can write them any more, whoever opens them, QEMU and the
node included; and they are gone with the last process that holds them, however the node ends (docs/decisions/0025)."""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from workers.drivers.frames import FromInit
from workers.drivers.microvm.exercise import exercise
from workers.drivers.microvm.fingerprint import Fingerprint
from workers.drivers.microvm.image import GuestImage
from workers.drivers.microvm.machine import BOOT_TIMEOUT_S, IGNORE_SHARED, Machine, Place, line_of, reopened
from workers.drivers.microvm.qemu import Shape
from workers.ports import DriverError

EXERCISES = 4
SETTLE_S = 0.2  # until the guest's kernel has done what it put off
SAVE_TIMEOUT_S = 30.0
POLL_S = 0.005
COPY_SIZE = 64 << 20
KILL_TIMEOUT_S = 10.0
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Template:
    """`memory_bytes`: what the files hold. `made`: clones so far. `images`: of the disks that are in the machine."""

    def __init__(self, shape: Shape, fingerprint: Fingerprint, memory: int, state: int, images: Sequence[int] = ()) -> None:
        """Takes the descriptors over."""
        self.shape = shape
        self.fingerprint = fingerprint
        self.memory, self.state, self.images = memory, state, images
        self.memory_bytes = sum(os.fstat(one).st_blocks * 512 for one in (memory, state))
        self.made = 0
        self.born = time.monotonic()
        self.closed = False

    async def clone(self, place: Place, memory: int = -1) -> Machine:
        """A machine that runs from here on, in `place`, which stays the caller's. `memory`: a copy of this one's file, which it
        writes. Raises DriverError, TimeoutError."""
        if self.closed:
            raise DriverError("the template is gone")
        state = reopened(self.state)
        try:
            tap = None if place.tap is None else place.tap.tap
            shared, memory = memory >= 0, memory if memory >= 0 else self.memory
            line = line_of(self.shape, memory, shared=shared, tap=tap, images=self.images)
            machine = Machine(line, [memory, state, *self.images], place)
            try:
                await machine.incoming(state)
                machine.lives()  # it may have ended since: from here on its owner is told
            except BaseException:
                await _away(machine, "it did not resume")
                raise
        finally:
            os.close(state)
        self.made += 1
        return machine

    def close(self) -> None:
        """Its clones live on. Idempotent."""
        if not self.closed:
            self.closed = True
            for descriptor in (self.memory, self.state, *self.images):
                os.close(descriptor)


async def boot(shape: Shape, image: GuestImage, fingerprint: Callable[[], Fingerprint], place: Place) -> Template:
    """Starts a machine, exercises it and keeps it; `place` is free again after. Raises DriverError, TimeoutError."""
    if not (image.kernel.exists() and image.initramfs.exists()):
        raise DriverError(
            f"the guest image is not in {image.kernel.parent} any more: restart the node, which takes the one made since"
        )
    memory = blank("memory", shape.machine_mb << 20)
    try:
        tap = None if place.tap is None else place.tap.tap
        machine = Machine(line_of(shape, memory, image, shared=True, tap=tap), [memory], place)
        try:
            standing = machine.heard(FromInit.STANDING)
            await machine.hello()
            try:
                await asyncio.wait_for(standing, BOOT_TIMEOUT_S)
            except TimeoutError as error:
                said = machine.qemu.words() or "nothing"
                raise DriverError(f"the guest did not come up in {BOOT_TIMEOUT_S:.0f} s; its console says {said}") from error
            for _ in range(EXERCISES):
                await exercise(machine)
            await asyncio.sleep(SETTLE_S)
            taken = fingerprint()
            state = await saved(machine)
        finally:
            await _away(machine, "its template was made")
    except BaseException:
        os.close(memory)
        raise
    return sealed(shape, taken, memory, state)


async def saved(machine: Machine) -> int:
    """The machine's state, but for its memory, in a file; it stands still after. Raises DriverError, TimeoutError."""
    qmp, state = machine.qemu.qmp, blank("state", 0)
    try:
        async with asyncio.timeout(SAVE_TIMEOUT_S):
            await qmp.post(IGNORE_SHARED, ("migrate-set-parameters", {"max-bandwidth": 1 << 40}))
            await qmp.run("getfd", SAVE_TIMEOUT_S, fdname="state", descriptors=[state])
            await qmp.run("migrate", SAVE_TIMEOUT_S, uri="fd:state")
            while (told := _told(await qmp.run("query-migrate", SAVE_TIMEOUT_S))).get("status") != "completed":
                if told.get("status") in ("failed", "cancelled"):
                    why = str(told.get("error-desc", "no reason given"))[:500]
                    raise DriverError(f"the machine's state could not be kept: {why}")
                await asyncio.sleep(POLL_S)
    except BaseException:
        os.close(state)
        raise
    return state


def _told(answer: Any) -> dict[str, Any]:
    """A tenant's code has run in the original of a function template: what its QEMU says may be a guest's words."""
    if not isinstance(answer, dict):
        raise DriverError("QEMU's monitor says nonsense of the machine's state")
    return answer


def sealed(shape: Shape, fingerprint: Fingerprint, memory: int, state: int, images: Sequence[int] = ()) -> Template:
    """Takes the descriptors over. Raises DriverError."""
    try:
        for one in (memory, state):
            fcntl.fcntl(one, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        for descriptor in (memory, state, *images):
            os.close(descriptor)
        raise DriverError(f"the template could not be sealed: {error.strerror}") from error
    return Template(shape, fingerprint, memory, state, images)


def copied(memory: int) -> int:
    """Another file with the same content, holes kept, that can be written. Blocks for as long as memory is copied. Raises
    DriverError."""
    size = os.fstat(memory).st_size
    made = blank("memory", size)
    try:
        at = 0
        while at < size:
            try:
                at = os.lseek(memory, at, os.SEEK_DATA)
            except OSError:
                break  # a hole up to the end
            end = os.lseek(memory, at, os.SEEK_HOLE)
            os.lseek(made, at, os.SEEK_SET)
            while at < end:
                at += os.sendfile(made, memory, at, min(end - at, COPY_SIZE))
    except OSError as error:
        os.close(made)
        raise DriverError(f"memory of a microVM: {error.strerror}") from error
    return made


def blank(name: str, size: int) -> int:
    try:
        descriptor = os.memfd_create(f"foreglow-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise DriverError(f"memory of a microVM: {error.strerror}") from error
    return descriptor


async def _away(machine: Machine, reason: str) -> None:
    machine.end(reason)
    await machine.gone(KILL_TIMEOUT_S)

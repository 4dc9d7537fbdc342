"""One microVM seen from the node: standby, then instance, then gone."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from workers.drivers import watch
from workers.drivers.conversation import Conversation
from workers.drivers.frames import FromInit, ToInit
from workers.drivers.microvm.carried import Carried
from workers.drivers.microvm.code import CodeSource, Given
from workers.drivers.microvm.exercise import STANDBYS_WARMTH, exercise
from workers.drivers.microvm.machine import Machine
from workers.drivers.microvm.taps import GUEST_ADDRESS, TAP_NAME
from workers.framing import Frame
from workers.ports import DriverError, InitReport, SandboxNetwork, Specialisation, Usage

KILL_TIMEOUT_S = 10.0
IDLE_S = 0.03  # of a standby before it is paused: the way into idleness, and what comes with it, is translated too
MOST_BYTES, MOST_PROCESSES = 1 << 40, 1 << 22
CODED = Carried()  # a function template has it


class MicroVmClone(Conversation):
    """Implements workers.ports.Clone. Made by MicroVmDriver. `freed` is called once, after its QEMU has gone.

    `coded`: it has its code already, as a clone of a function template does."""

    def __init__(
        self,
        clone_id: str,
        memory_mb: int,
        machine: Machine,
        code: CodeSource,
        freed: Callable[["MicroVmClone"], None],
        coded: bool = False,
    ) -> None:
        super().__init__()
        self.clone_id = clone_id
        self.memory_mb = memory_mb
        self.machine = machine
        self.pid = machine.qemu.pid
        self.standing = False  # exercised: what it is told it reads at once
        self.code: CodeSource | Given = code
        self._freed = freed
        self._coded = coded
        self._usage: Usage | None = None
        self._status = ""
        machine.on_frame = self._on_frame
        machine.on_init = self._on_init
        machine.on_gone = self._gone

    @property
    def network(self) -> SandboxNetwork | None:
        tap = self.machine.place.tap
        return SandboxNetwork(tap.namespace, TAP_NAME, GUEST_ADDRESS) if tap is not None and tap.namespace >= 0 else None

    async def specialise(self, work: Specialisation, timeout_s: float) -> InitReport:
        if self._reason:
            raise DriverError(f"the sandbox has gone: {self._reason}")
        began = time.perf_counter()
        meta: dict[str, Any] = {
            "version": work.version,
            "handler": work.handler,
            "kind": work.kind,
            "concurrency": work.concurrency,
            "memory_mb": work.memory_mb,
            "environment": dict(work.environment),
        }
        if work.withheld is not None:
            meta["withheld"] = work.withheld
        carried = CODED if self._coded else await self.code.carry(work.layers)
        try:
            await self.machine.put_in(carried.descriptors)
        finally:
            carried.close()
        name = work.version.partition("/")[2].replace(":", "-")[:63] or "function"
        self.machine.activate(meta, carried, name, self.standing)
        return await self._report(began, timeout_s)

    async def rest(self) -> None:
        try:
            await exercise(self.machine, STANDBYS_WARMTH)
            await asyncio.sleep(IDLE_S)
            await self.machine.pause()
        except TimeoutError as error:
            raise DriverError("a microVM took too long to become a standby") from error
        self.standing = True

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"") -> None:
        self.machine.channel.send(kind, ident, meta, body)

    def _on_init(self, kind: int, meta: dict[str, Any], frame: Frame) -> None:
        if kind == FromInit.OUTPUT:
            self.on_output("err" if meta.get("stream") == "err" else "out", frame.body)
        elif kind == FromInit.COUNTED:
            self._usage = _counted(meta["memory_bytes"], meta["processes"])
        elif kind == FromInit.EXIT:
            signal = meta.get("signal")
            self._status = f"exit {int(meta.get('code', 0))}" if signal is None else f"signal {int(signal)}"
            if meta.get("out_of_memory"):
                self._end(self._short)
            else:
                self._end(f"the sandbox ended by itself ({self._status})")

    @property
    def _short(self) -> str:
        return f"out of memory: the sandbox needed more than {self.memory_mb} MB"

    def speculative(self, on: bool) -> None:
        cell = self.machine.place.cell
        if cell is not None and not self._ended.is_set():
            with contextlib.suppress(OSError):
                cell.speculative(on)

    def cpu(self) -> tuple[float, bool] | None:
        return watch.cpu(self.machine.thread) if self.machine.thread else None

    def usage(self) -> Usage | None:
        """What the guest said when it was asked last; each call asks again."""
        if self._ended.is_set():
            return None
        if not self.machine.paused:  # one that stands still reads nothing
            self.machine.tell(ToInit.COUNT, {})
        return self._usage

    # -- the end

    async def kill(self, reason: str) -> None:
        self._end(reason)
        try:
            await asyncio.wait_for(self._ended.wait(), KILL_TIMEOUT_S)
        except TimeoutError as error:
            raise DriverError(f"microVM {self.clone_id} (process {self.pid}) did not die in {KILL_TIMEOUT_S:g} s") from error

    def _end(self, reason: str) -> None:
        if not self._reason:
            self._reason = reason
        self.machine.end(reason)

    def _gone(self, reason: str) -> None:
        if not self._reason:
            cell = self.machine.place.cell
            self._reason = self._short if cell is not None and cell.ran_out_of_memory() else reason
        self._freed(self)
        self._finished()


def _counted(memory_bytes: object, processes: object) -> Usage:
    """What a guest says of itself. Raises ValueError when it is nothing a machine could have."""
    if not isinstance(memory_bytes, int) or not isinstance(processes, int):
        raise ValueError("a count that is no number")
    if not 0 <= memory_bytes <= MOST_BYTES or not 0 <= processes <= MOST_PROCESSES:
        raise ValueError("a count that is out of range")
    return Usage(memory_bytes, processes)

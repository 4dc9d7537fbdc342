"""One sandbox seen from the node: standby, then instance, then gone."""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable

from workers.drivers import syscalls, watch
from workers.drivers.cells import Cell
from workers.drivers.conversation import Conversation, encode
from workers.drivers.frames import ToGuest
from workers.drivers.process.isolation import LAYERS_AT
from workers.drivers.process.layers import LayerSource
from workers.drivers.wire import CLOSED, OutputPipe, Wire
from workers.ports import DriverError, InitReport, SandboxNetwork, Specialisation, Usage

KILL_TIMEOUT_S = 10.0
STATUS_WAIT_S = 0.05  # the exit status comes from the template, on another descriptor than the exit


class ProcessClone(Conversation):
    """Implements workers.ports.Clone. Made by ProcessDriver. `freed` is called once, after the last process has gone.

    `coded`: it has its code already, as the original of a function template and its clones do. `members`: its processes,
    where they are not those below its first. `worker`: the one whose CPU counts, likewise.
    """

    def __init__(
        self,
        clone_id: str,
        memory_mb: int,
        process: tuple[int, int],
        channel: socket.socket,
        outputs: dict[str, int],
        cell: Cell | None,
        layers: LayerSource | None,
        freed: Callable[["ProcessClone"], None],
        coded: bool = False,
        worker: int = 0,
        members: Callable[[], list[int]] | None = None,
    ) -> None:
        super().__init__()
        self.clone_id = clone_id
        self.memory_mb = memory_mb
        self.pid, self._pidfd = process
        self.cell = cell
        self._layers = layers
        self._freed = freed
        self._coded = coded
        self._sandboxed = layers is not None
        self.worker = worker or self.pid
        self._members = members or (lambda: watch.members(self.pid))
        self._dead = False
        self._network: SandboxNetwork | None = None
        self._status = ""
        self._wire = Wire(channel, self._on_frame, self._end)
        self._pipes = [OutputPipe(outputs[stream], self._writer(stream)) for stream in outputs]
        self._loop.add_reader(self._pidfd, self._exited)

    @property
    def network(self) -> SandboxNetwork | None:
        """Opened when it is first asked for: few are."""
        if self._network is None and self._sandboxed and not self._dead:
            try:
                namespace = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
            self._network = SandboxNetwork(namespace)
            if watch.pid_of(self._pidfd) != self.pid:  # its number may be another's by now
                self._close_network()
        return self._network

    def _close_network(self) -> None:
        if self._network is not None:
            os.close(self._network.namespace)
            self._network = None

    # -- life

    async def specialise(self, work: Specialisation, timeout_s: float) -> InitReport:
        if self._dead:
            raise DriverError(f"the sandbox has gone: {self._reason}")
        began = time.perf_counter()
        layers = self._layers
        inside = LAYERS_AT if layers is not None else map(str, work.layers)
        meta = {
            "version": work.version,
            "handler": work.handler,
            "kind": work.kind,
            "concurrency": work.concurrency,
            "memory_mb": work.memory_mb,
            "environment": dict(work.environment),
            "paths": [path for path, _ in zip(inside, work.layers, strict=False)],
            "entropy": secrets.token_hex(32),
            "now": time.time(),
        }
        if work.withheld is not None:
            meta["withheld"] = work.withheld
        trees: list[int] = []
        try:
            if layers is not None and not self._coded:
                for layer in work.layers:
                    trees.append(layers.detach(layer))  # noqa: PERF401  those made before a failure are closed below
            self._wire.send_with(ToGuest.SPECIALISE, encode(meta), trees)
        except OSError as error:
            raise DriverError(f"attaching the code: {error}") from error
        finally:
            for tree in trees:
                os.close(tree)
        return await self._report(began, timeout_s)

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"") -> None:
        self._wire.send(kind, ident, meta, body)

    async def rest(self) -> None:
        """It does that by itself, when nobody has specialised it for a moment (template.py)."""

    def speculative(self, on: bool) -> None:
        if self.cell is not None and not self._dead:
            with contextlib.suppress(OSError):
                self.cell.speculative(on)

    def cpu(self) -> tuple[float, bool] | None:
        return watch.cpu(self.worker)

    def usage(self) -> Usage | None:
        if self._dead:
            return None
        shells = 1 if self.worker != self.pid else 0  # it holds the namespaces, and is none of the function's
        with contextlib.suppress(OSError, ValueError):
            if self.cell is not None:
                memory, processes = self.cell.memory_bytes(), self.cell.processes()
                if memory is not None and processes is not None:
                    return Usage(memory, processes - shells)
            memory, processes = watch.used(self.pid, self._members(), self._sandboxed, 0)
            return Usage(memory, processes - shells)
        return None

    def enforce_memory(self) -> None:
        """For the watchdog: ends the sandbox when it is over its shape."""
        if self._dead:
            return
        memory, _ = watch.used(self.pid, self._members(), self._sandboxed, self.memory_mb << 20)
        if memory > self.memory_mb << 20:
            self._end(f"out of memory: the sandbox needed more than {self.memory_mb} MB")

    # -- the end

    async def kill(self, reason: str) -> None:
        self._end(reason)
        try:
            await asyncio.wait_for(self._ended.wait(), KILL_TIMEOUT_S)
        except TimeoutError as error:
            raise DriverError(f"sandbox {self.clone_id} (process {self.pid}) did not die in {KILL_TIMEOUT_S:g} s") from error

    def _end(self, reason: str) -> None:
        if not self._reason:
            self._reason = reason
        if not self._dead:
            with contextlib.suppress(OSError):
                syscalls.pidfd_send_signal(self._pidfd, syscalls.SIGKILL)

    def exit_status(self, how: str) -> None:
        """The template says how its child ended, shortly before or after the pidfd tells that it did."""
        self._status = how
        if self._dead:
            self._finish()

    def _exited(self) -> None:
        """The sandbox's first process is gone, and with it every process of its namespace."""
        self._dead = True
        self._loop.remove_reader(self._pidfd)
        if (self._coded or not self._sandboxed) and self.cell is not None:
            self.cell.kill()  # without a process namespace its children may have outlived it; an original may be hostile
        if self._status or self._reason not in ("", CLOSED):
            self._finish()
        else:
            self._loop.call_later(STATUS_WAIT_S, self._finish)

    def _finish(self) -> None:
        if self._ended.is_set():
            return
        self._wire.drain()
        if self._reason in ("", CLOSED):
            self._reason = f"the sandbox ended by itself ({self._status or 'status unknown'})"
            if self.cell is not None and self.cell.ran_out_of_memory():
                self._reason = f"out of memory: the sandbox needed more than {self.memory_mb} MB"
        self._wire.close()
        for pipe in self._pipes:
            pipe.close()
        self._close_network()
        os.close(self._pidfd)
        self._freed(self)
        self._finished()

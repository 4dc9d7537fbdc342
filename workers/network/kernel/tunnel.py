"""One tunnel of a node, as it is now: what it follows, who is attached, whether a proxy answers in it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from workers.networks import TunnelState, VpcSpec

PROBE_S = 1.0  # between two echoes of a tunnel that answers
FIRST_PROBES_S = 0.02  # of one that does not yet, doubled up to PROBE_S
SILENT_S = 3.0  # so long without an answer: no proxy carries it
_ECHO_REQUEST, _ECHO_REPLY, _IDENT = 8, 0, 0xF06


class Tunnel:
    """`device`: 0 until it is open. `fault`: why it cannot be had. `leaving`: to be closed with its last instance."""

    def __init__(self, spec: VpcSpec, slot: int) -> None:
        self.spec, self.slot = spec, slot
        self.followed: VpcSpec | None = None
        """What the kernel holds now."""
        self.device = 0
        self.fault = ""
        self.carrier = ""
        self.changes = 0
        """How often another proxy was seen to carry it than before: by a fault, or since advertisements came late."""
        self.attached = 0
        self.leaving = False
        self.changed = asyncio.Event()
        """Set, and replaced, whenever its state may be another."""
        self._heard: float | None = None
        self._last = ""
        self._socket: socket.socket | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return bool(self.device) and not self.leaving and not self.fault and self.answers

    @property
    def answers(self) -> bool:
        return self._heard is not None and asyncio.get_running_loop().time() - self._heard < SILENT_S

    def state(self, backend: str) -> TunnelState:
        followed = self.followed or self.spec
        ready = self.ready and followed.generation == self.spec.generation
        return TunnelState(self.spec.vpc, followed.generation, ready, self._reason(ready, backend), backend, self.attached)

    def _reason(self, ready: bool, backend: str) -> str:
        if ready:
            return f"{backend}, by {self.carrier}{self._changed()}" if self.carrier else backend
        if self.leaving:
            return f"it is closed when its {self.attached} instances have gone"
        if self.fault:
            return self.fault
        if not self.device:
            return "it is being opened"
        if not self.answers:
            names = ", ".join(f"{proxy.name} ({proxy.underlay or proxy.address})" for proxy in self.spec.proxies)
            return f"no proxy answers: {names}"
        return f"it follows generation {self.followed.generation if self.followed else 0} still"

    def _changed(self) -> str:
        return f", changes of proxy: {self.changes}" if self.changes else ""

    def carried(self, by: str) -> None:
        """What was seen of that; empty: nothing."""
        if by and self._last not in ("", by):
            self.changes += 1
        self._last, self.carrier = by or self._last, by

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def probe(self, sock: socket.socket, heard: Callable[["Tunnel"], None]) -> None:
        """Asks for echoes from now on; `heard` is called when the first comes, and when one comes after silence."""
        self._socket = sock
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, self._answered, heard)
        self._probing = loop.create_task(self._ask(sock))

    async def _ask(self, sock: socket.socket) -> None:
        number, pause = 0, FIRST_PROBES_S
        while True:
            with contextlib.suppress(OSError):
                sock.send(_echo(number & 0xFFFF))
            number += 1
            was = self.answers
            await asyncio.sleep(PROBE_S if was else pause)
            pause = FIRST_PROBES_S if self.answers else min(pause * 2, PROBE_S)
            if was and not self.answers:
                self.carrier = ""
                self.tell()

    def _answered(self, heard: Callable[["Tunnel"], None]) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(2048)
        except OSError:  # unreachable, or taken by somebody: the next one tells
            return
        at = (packet[0] & 15) * 4
        if len(packet) < at + 8 or packet[at] != _ECHO_REPLY or packet[at + 4 : at + 6] != struct.pack(">H", _IDENT):
            return
        new = not self.answers
        self._heard = asyncio.get_running_loop().time()
        if new:
            heard(self)
            self.tell()

    async def quiet(self) -> None:
        """No more echoes. Idempotent."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
            self._probing = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None


def _echo(number: int) -> bytes:
    """An echo request (RFC 792)."""
    total = (_ECHO_REQUEST << 8) + _IDENT + number
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack(">BBHHH", _ECHO_REQUEST, 0, checksum, _IDENT, number)

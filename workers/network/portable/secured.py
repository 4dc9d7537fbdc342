"""A TLS connection whose bytes are encrypted and sent in the turn in which they are written, decrypted and handed on in the turn
in which they come. The handshake before is `workers.network.portable.handshakes`."""

import socket
import ssl
from typing import Protocol

from workers.network.portable.duplex import AT_ONCE, Duplex, shared
from workers.rpc.transport import Peer

RECORD = 16 << 10
"""No record holds more (RFC 8446, 5.1), so that a read of so much leaves nothing of it behind."""

_SLACK = 2 * RECORD  # a record of which a part came in the turn before


class Reader(Protocol):
    """Who has the connection. What asyncio calls so, but always in the loop's turn."""

    def connection_made(self, connection: "Secured") -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, in a turn of its own; not after `abort`."""


class Records:
    """The two ends of TLS: what came from the peer goes into `came`, what goes to it is in `going`."""

    def __init__(self, context: ssl.SSLContext, server_side: bool) -> None:
        self.came, self.going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.came, self.going, server_side=server_side)


class Secured(Duplex):
    """The handshake is over. `peer`: whom its certificate names."""

    def __init__(self, sock: socket.socket, records: Records, peer: Peer, reader: Reader, high: int, low: int) -> None:
        super().__init__(sock, high, low)
        self.peer = peer
        self._tls, self._came, self._going = records.tls, records.came, records.going
        self._reader = reader
        self._held = False
        self._plain = shared("plain", AT_ONCE + _SLACK)

    def begin(self) -> None:
        """The reader gets it; what came behind the handshake is handed on."""
        self._reader.connection_made(self)
        if not self._closed:
            self._read(True)
            self._decrypt()

    @property
    def waiting(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._waiting) + self._going.pending

    def write(self, data: bytes) -> None:
        """At once, unless older bytes wait; while it hands on what came, all that is said to it leaves together at the end."""
        if self._closed or not data:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self._end(error)
            return
        if not self._held:
            self._send(self._going.read())

    def pause_reading(self) -> None:
        self._read(False)

    def resume_reading(self) -> None:
        self._read(True)

    def abort(self) -> None:
        """Now; what waits is lost. Idempotent."""
        self._close()

    def _readable(self) -> None:
        try:
            amount = self._sock.recv_into(self._into)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if not amount:
            self._end(None)
            return
        self._came.write(self._into[:amount])
        self._decrypt()

    def _decrypt(self) -> None:
        """Hands on all whole records that are here; sends what was said meanwhile, and what TLS itself has to say."""
        plain, read, came, at = self._plain, self._tls.read, self._came, 0
        error: ssl.SSLError | None = None
        over = False
        try:
            while came.pending:
                amount = read(RECORD, plain[at:] if at else plain)
                if not amount:
                    over = True
                    break
                at += amount  # type: ignore[operator]  # into a buffer it is a number
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as broken:
            error, over = broken, True
        if at:
            self._held = True
            try:
                self._reader.data_received(bytes(plain[:at]))
            finally:
                self._held = False
        if self._going.pending and not self._closed:
            self._send(self._going.read())
        if over:
            self._end(error)

    def _on_behind(self, behind: bool) -> None:
        if behind:
            self._reader.pause_writing()
        else:
            self._reader.resume_writing()

    def _on_end(self, error: Exception | None) -> None:
        self._reader.connection_lost(error)

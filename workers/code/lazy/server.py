"""The program that answers for the files of one lazily started layer.

It is a process of its own, because a node that reads its own mount would wait for itself, and one for each mount, because a
tenant's must hold up nobody else's.

Started by link.py as `python -I -S -B server.py FUSE CONTENT LAYER NODE`, descriptors: the opened mount; the layer's content, of
which the node has written and verified what it says is held; the layer's description (JSON: files, sizes, held, timeout_s); and a
datagram socket to the node. One thread; it opens nothing else. It ends with the node, or when the last user of
the mount has gone. A read whose chunk does not come within `timeout_s`, or cannot be had, is answered EIO.
"""

import contextlib
import errno
import json
import os
import select
import socket
import sys
import time
import types
from collections import deque
from collections.abc import Callable

if __name__ == "__main__":
    for _name in ("workers", "workers.code", "workers.code.lazy"):
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [os.getcwd()]

from workers.code.lazy import fuse, words
from workers.code.lazy.allowance import Allowance
from workers.code.lazy.tree import Cuts, Tree

BATCH = 64
"""Requests answered before the node is heard again."""

FAILED_FOR_S = 1.0
"""A chunk that could not be had is not asked for again sooner."""

LOOK_EVERY_MS = 250
GONE = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)


class Parked:
    """A read that waits for chunks."""

    __slots__ = ("missing", "node", "offset", "size", "unique", "until")

    def __init__(self, unique: int, node: int, offset: int, size: int, missing: set[int], until: float) -> None:
        self.unique, self.node, self.offset, self.size, self.missing, self.until = unique, node, offset, size, missing, until


class Server:
    """`send` takes touched chunks to the node and says whether it could; `reply` one answer to the kernel."""

    def __init__(
        self,
        tree: Tree,
        cuts: Cuts,
        content: int,
        held: set[int],
        timeout_s: float,
        reply: Callable[[bytes, bytes], None],
        send: Callable[[bytes], bool],
    ) -> None:
        self._tree = tree
        self._cuts = cuts
        self._content = content
        self._held = held
        self._timeout_s = timeout_s
        self._reply = reply
        self._send = send
        self._touched: set[int] = set()
        self._failed: dict[int, float] = {}  # chunk -> asked for again from then on
        self._parked: dict[int, Parked] = {}
        self._waiting: dict[int, set[int]] = {}  # chunk -> requests parked for it
        self._unsent: deque[int] = deque()
        self._answers: dict[int, Callable[[int, memoryview], bytes]] = {
            fuse.INIT: self._init,
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: lambda node, _: fuse.attributes_answer(self._tree.node(node).attributes),
            fuse.STATFS: lambda _, __: fuse.statfs_answer(self._tree.size, len(self._tree)),
            fuse.READDIR: lambda node, body: self._list(node, body, False),
            fuse.READDIRPLUS: lambda node, body: self._list(node, body, True),
        }

    # -- the kernel's requests

    def take(self, request: memoryview, now: float) -> None:
        length, code, unique, node, *_ = fuse.REQUEST.unpack_from(request)
        body = request[fuse.REQUEST.size : length]
        if code in fuse.UNANSWERED:
            return
        try:
            if code == fuse.READ:
                self._read(unique, node, body, now)
                return
            if code == fuse.INTERRUPT:
                self._interrupt(fuse.INTERRUPT_IN.unpack_from(body)[0])
                return
            known = self._answers.get(code)
            # OPEN and OPENDIR too: told once that they are not needed, the kernel opens and keeps content and listings by itself
            answered = known(node, body) if known is not None else None
            error = 0 if answered is not None else errno.EROFS if code in fuse.CHANGES else errno.ENOSYS
        except IndexError:
            answered, error = None, errno.ESTALE
        except OSError as raised:
            answered, error = None, raised.errno or errno.EIO
        self._reply(fuse.answer(unique, len(answered or b""), error), answered or b"")

    def _init(self, _: int, body: memoryview) -> bytes:
        answered = fuse.init_answer(bytes(body), int(self._timeout_s * 2) + 1)
        self._unsent.append(words.READY)
        return answered

    def _lookup(self, node: int, body: memoryview) -> bytes:
        found = self._tree.find(node, bytes(body).rstrip(b"\0"))
        return fuse.entry(found, self._tree.node(found).attributes) if found else fuse.NO_SUCH_ENTRY

    def _list(self, node: int, body: memoryview, plus: bool) -> bytes:
        _, offset, size, _ = fuse.READ_IN.unpack_from(body)
        if self._tree.node(node).names is None:
            raise OSError(errno.ENOTDIR, "not a folder")
        return self._tree.listing(node, offset, size, plus)

    def _read(self, unique: int, number: int, body: memoryview, now: float) -> None:
        _, offset, size, _ = fuse.READ_IN.unpack_from(body)
        node = self._tree.node(number)
        if node.names is not None:
            raise OSError(errno.EISDIR, "a folder")
        size = min(size, max(0, node.size - offset))
        chunks = self._cuts.of(node.start + offset, size)
        missing = {index for index in chunks if index not in self._held}
        for index in chunks:
            if index not in self._touched or (index in missing and index not in self._waiting):
                if self._failed.get(index, 0.0) > now:
                    raise OSError(errno.EIO, "a chunk could not be had a moment ago")
                self._failed.pop(index, None)
                self._touched.add(index)
                self._unsent.append(index)
        if not missing:
            self._give(unique, node.start + offset, size)
            return
        self._parked[unique] = Parked(unique, number, node.start + offset, size, missing, now + self._timeout_s)
        for index in missing:
            self._waiting.setdefault(index, set()).add(unique)

    def _give(self, unique: int, offset: int, size: int) -> None:
        try:
            content = os.pread(self._content, size, offset) if size else b""
        except OSError:
            content = b""
        short = len(content) < size
        self._reply(fuse.answer(unique, 0 if short else size, errno.EIO if short else 0), b"" if short else content)

    def _interrupt(self, unique: int) -> None:
        """Whoever waits is being killed: it need not wait for the network."""
        if unique in self._parked:
            self._end(self._parked[unique], errno.EINTR)

    # -- the node's words

    def hear(self, datagram: bytes, now: float) -> None:
        for index, state in words.unpack_states(datagram):
            if index == words.PING:
                self._unsent.append(words.PING)
                continue
            waiting = self._waiting.pop(index, set())
            if state == words.HELD:
                self._held.add(index)
            else:
                self._failed[index] = now + FAILED_FOR_S
            for parked in [self._parked[unique] for unique in waiting if unique in self._parked]:
                parked.missing.discard(index)
                if state != words.HELD:
                    self._end(parked, errno.EIO)
                elif not parked.missing:
                    del self._parked[parked.unique]
                    self._give(parked.unique, parked.offset, parked.size)

    def _end(self, parked: Parked, error: int) -> None:
        del self._parked[parked.unique]
        for index in parked.missing:
            waiting = self._waiting.get(index)
            if waiting is not None:
                waiting.discard(parked.unique)
                if not waiting:
                    del self._waiting[index]  # asked for again by the next that wants it
        self._reply(fuse.answer(parked.unique, 0, error), b"")

    # -- between

    def turn(self, now: float) -> None:
        """What is due: reads that have waited too long, and words to the node."""
        for parked in [parked for parked in self._parked.values() if parked.until <= now]:
            self._end(parked, errno.EIO)
        while self._unsent:
            some = [self._unsent.popleft() for _ in range(min(len(self._unsent), words.MAX_TOUCHED))]
            if not self._send(words.pack_touched(some)):
                self._unsent.extendleft(reversed(some))
                return


def main() -> None:
    mount, content, layer, node = map(int, sys.argv[1:])
    with os.fdopen(layer, "rb") as file:
        described = json.load(file)
    sock = socket.socket(fileno=node)
    sock.setblocking(False)
    os.set_blocking(mount, False)

    def reply(header: bytes, body: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
            os.writev(mount, (header, body))

    def send(datagram: bytes) -> bool:
        try:
            sock.send(datagram)
        except BlockingIOError:
            return False
        return True

    server = Server(
        Tree(described["files"], (os.getuid(), os.getgid())),
        Cuts(described["sizes"]),
        content,
        set(described["held"]),
        described["timeout_s"],
        reply,
        send,
    )
    allowance = Allowance(time.monotonic())
    buffer = memoryview(bytearray(fuse.REQUEST_BYTES))
    poll = select.poll()
    poll.register(mount, select.POLLIN)
    poll.register(sock, select.POLLIN)
    while True:
        ready = dict(poll.poll(LOOK_EVERY_MS))
        if node in ready:
            datagram = sock.recv(words.MAX_DATAGRAM)
            if not datagram:
                return  # the node has gone
            server.hear(datagram, time.monotonic())
        taken = 0
        while mount in ready and taken < BATCH:
            try:
                length = os.readv(mount, [buffer])
            except BlockingIOError:
                break
            except (FileNotFoundError, InterruptedError):
                continue  # interrupted before it was read
            server.take(buffer[:length], time.monotonic())
            taken += 1
        now = time.monotonic()
        server.turn(now)
        rest = allowance.take(taken, now)
        if rest:
            time.sleep(min(rest, 0.02))


if __name__ == "__main__":
    try:
        main()
    except OSError as gone:
        if gone.errno not in GONE:
            raise

"""The mount of one lazily started layer and the process that answers for it, seen from the node."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from workers import mounts
from workers.code.lazy import words
from workers.code.manifest import Manifest

DEVICE = Path("/dev/fuse")
READY_TIMEOUT_S = 10.0
END_TIMEOUT_S = 5.0
LISTEN_EVERY_S, MISSED = 5.0, 2
"""A server that has answered neither of two PINGs when the third is due hangs, and is ended."""


class LazyError(OSError):
    """The layer cannot be mounted, or its server has gone; the message says why."""


def _describe(manifest: Manifest, held: Sequence[int], timeout_s: float) -> int:
    """What the server has to know of the layer, in a file in memory. In a thread: there may be 50,000 names."""
    files = [(file.path, file.mode, file.size, file.offset) for file in manifest.files]
    sizes = [chunk.size for chunk in manifest.chunks]
    text = json.dumps({"files": files, "sizes": sizes, "held": held, "timeout_s": timeout_s}).encode()
    descriptor = os.memfd_create("layer", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(text)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class Link:
    """Use it on one event loop. `on_touched` gets the chunks that functions read from; `on_gone` is called once, when the server
    has ended, with the reason, empty when it ended as it should."""

    def __init__(self, path: Path, on_touched: Callable[[Iterable[int]], None], on_gone: Callable[[str], None]) -> None:
        self.path = path
        self._on_touched = on_touched
        self._on_gone = on_gone
        self._mounted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._unsent: list[bytes] = []
        self._unanswered = 0
        self._why = ""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def gone(self) -> bool:
        return self._ended.is_set()

    @property
    def pid(self) -> int:
        """Of the server; 0 when there is none."""
        return self._process.pid if self._process is not None and not self.gone else 0

    async def start(self, manifest: Manifest, content: int, held: Sequence[int], timeout_s: float, device: Path = DEVICE) -> None:
        """Mounts at `path`, an empty folder, and returns when the mount answers. Raises LazyError, with nothing left."""
        try:
            described = await asyncio.to_thread(_describe, manifest, held, timeout_s)
            try:
                fuse = self._mount(device)
            except OSError:
                os.close(described)
                raise
            try:
                self._spawn(fuse, content, described)
            finally:
                os.close(described)
                os.close(fuse)  # the server alone holds it: when it ends, whoever uses the mount is told so by the kernel
            await asyncio.wait_for(asyncio.shield(self._ready), READY_TIMEOUT_S)
            # the kernel keeps the attributes of the root from here on: to hand the mount out will never wait for the server
            await asyncio.wait_for(asyncio.to_thread(os.stat, self.path), READY_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            await self.end()
            raise LazyError(f"mounting {self.path.name}: {error or 'its server does not answer'}") from error
        except BaseException:
            await self.end()
            raise
        self._ping()

    def held(self, index: int, state: int = words.HELD) -> None:
        """Tells the server that a chunk is in the content now, or could not be had."""
        self._unsent.append(words.pack_state(index, state))
        self._flush()

    def release(self) -> None:
        """Nobody new gets the mount; who has it keeps it, and the server ends after the last of them."""
        if self._mounted:
            self._mounted = False
            with contextlib.suppress(OSError):
                mounts.unmount(self.path)

    async def end(self) -> None:
        """Now, whoever uses it. Idempotent."""
        self.release()
        self._why = self._why or "it was ended"
        if self._process is None:
            self._close()
            return
        self._process.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), END_TIMEOUT_S)

    # -- making

    def _mount(self, device: Path) -> int:
        fuse = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other,default_permissions"
        try:
            mounts.mount("foreglow", self.path, "fuse", mounts.READ_ONLY | mounts.NO_SETUID | mounts.NO_DEVICES, options)
        except OSError:
            os.close(fuse)
            raise
        self._mounted = True
        return fuse

    def _spawn(self, fuse: int, content: int, described: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            self._sock = ours
            passed = [fuse, content, described, theirs.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "server.py", *map(str, passed)],
                cwd=Path(__file__).parent,
                env={},
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._on_end)
        loop.add_reader(ours.fileno(), self._on_words)

    # -- hearing

    def _on_words(self) -> None:
        if self._sock is None:
            return
        try:
            datagram = self._sock.recv(words.MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:
            datagram = b""
        if not datagram:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())  # its end is told by the pidfd
            return
        touched = []
        for index in words.unpack_touched(datagram):
            if index == words.READY:
                if not self._ready.done():
                    self._ready.set_result(None)
            elif index == words.PING:
                self._unanswered = 0
            else:
                touched.append(index)
        if touched:
            self._on_touched(touched)

    def _ping(self) -> None:
        if self.gone:
            return
        if self._unanswered:
            self._on_words()  # this process may be the one that stood still: the answer may lie there
        if self._unanswered >= MISSED:
            self._why = f"it did not answer for {LISTEN_EVERY_S * MISSED:g} s"
            assert self._process is not None
            self._process.kill()
            return
        self._unanswered += 1
        self.held(words.PING, 0)
        self._timer = asyncio.get_running_loop().call_later(LISTEN_EVERY_S, self._ping)

    def _flush(self) -> None:
        """What the socket does not take waits for the next word; there are few more of them than chunks."""
        sock = self._sock
        if sock is None or sock.fileno() < 0:
            return
        most = words.MAX_STATES
        while self._unsent:
            try:
                sock.send(b"".join(self._unsent[:most]))
            except BlockingIOError:
                asyncio.get_running_loop().call_later(0.05, self._flush)
                return
            except OSError:
                self._unsent.clear()
                return
            del self._unsent[:most]

    def _on_end(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        released = not self._mounted
        self.release()
        self._close()
        how = self._why or ("signal " + str(-status) if status < 0 else f"exit {status}")
        if not self._ready.done():
            self._ready.set_exception(LazyError(f"its server ended ({how})"))
            self._ready.exception()
        self._ended.set()
        self._on_gone("" if released and status == 0 else how)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

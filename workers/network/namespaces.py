"""Network namespaces without names: whatever ends the process that holds their descriptors ends them and all devices in them."""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Self, TypeVar

T = TypeVar("T")

NEWNET = 0x4000_0000
HERE = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare() -> None:
    """Moves the calling thread into a fresh network namespace. Raises OSError."""
    _check(_libc.unshare(NEWNET), "a network namespace")


def enter(descriptor: int) -> None:
    """Moves the calling thread into the network namespace of the descriptor. Raises OSError."""
    _check(_libc.setns(descriptor, NEWNET), "entering a network namespace")


class Namespace:
    """One, by its descriptor, which closes on exec. `close` gives it up; it ends when nobody else holds it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def made(cls) -> Self:
        """A fresh one with nothing in it but loopback, down. Raises OSError."""

        def make() -> int:
            unshare()
            return os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)

        return cls(apart(make))

    @classmethod
    def here(cls) -> Self:
        """That of the calling thread."""
        return cls(os.open(HERE, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def path(self) -> str:
        """What other programs take for it while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def run(self, work: Callable[[], T]) -> T:
        """Calls `work` in it, in a thread of its own; sockets made there and processes started there stay in it."""

        def entered() -> T:
            enter(self.descriptor)
            return work()

        return apart(entered)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def apart(work: Callable[[], T]) -> T:
    """In a thread that ends with it; waits. Raises what it raised."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="foreglow-netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]

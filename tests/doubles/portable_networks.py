"""The portable backend on the test bed: proxies as processes of their own in their hosts, planes on a loop in a node's.

Run as a program it is such a proxy: `FOLDER ADDRESS:PORT`, a line of JSON with the Vpcs on its input each time they change.
"""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
import uvloop

from workers.network import namespaces
from workers.network.portable.plane import PortablePlane
from workers.network.portable.proxy import PortableProxy
from workers.networks import VpcSpec
from workers.rpc.transport import Identity, parse_address

T = TypeVar("T")

PORT = 8704
REFUSED_NODE = "n-refused"
"""A node with a good certificate that no Vpc is for."""


class ProxyProcess:
    """A proxy inside a private network, in the namespace of `host` (anything with `start` and `address`)."""

    def __init__(self, host: Any, name: str, folder: Path, port: int = PORT) -> None:
        self.name = name
        self._command = [sys.executable, "-W", "error", __file__, str(folder), f"{host.address}:{port}"]
        self._host = host
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, specs: Sequence[VpcSpec]) -> "ProxyProcess":
        self.process = self._host.start(*self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process is not None
        self.use(specs)
        return self

    def use(self, specs: Sequence[VpcSpec]) -> None:
        """Tells it, and waits until it has heard."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(list(specs)) + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"told\n"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


class NodeLoop:
    """An event loop in a thread that is in the namespace of a host, until `close`."""

    def __init__(self, namespace: int) -> None:
        self.loop = uvloop.new_event_loop()
        entered = threading.Event()

        def run() -> None:
            namespaces.enter(namespace)
            entered.set()
            self.loop.run_forever()

        self._thread = threading.Thread(target=run, name="node")
        self._thread.start()
        entered.wait(10)

    def do(self, work: Coroutine[Any, Any, T], limit_s: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, limit_s), self.loop).result(limit_s + 5)

    def call(self, work: Any) -> Any:
        async def on_loop() -> Any:
            return work()

        return self.do(on_loop())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextlib.contextmanager
def plane_at(namespace: int, identity: Identity | None, specs: Sequence[VpcSpec]) -> Iterator[tuple[NodeLoop, PortablePlane]]:
    """A started plane of a node in the namespace, told of the Vpcs; stopped with the block."""
    node = NodeLoop(namespace)
    try:
        plane = node.call(lambda: PortablePlane(identity))
        node.do(plane.start())
        try:
            node.do(plane.use(specs))
            yield node, plane
        finally:
            node.do(plane.stop())
    finally:
        node.close()


def identity_at(folder: Path) -> Identity:
    return Identity(folder / "node.key", folder / "node.pem", folder / "ca.pem")


async def _proxy(folder: Path, address: str) -> None:
    def admit(peer: Any, vpc: str) -> str:
        return f"{peer.name} may not use {vpc}" if peer.name == REFUSED_NODE else ""

    proxy = PortableProxy(admit)
    at = parse_address(address)
    assert not isinstance(at, Path)
    await proxy.start([at], identity_at(folder))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        proxy.use(msgspec.json.decode(line, type=list[VpcSpec]))
        print("told", flush=True)
    await proxy.stop()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(_proxy(Path(sys.argv[1]), sys.argv[2]))

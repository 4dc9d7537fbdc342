"""The portable backend on the test bed: proxies as processes of their own in their hosts, planes on a loop in a node's."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop
from doubles.cluster import identity
from doubles.private_networks import TENANTS, Bed, Host, bed, sandbox

from orchestrator.authority import Authority
from workers.network import namespaces
from workers.network.portable.plane import PortablePlane
from workers.networks import VpcSpec
from workers.ports import Attachment, SandboxNetwork
from workers.rpc.transport import Identity

T = TypeVar("T")

PORT = 8704
PROGRAM = Path(__file__).with_name("portable_proxy.py")


class ProxyProcess:
    """A proxy inside a private network, in the namespace of `host` (anything with `start` and `address`)."""

    def __init__(self, host: Any, name: str, folder: Path, port: int = PORT) -> None:
        self.name = name
        self._command = [sys.executable, "-W", "error", str(PROGRAM), str(folder), f"{host.address}:{port}"]
        self._host = host
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, specs: Sequence[VpcSpec]) -> "ProxyProcess":
        self.begin(specs)
        self.heard()
        return self

    def begin(self, specs: Sequence[VpcSpec]) -> None:
        """Does not wait for it: `heard` does."""
        self.process = self._host.start(*self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._tell(specs)

    def use(self, specs: Sequence[VpcSpec]) -> None:
        """Tells it, and waits until it has heard."""
        self._tell(specs)
        self.heard()

    def _tell(self, specs: Sequence[VpcSpec]) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(list(specs)) + b"\n")
        self.process.stdin.flush()

    def heard(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
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


class World:
    """The bed with its proxies and one node's plane, and functions that are attached by it."""

    def __init__(self, made: Bed, folder: Path) -> None:
        self.bed = made
        self.authority = Authority(folder / "authority")
        self.folder = folder
        self.specs = {tenant: made.spec(tenant) for tenant in TENANTS}
        self.proxies = {
            tenant: [ProxyProcess(host, host.name, self.files("vpc-proxy", host.name)) for host in made.proxies[tenant]]
            for tenant in TENANTS
        }
        self.node: NodeLoop
        self.plane: PortablePlane

    def files(self, role: str, name: str) -> Path:
        identity(self.authority, self.folder, role, name)
        return next(self.folder.glob(f"{role}-{name}-*"))

    def tell(self, *specs: VpcSpec, proxies: bool = True) -> None:
        """Control's part: proxies and the node hear of Vpcs."""
        for spec in specs:
            self.specs[spec.tenant] = spec
            if proxies:
                for proxy in self.proxies[spec.tenant]:
                    if proxy.process is not None and proxy.process.poll() is None:
                        proxy.use([spec])
        self.node.do(self.plane.use(list(self.specs.values())))

    def opened(self, tenant: str, limit_s: float = 10.0) -> str:
        return self.node.do(self.plane.opened(f"{tenant}/main", limit_s)).reason

    def attach(self, tenant: str, network: SandboxNetwork, egress: str = "none") -> Attachment:
        return self.node.do(self.plane.attach(f"{tenant}/main" if tenant else "", egress, network))

    @contextlib.contextmanager
    def function(self, tenant: str, egress: str = "none") -> Iterator[Host]:
        made = sandbox()
        try:
            attached = self.attach(tenant, SandboxNetwork(made.namespace.descriptor), egress)
            yield made
            self.node.call(attached.detach)
        finally:
            made.close()


@contextlib.contextmanager
def worlds(folder: Path, nodes: int = 1, postgres: bool = False) -> Iterator[World]:
    """Everything up, and the first node's plane with both tunnels open."""
    with bed(nodes, postgres) as made:
        world = World(made, folder)
        for tenant in TENANTS:
            for proxy in world.proxies[tenant]:
                proxy.begin([world.specs[tenant]])
        for proxy in (proxy for pair in world.proxies.values() for proxy in pair):
            proxy.heard()
        own = identity(world.authority, folder, "node", "n1")
        with plane_at(made.nodes[0].namespace.descriptor, own, list(world.specs.values())) as (world.node, world.plane):
            for tenant in TENANTS:
                world.opened(tenant)
            yield world


def loaded(folder: Path) -> Identity:
    """A member's, from the folder that joining made."""
    return Identity(folder / "node.key", folder / "node.pem", folder / "ca.pem")

"""The backends of private networks as contract tests drive them: a plane on a loop in its node's namespace, proxies as processes.

A backend: `name`; `plane(bed, place)`: a plane for the node at that place; `proxy(bed, tenant, place, specs)`: a running proxy;
`begun(...)`: one that is starting, which `heard` waits for.
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import uvloop
from doubles.cluster import identity
from doubles.kernel_proxy import Told
from doubles.portable_networks import ProxyProcess, loaded
from doubles.private_networks import VIRTUAL, Bed, Host, bed, sandbox

from orchestrator.authority import Authority
from workers.network.kernel.endpoint import NodePlace
from workers.network.kernel.plane import KernelPlane
from workers.network.portable.plane import PortablePlane
from workers.networks import TunnelState, VpcSpec
from workers.ports import Attachment, NetworkUnavailable, SandboxNetwork, TunnelPlane

T = TypeVar("T")
LIMIT_S = 30.0
PATIENCE_S = 20.0  # of an attachment that is to come about: a proxy that has much to do is silent for moments, and carries nobody
PROGRAM = Path(__file__).with_name("kernel_proxy.py")


class Loop:
    """An event loop in a thread of its own, in the host's namespace; `call` waits for a coroutine on it."""

    def __init__(self, host: Host) -> None:
        self.loop = host.run(uvloop.new_event_loop)  # its descriptors know no namespace, what is opened on it does
        self._thread = threading.Thread(target=host.run, args=(self._turn,), daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T], limit_s: float = LIMIT_S) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(limit_s)

    def do(self, work: Callable[[], T]) -> T:
        async def on_the_loop() -> T:
            return work()

        return self.call(on_the_loop())

    def close(self) -> None:
        self.call(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT_S)
        self.loop.close()


class PlaneInHost:
    """A node's plane; every call waits."""

    def __init__(self, host: Host, make: Callable[[], TunnelPlane]) -> None:
        self.loop = Loop(host)
        self.plane = self.loop.do(make)
        try:
            self.loop.call(self.plane.start())
        except BaseException:
            self.loop.close()
            raise

    def use(self, *specs: VpcSpec) -> None:
        self.loop.call(self.plane.use(specs))

    def opened(self, vpc: str, timeout_s: float = 20.0) -> TunnelState:
        return self.loop.call(self.plane.opened(vpc, timeout_s))

    def states(self) -> dict[str, TunnelState]:
        return {state.vpc: state for state in self.loop.do(self.plane.states)}

    def wire(self, function: Host) -> None:
        self.loop.call(self.plane.wire(network(function)))

    def attach(self, vpc: str, function: Host, egress: str = "none", patience_s: float = 0.0) -> Callable[[], None]:
        """Returns what detaches. `patience_s`: so long it is tried again where the network is unavailable."""
        return self.join(vpc, network(function), egress, patience_s)

    def join(self, vpc: str, there: SandboxNetwork, egress: str = "none", patience_s: float = 0.0) -> Callable[[], None]:
        """As `attach`, for a sandbox that a driver made."""
        end = time.monotonic() + patience_s
        while True:
            try:
                attachment: Attachment = self.loop.call(self.plane.attach(vpc, egress, there))
            except NetworkUnavailable:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)
            else:
                return lambda: self.loop.do(attachment.detach)

    @contextlib.contextmanager
    def attached(self, vpc: str, egress: str = "none") -> Iterator[Host]:
        """A function in the Vpc."""
        function = sandbox()
        try:
            detach = self.attach(vpc, function, egress, PATIENCE_S)
            try:
                yield function
            finally:
                detach()
        finally:
            function.close()

    def stop(self) -> None:
        try:
            self.loop.call(self.plane.stop())
        finally:
            self.loop.close()


class RunningProxy(Protocol):
    process: "subprocess.Popen[bytes] | None"

    def heard(self) -> object:
        """It has begun, and serves what it was told first."""

    def use(self, specs: Sequence[VpcSpec]) -> None: ...

    def kill(self) -> None:
        """As SIGKILL does."""

    def stop(self) -> None: ...


class Backend(Protocol):
    name: str

    def plane(self, made: Bed, place: int) -> PlaneInHost: ...

    def proxy(self, made: Bed, tenant: str, place: int, specs: Sequence[VpcSpec]) -> RunningProxy: ...

    def begun(self, made: Bed, tenant: str, place: int, specs: Sequence[VpcSpec]) -> RunningProxy: ...


class _KernelProxy:
    """A process: told by lines, which it answers with its states once it has done so; of the first, `heard`."""

    def __init__(self, made: Bed, host: Host, specs: Sequence[VpcSpec]) -> None:
        self._nodes = [NodePlace(node.name, node.address, 10 + place) for place, node in enumerate(made.nodes)]
        self._folder = tempfile.TemporaryDirectory(prefix="fg-proxy-")
        command = [sys.executable, str(PROGRAM), host.name, self._folder.name]
        self.process = host.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._tell(specs, self._nodes)

    def _tell(self, specs: Sequence[VpcSpec], nodes: Sequence[NodePlace]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(Told(list(specs), list(nodes))) + b"\n")
        self.process.stdin.flush()

    def heard(self) -> list[TunnelState]:
        assert self.process.stdout is not None
        return msgspec.json.decode(self.process.stdout.readline(), type=list[TunnelState])

    def use(self, specs: Sequence[VpcSpec], nodes: Sequence[NodePlace] | None = None) -> list[TunnelState]:
        self._tell(specs, self._nodes if nodes is None else nodes)
        return self.heard()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._folder.cleanup()

    def stop(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(20)
        self._folder.cleanup()


class KernelBackend:
    name = "kernel"

    def plane(self, made: Bed, place: int) -> PlaneInHost:
        node = made.nodes[place]
        return PlaneInHost(node, lambda: KernelPlane(node.address, 10 + place))

    def begun(self, made: Bed, tenant: str, place: int, specs: Sequence[VpcSpec]) -> _KernelProxy:
        return _KernelProxy(made, made.proxies[tenant][place], specs)

    def proxy(self, made: Bed, tenant: str, place: int, specs: Sequence[VpcSpec]) -> _KernelProxy:
        proxy = self.begun(made, tenant, place, specs)
        proxy.heard()
        return proxy


class _PortableProxy(ProxyProcess):
    def stop(self) -> None:
        if self.process is not None:
            self.kill()


class PortableBackend:
    """The primary has the Vpc's fixed address; whoever runs proxies gives it to the other when that one is lost."""

    name = "portable"

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def _identity(self, role: str, name: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="fg-members-")
        folder = Path(self._folder.name)
        identity(Authority(folder / "authority"), folder, role, name)
        return next(folder.glob(f"{role}-{name}-*"))

    def plane(self, made: Bed, place: int) -> PlaneInHost:
        return PlaneInHost(made.nodes[place], lambda: PortablePlane(loaded(self._identity("node", f"n{place}"))))

    def begun(self, made: Bed, tenant: str, place: int, specs: Sequence[VpcSpec]) -> _PortableProxy:
        host = made.proxies[tenant][place]
        if place == 0:
            host.ip("address", "replace", f"{VIRTUAL}/32", "dev", "lan0")
        proxy = _PortableProxy(host, host.name, self._identity("vpc-proxy", host.name))
        proxy.begin(specs)
        return proxy

    def proxy(self, made: Bed, tenant: str, place: int, specs: Sequence[VpcSpec]) -> _PortableProxy:
        proxy = self.begun(made, tenant, place, specs)
        proxy.heard()
        return proxy


BACKENDS: list[Backend] = [KernelBackend(), PortableBackend()]


def network(function: Host, card: str = "", guest: str = "") -> SandboxNetwork:
    return SandboxNetwork(function.namespace.descriptor, card, guest)


class Network:
    """A bed with one backend on it: all proxies run, every node has a plane."""

    def __init__(self, backend: Backend, made: Bed) -> None:
        self.backend, self.bed = backend, made
        self.specs = {tenant: made.spec(tenant) for tenant in made.networks}
        self.proxies = {
            tenant: [backend.begun(made, tenant, place, [self.specs[tenant]]) for place in range(2)] for tenant in made.networks
        }
        for pair in self.proxies.values():
            for proxy in pair:
                proxy.heard()
        self.planes = [backend.plane(made, place) for place in range(len(made.nodes))]

    def use(self, *specs: VpcSpec) -> None:
        """These and, of tenants not named, what was; proxies and nodes are told, and tunnels open."""
        self.specs |= {spec.tenant: spec for spec in specs}
        for tenant, spec in self.specs.items():
            for proxy in self.proxies[tenant]:
                proxy.use([spec])
        for plane in self.planes:
            plane.use(*self.specs.values())
            for spec in self.specs.values():
                state = plane.opened(spec.vpc)
                assert state.generation == spec.generation

    def close(self) -> None:
        for plane in self.planes:
            plane.stop()
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda proxy: proxy.stop(), [proxy for pair in self.proxies.values() for proxy in pair]))


@contextlib.contextmanager
def private_network(backend: Backend, nodes: int = 1, postgres: bool = False) -> Iterator[Network]:
    with bed(nodes, postgres) as made:
        running = Network(backend, made)
        try:
            running.use()
            yield running
        finally:
            running.close()

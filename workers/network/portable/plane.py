"""The portable backend's side on a node (workers.ports.TunnelPlane)."""

import asyncio
import contextlib
import functools
from collections.abc import Sequence

import structlog

from workers.network.portable import probing, wiring
from workers.network.portable.aside import Aside
from workers.network.portable.attached import Attached, reachable
from workers.network.portable.credit import Budget
from workers.network.portable.tunnel import Tunnel
from workers.networks import Egress, TunnelState, VpcSpec
from workers.ports import NetworkUnavailable, SandboxNetwork
from workers.rpc.transport import Identity

WINDOWS = 128 << 20
"""Bytes that the windows of all streams may hold; a stream that finds no room in it is refused."""

SHARES = 4
"""One Vpc may hold such a part of it, so that no tenant takes it all."""


log = structlog.get_logger(__name__)


class PortablePlane:
    """Needs no privilege beyond that of making sandboxes. `reason`: why it is not a better backend, in words for `describe`."""

    backend = "portable"
    carries_internet = True

    def __init__(self, identity: Identity | None, reason: str = "") -> None:
        """`identity`: the node's; without one (a node of no cluster) there are no tunnels, only the way to the Internet."""
        self.reason = reason
        self._identity = identity
        self._budget = Budget(WINDOWS)
        self._tunnels: dict[str, Tunnel] = {}
        self._attached: set[Attached] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._threads: Aside | None = None
        self._news = asyncio.Event()

    async def start(self) -> None:
        await self._aside().run(probing.probe)

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        wanted = {spec.vpc: spec for spec in vpcs}
        for vpc, spec in wanted.items():
            tunnel = self._tunnels.get(vpc)
            if tunnel is None:
                if self._identity is None:
                    continue
                self._tunnels[vpc] = Tunnel(spec, self._identity, Budget(WINDOWS // SHARES, self._budget), self._changed)
                continue
            tunnel.unwanted = False
            if spec == tunnel.spec:
                continue
            tunnel.follow(spec)
            for attached in self._attached:
                if attached.tunnel is tunnel:
                    with contextlib.suppress(OSError):  # its sandbox is going
                        attached.follow()
        for vpc, tunnel in list(self._tunnels.items()):
            if vpc not in wanted:
                tunnel.unwanted = True
                self._perhaps_close(vpc, tunnel)
        self._changed()

    def _perhaps_close(self, vpc: str, tunnel: Tunnel) -> None:
        if tunnel.unwanted and not tunnel.attached and self._tunnels.get(vpc) is tunnel:
            del self._tunnels[vpc]
            task = asyncio.get_running_loop().create_task(tunnel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._changed()

    def _changed(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def states(self) -> Sequence[TunnelState]:
        return [tunnel.state for tunnel in self._tunnels.values()]

    def state(self, vpc: str) -> TunnelState | None:
        tunnel = self._tunnels.get(vpc)
        return tunnel.state if tunnel is not None else None

    async def opened(self, vpc: str, timeout_s: float) -> TunnelState:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    tunnel = self._tunnels.get(vpc)
                    if tunnel is not None and tunnel.state.ready:
                        return tunnel.state
                    await self._news.wait()
        raise NetworkUnavailable(f"{self._why_not(vpc)}; waited {timeout_s:g} s")

    def _why_not(self, vpc: str) -> str:
        tunnel = self._tunnels.get(vpc)
        if tunnel is not None:
            return f"{vpc}: {tunnel.state.reason}"
        if self._identity is None:
            return f"{vpc}: this node has no certificate, so it reaches no proxy: let it join a cluster (foreglow join)"
        return f"{vpc}: this node was not told of that Vpc"

    async def wire(self, network: SandboxNetwork) -> None:
        try:
            await self._aside().run(functools.partial(wiring.wire, network))
        except OSError as error:
            raise NetworkUnavailable(f"the sandbox's network cannot be wired: {error}") from error

    async def attach(self, vpc: str, egress: str, network: SandboxNetwork) -> Attached:
        tunnel = self._tunnels.get(vpc)
        if vpc and (tunnel is None or not tunnel.state.ready):
            raise NetworkUnavailable(self._why_not(vpc))
        if not vpc and egress != Egress.INTERNET:
            raise NetworkUnavailable("neither a Vpc nor the Internet is asked for: there is nothing to attach to")
        before = tunnel.spec if tunnel is not None else None
        if tunnel is not None:
            tunnel.hold(1)
        try:
            wired = await self._wired(vpc, network, tunnel, egress)
            attached = Attached(tunnel, egress, wired, self._detached)
            self._attached.add(attached)
        except BaseException:
            self._released(tunnel)
            raise
        try:
            attached.start()
            if tunnel is not None and tunnel.spec is not before:  # it changed while the sandbox was being wired
                attached.follow()
        except OSError as error:
            attached.detach()
            raise NetworkUnavailable(f"{vpc}: {error}") from error
        except BaseException:
            attached.detach()
            raise
        return attached

    async def _wired(self, vpc: str, network: SandboxNetwork, tunnel: Tunnel | None, egress: str) -> wiring.Wired:
        make = functools.partial(wiring.Wired, network, reachable(tunnel.spec if tunnel else None, egress))
        try:
            return await self._aside().at_once(make, wiring.Wired.close)
        except OSError as error:
            raise NetworkUnavailable(f"{vpc or 'the Internet'}: the sandbox's network cannot be wired: {error}") from error

    def _aside(self) -> Aside:
        if self._threads is None:
            self._threads = Aside()
        return self._threads

    def _detached(self, attached: Attached) -> None:
        self._attached.discard(attached)
        self._released(attached.tunnel)

    def _released(self, tunnel: Tunnel | None) -> None:
        if tunnel is not None:
            tunnel.hold(-1)
            self._perhaps_close(tunnel.spec.vpc, tunnel)

    async def stop(self) -> None:
        for attached in list(self._attached):
            attached.detach()
        if self._threads is not None:
            self._threads.end()
        tunnels, self._tunnels = list(self._tunnels.values()), {}
        await asyncio.gather(*(tunnel.close() for tunnel in tunnels), *self._closing, return_exceptions=True)
        self._changed()

"""A node's tunnels as its other parts use them: which Vpcs it was told of, attaching instances, what that took."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from workers.networks import Egress, VpcSpec
from workers.ports import Attachment, Clone, NetworkUnavailable, SandboxNetwork, TunnelPlane
from workers.tallies import Histogram
from workers.versions import VersionSpec

OPEN_WAIT_S = 5.0
"""How long a start waits for a tunnel that is being opened."""

ATTACH_S = 10.0
STOP_S = 10.0
INTERNET = ""
"""In the place of a Vpc: instances of none that reach the Internet."""

log = structlog.get_logger(__name__)


def needs_tunnel(spec: VersionSpec) -> bool:
    return bool(spec.vpc) or spec.egress != Egress.NONE


class _Held:
    """An attachment with a descriptor of the sandbox's namespace: the driver closes its own when the sandbox has gone, which may
    be while a thread of the plane is about to use it."""

    def __init__(self, network: SandboxNetwork) -> None:
        self.network = msgspec.structs.replace(network, namespace=os.dup(network.namespace))
        self.inner: Attachment | None = None
        self._closed = False

    def detach(self) -> None:
        if self.inner is not None:
            self.inner.detach()
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self.network.namespace)

    def close_later(self) -> None:
        """It was broken off: what still runs in a thread has ended by then."""
        asyncio.get_running_loop().call_later(ATTACH_S, self.close)


Opens = Callable[[], Awaitable[TunnelPlane]]
"""Gives the plane, started."""


class Tunnels:
    """Lives in the node's event loop. `attaching` counts by how it went: attached, refused."""

    def __init__(self, plane: TunnelPlane, opens: Opens | None = None) -> None:
        """`opens`: gives the plane that takes the place of `plane` from some moment after `start` on; for that wait only those
        who want to be attached, or ask what is reached."""
        self.plane = plane
        self._opens = opens
        self._opening: asyncio.Task[None] | None = None
        self.attach_times = Histogram()
        self.attaching: Counter[str] = Counter({"attached": 0, "refused": 0})
        self._told: dict[str, VpcSpec] = {}
        self._retired: set[str] = set()
        self._using = asyncio.Lock()

    def start(self) -> None:
        """The node serves: opening takes half a second of a core, which most nodes have no use for."""
        if self._opens is not None:
            self._opening = asyncio.get_running_loop().create_task(self._open(self._opens))

    async def _open(self, opens: Opens) -> None:
        self.plane = await opens()
        log.info("node.tunnels", backend=self.plane.backend, reason=self.plane.reason)
        async with self._using:
            await self._tell()

    async def settled(self) -> None:
        """Which backend it is has been decided, or that took longer than a start may wait."""
        if self._opening is not None:
            await asyncio.wait({self._opening}, timeout=OPEN_WAIT_S)

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        """All Vpcs whose tenants may be here. What one planner knows late is not undone: the newer spec of each stays."""
        told: dict[str, VpcSpec] = {}
        for spec in vpcs:
            known = self._told.get(spec.vpc)
            if spec.tenant not in self._retired:
                told[spec.vpc] = spec if known is None or spec.generation >= known.generation else known
        await self._use(told)

    async def forget(self, tenant: str) -> None:
        """The tenant is gone for good."""
        self._retired.add(tenant)
        await self._use({vpc: spec for vpc, spec in self._told.items() if spec.tenant != tenant})

    async def _use(self, told: dict[str, VpcSpec]) -> None:
        if told == self._told:
            return
        self._told = told
        async with self._using:
            await self._tell()

    async def _tell(self) -> None:
        try:
            await self.plane.use(list(self._told.values()))
        except Exception:  # whatever it was: the node goes on, and what is told next is tried again
            log.exception("tunnels.not_used", vpcs=len(self._told))
            self._told = {}

    def wanted(self, tenant: str) -> bool:
        """Whether instances of the tenant may have to be attached; an empty one stands for any."""
        return any(not tenant or spec.tenant == tenant for spec in self._told.values())

    def reached(self) -> list[str]:
        """The Vpcs that instances can be attached to now, INTERNET among them."""
        if self.plane.backend == "none":
            return []
        alone = [INTERNET] if self.plane.carries_internet else []
        return [*alone, *sorted(one.vpc for one in self.plane.states() if one.ready)]

    async def wire(self, clone: Clone, tenant: str) -> None:
        """Ahead of need, for a standby. One that cannot be wired says so when it is attached."""
        network = clone.network if self.wanted(tenant) else None
        if network is None or self.plane.backend == "none":
            return
        held = _Held(network)
        try:
            async with asyncio.timeout(ATTACH_S):
                await self.plane.wire(held.network)
            held.close()
        except (NetworkUnavailable, TimeoutError) as error:
            held.close_later()
            log.warning("standby.not_wired", tenant=tenant, reason=str(error) or "it took too long")
        except BaseException:
            held.close_later()
            raise

    async def attach(self, spec: VersionSpec, clone: Clone) -> tuple[Attachment, float] | None:
        """From now on it reaches what the version may, and how many ms that took; None when it may reach nothing. Raises
        NetworkUnavailable."""
        if not needs_tunnel(spec):
            return None
        began = time.perf_counter()
        try:
            attachment = await self._attach(spec, clone)
        except NetworkUnavailable:
            self.attaching["refused"] += 1
            raise
        took = time.perf_counter() - began
        self.attaching["attached"] += 1
        self.attach_times.add(took)
        return attachment, took * 1000

    async def _attach(self, spec: VersionSpec, clone: Clone) -> Attachment:
        network = clone.network
        if network is None:
            where = spec.vpc or "the Internet"
            raise NetworkUnavailable(f"{where}: sandboxes of this node have no network of their own (foreglow doctor says why)")
        await self.settled()
        if spec.vpc:
            await self.plane.opened(spec.vpc, OPEN_WAIT_S)
        held = _Held(network)
        try:
            async with asyncio.timeout(ATTACH_S):
                held.inner = await self.plane.attach(spec.vpc, spec.egress, held.network)
            return held
        except NetworkUnavailable:
            held.close()
            raise
        except TimeoutError:
            held.close_later()
            raise NetworkUnavailable(f"{spec.vpc or 'the Internet'}: attaching took more than {ATTACH_S:g} s") from None
        except BaseException:
            held.close_later()
            raise

    def told_to(self, tenant: str) -> Mapping[str, Any]:
        """What a tenant may know: the backend, why it is no better one, and its own tunnels."""
        states = [msgspec.structs.asdict(one) for one in self.plane.states() if one.vpc.startswith(f"{tenant}/")]
        return {"backend": self.plane.backend, "reason": self.plane.reason, "tunnels": states}

    def counts(self) -> Mapping[str, int]:
        """Tunnels that are ready and not, and instances attached."""
        states = self.plane.states()
        ready = sum(1 for one in states if one.ready)
        return {"ready": ready, "not-ready": len(states) - ready, "attached": sum(one.attached for one in states)}

    async def stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening}, timeout=STOP_S)
        try:
            async with asyncio.timeout(STOP_S):
                await self.plane.stop()
        except TimeoutError:
            log.error("tunnels.not_stopped", backend=self.plane.backend, seconds=STOP_S)

"""KernelPlane: a node's tunnels in its kernel. Opening one takes milliseconds and is done ahead; attaching an instance is one
transaction of two elements (whose its packets are, and that answers may come back), 0.1 ms."""

import asyncio
import contextlib
import functools
import os
import struct
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from workers.network.kernel import addresses, requests, rules
from workers.network.kernel.cables import Cable, Cables, departures
from workers.network.kernel.router import CABLES, Router
from workers.network.kernel.tunnel import Tunnel
from workers.networks import Egress, TunnelState, VpcSpec
from workers.ports import Attachment, NetworkUnavailable, SandboxNetwork

AGAIN_S = 5.0  # until a tunnel that could not be opened is tried again
CARRIER_S = 2.0  # between two looks at which proxy carries the tunnels
LINGER_S = 2.0  # a cable whose instance was detached goes with its sandbox, which is quicker, or after that time

log = structlog.get_logger(__name__)


class KernelPlane:
    """`underlay`: this host's own IPv4 that carries tunnels. `number`: 1 to 65535, of no other node of the cluster."""

    backend = "kernel"
    reason = ""
    carries_internet = False

    def __init__(self, underlay: str, number: int) -> None:
        if not 1 <= number <= addresses.LAST_NUMBER:
            raise ValueError(f"a node's number is 1 to {addresses.LAST_NUMBER}, not {number}")
        self._router = Router(underlay, number)
        self._tunnels: dict[int, Tunnel] = {}
        self._cables = Cables()
        self._wiring: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._kick = asyncio.Event()
        self._heard = asyncio.Event()
        """Some tunnel is answered, or is again: by whom is to be seen."""

    async def start(self) -> None:
        if os.geteuid() != 0:
            raise PermissionError(1, "the kernel backend needs root")
        try:
            await self._router.do(self._router.start)
        except BaseException:
            await self._router.end()
            raise
        self._started = True
        asyncio.get_running_loop().add_reader(self._router.departures, self._departed)
        self._background(self._follow())
        self._background(self._watch())

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        wanted = {spec.number: spec for spec in vpcs}
        for number, tunnel in self._tunnels.items():
            tunnel.leaving = number not in wanted
        for number, spec in wanted.items():
            tunnel = self._tunnels.get(number) or self._placed(spec)
            if spec != tunnel.spec:
                tunnel.spec, tunnel.fault = spec, ""
            tunnel.tell()
        self._kick.set()

    async def opened(self, vpc: str, timeout_s: float) -> TunnelState:
        tunnel: Tunnel | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    tunnel = self._of(vpc)
                    if tunnel is None:
                        raise NetworkUnavailable(f"{vpc}: this node has no tunnel into it")
                    state = tunnel.state(self.backend)
                    if state.ready:
                        return state
                    await tunnel.changed.wait()
        except TimeoutError:
            assert tunnel is not None
            raise NetworkUnavailable(f"{vpc}: not ready within {timeout_s:g} s: {tunnel.state(self.backend).reason}") from None

    def states(self) -> Sequence[TunnelState]:
        return [tunnel.state(self.backend) for tunnel in self._tunnels.values()]

    def state(self, vpc: str) -> TunnelState | None:
        tunnel = self._of(vpc)
        return tunnel.state(self.backend) if tunnel is not None else None

    async def wire(self, network: SandboxNetwork) -> None:
        self._departed()  # before the namespace's number is trusted to be this sandbox's
        cable = self._cables.of(network)
        if cable is None:
            cable = self._cables.taken(network)
            cable.known = True  # while it is being wired
            self._wiring[cable.index] = self._background(self._wire(cable, network))
        if (wiring := self._wiring.get(cable.index)) is not None:
            await asyncio.shield(wiring)
            if self._cables.of(network) is not cable:
                raise NetworkUnavailable("the sandbox could not be wired; the log says why")

    async def attach(self, vpc: str, egress: str, network: SandboxNetwork) -> Attachment:
        tunnel = self._of(vpc)
        if tunnel is None:
            raise NetworkUnavailable(
                f"{vpc}: this node has no tunnel into it"
                if vpc
                else "egress = internet without a Vpc is not carried by the kernel backend: name a Vpc, whose proxy it leaves by"
            )
        if tunnel.leaving or not tunnel.device:
            raise NetworkUnavailable(f"{vpc}: {tunnel.state(self.backend).reason}")
        self._departed()
        cable = self._cables.of(network)
        if cable is None or cable.index in self._wiring:
            await self.wire(network)
            cable = self._cables.of(network)
            if cable is None or tunnel.leaving or not tunnel.device:
                raise NetworkUnavailable(f"{vpc}: the sandbox or the tunnel went while it was wired")
        if cable.used:
            raise NetworkUnavailable(f"{vpc}: the sandbox was attached before, which happens once in its life")
        mark = addresses.mark(tunnel.slot, cable.index, egress == Egress.INTERNET)
        packed = struct.pack("I", mark)
        try:
            self._router.elements.transaction(
                "attaching an instance",
                requests.element(rules.TABLE, "instances", _place(cable.index), packed),
                requests.element(rules.TABLE, "live", packed),
            )
        except OSError as error:
            raise NetworkUnavailable(f"{vpc}: {error}") from error
        cable.used = cable.known = True
        tunnel.attached += 1
        return _Attached(self, tunnel, cable, mark)

    async def stop(self) -> None:
        if not self._started:
            return
        self._started = False
        asyncio.get_running_loop().remove_reader(self._router.departures)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for tunnel in self._tunnels.values():
            await tunnel.quiet()
        self._tunnels.clear()
        await self._router.end()

    def detach(self, tunnel: Tunnel, cable: Cable, mark: int) -> None:
        """What an attachment's `detach` does, once."""
        if not self._started:
            return
        packed = struct.pack("I", mark)
        try:
            self._router.elements.transaction(
                "detaching an instance",
                requests.element(rules.TABLE, "live", packed, delete=True),
                requests.element(rules.TABLE, "instances", _place(cable.index), delete=True),
            )
        except OSError as error:  # its cable goes next, which ends it as well
            log.error("networks.not_detached", vpc=tunnel.spec.vpc, error=str(error))
        tunnel.attached -= 1
        tunnel.tell()
        if tunnel.leaving:
            self._kick.set()
        cable.detached_at = asyncio.get_running_loop().time()
        self._background(self._forget(cable, mark))

    def _of(self, vpc: str) -> Tunnel | None:
        """The Vpc's; of one that was removed and made again, the new one's."""
        found = [tunnel for tunnel in self._tunnels.values() if tunnel.spec.vpc == vpc]
        return min(found, key=lambda tunnel: tunnel.leaving, default=None)

    def _placed(self, spec: VpcSpec) -> Tunnel:
        taken = {tunnel.slot for tunnel in self._tunnels.values()}
        slot = next((slot for slot in range(1, addresses.LAST_SLOT + 1) if slot not in taken), 0)
        tunnel = self._tunnels[spec.number] = Tunnel(spec, slot)
        return tunnel

    async def _follow(self) -> None:
        """Brings the kernel to what `use` said last, a tunnel at a time; again after a while where that failed."""
        while True:
            self._kick.clear()
            for tunnel in list(self._tunnels.values()):
                if tunnel.leaving:
                    if not tunnel.attached:
                        await self._close(tunnel)
                elif tunnel.followed != tunnel.spec:
                    await self._bring(tunnel)
            failed = any(tunnel.fault for tunnel in self._tunnels.values())
            try:
                await asyncio.wait_for(self._kick.wait(), AGAIN_S if failed else None)
            except TimeoutError:
                continue

    async def _bring(self, tunnel: Tunnel) -> None:
        spec, router = tunnel.spec, self._router
        fault = addresses.refusal(spec) or ("" if tunnel.slot else f"this node has its {addresses.LAST_SLOT} tunnels")
        if not fault:
            try:
                if tunnel.device:
                    before = tunnel.followed
                    await router.do(lambda: router.follow(spec, tunnel.slot, tunnel.device, before))
                else:
                    device = await router.do(lambda: router.open(spec, tunnel.slot))
                    tunnel.probe(await router.do(lambda: router.probe(device, tunnel.slot)), lambda _: self._heard.set())
                    tunnel.device = device
                tunnel.followed = spec
            except OSError as error:
                fault = str(error)
        if fault and fault != tunnel.fault:
            log.warning("networks.not_open", vpc=spec.vpc, error=fault)
        tunnel.fault = fault if spec == tunnel.spec else ""
        tunnel.tell()

    async def _close(self, tunnel: Tunnel) -> None:
        await tunnel.quiet()
        device, tunnel.device = tunnel.device, 0
        try:
            await self._router.do(lambda: self._router.shut(tunnel.spec, tunnel.slot, device))
        except OSError as error:
            log.error("networks.not_closed", vpc=tunnel.spec.vpc, error=str(error))
        if tunnel.leaving:
            del self._tunnels[tunnel.spec.number]
        else:  # named again meanwhile
            tunnel.followed = None
            self._kick.set()
        tunnel.tell()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), CARRIER_S)
            self._heard.clear()
            await self._see_carriers()
            lingering = self._cables.lingering(asyncio.get_running_loop().time() - LINGER_S)
            if lingering:  # a connection that nobody closed keeps its sandbox's namespace
                with contextlib.suppress(OSError):
                    await self._router.do(functools.partial(self._router.unwire, lingering))

    async def _see_carriers(self) -> None:
        tunnels = {tunnel.device: tunnel for tunnel in self._tunnels.values() if tunnel.device}
        specs = {device: tunnel.followed or tunnel.spec for device, tunnel in tunnels.items()}
        found: dict[int, str] = {}
        with contextlib.suppress(OSError):
            found = await self._router.do(lambda: self._router.carriers(specs))
        for device, tunnel in tunnels.items():
            tunnel.carried(found.get(device, ""))

    async def _wire(self, cable: Cable, network: SandboxNetwork) -> None:
        try:
            await self._router.do(lambda: self._router.wire(network, cable.index))
        except OSError as error:
            log.warning("networks.not_wired", error=str(error))
            self._cables.gone(cable.index)
        finally:
            del self._wiring[cable.index]
            cable.known = False
            self._cables.free(cable)  # where its sandbox went meanwhile

    async def _forget(self, cable: Cable, mark: int) -> None:
        try:
            await self._router.do(lambda: self._router.forget(mark))
        except OSError as error:  # its address is lost to this process, rather than given to somebody else
            log.error("networks.address_not_freed", address=addresses.instance_address(cable.index), error=str(error))
        else:
            cable.known = False
            self._cables.free(cable)

    def _departed(self) -> None:
        """Sandboxes that were wired and have gone."""
        try:
            for index in departures(self._router.departures):
                self._cables.gone(index)
        except OSError:  # some were missed
            self._background(self._take_stock())

    async def _take_stock(self) -> None:
        there = await self._router.do(self._router.wired)
        for index in self._cables.missing(there):
            if index not in self._wiring:
                self._cables.gone(index)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Attached:
    def __init__(self, plane: KernelPlane, tunnel: Tunnel, cable: Cable, mark: int) -> None:
        self._plane: KernelPlane | None = plane
        self._tunnel, self._cable, self._mark = tunnel, cable, mark

    def detach(self) -> None:
        plane, self._plane = self._plane, None
        if plane is not None:
            plane.detach(self._tunnel, self._cable, self._mark)


def _place(index: int) -> bytes:
    """An element's key in `instances`: device and address."""
    return struct.pack("I", CABLES + index) + struct.pack(">I", (100 << 24) + (64 << 16) + index)

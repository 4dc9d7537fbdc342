"""The proxies of both backends as one: what is known of the private network goes to both, and both say how they stand."""

import asyncio
import contextlib
import ipaddress
from collections.abc import Sequence

import structlog

from orchestrator.vpc_proxy.knowing import Ask, Away, Known
from orchestrator.vpc_proxy.place import Place
from workers.network.kernel.endpoint import NodePlace
from workers.network.kernel.proxy import KernelProxy
from workers.network.portable.proxy import Carrying, PortableProxy
from workers.networks import TunnelState
from workers.rpc.transport import HostPort, parse_address

ASK_EVERY_S = 1.0
STOP_S = 10.0

log = structlog.get_logger(__name__)


class Proxy:
    """`without_kernel`: why nodes of the kernel backend are not served here; empty when they are."""

    def __init__(self, place: Place, known: Known) -> None:
        self.known = known
        self.serving = False
        self.without_kernel = "not started"
        self.asked_in_vain = 0
        self.portable = PortableProxy(known.admits)
        self._place = place
        self._kernel: KernelProxy | None = None

    async def start(self) -> int:
        """Serves what was known last; the port of its listener. Raises OSError."""
        kernel = KernelProxy(self._place.own.name, self._place.folder / "kernel")
        try:
            await kernel.start()
        except OSError as error:
            self.without_kernel = error.strerror or str(error)
        else:
            self._kernel, self.without_kernel = kernel, ""
        await self.portable.start([self._place.address], self._place.own.identity)
        await self._use()
        self.serving = True
        return self.portable.ports[0]

    async def follow(self, ask: Ask) -> None:
        """Asks what there is to know, for ever. Raises JoinFailed once control counts this proxy no more."""
        while True:
            try:
                news = await asyncio.to_thread(ask)
            except Away as error:
                self.asked_in_vain += 1
                log.info("proxy.control_away", reason=str(error)[:300])
            else:
                if self.known.take(news):
                    await self._use()
            await asyncio.sleep(ASK_EVERY_S)

    async def stop(self) -> None:
        self.serving = False
        await self.portable.stop()
        if self._kernel is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._kernel.stop()

    def carrying(self) -> Sequence[Carrying]:
        return self.portable.states()

    def kernel_states(self) -> Sequence[TunnelState]:
        return self._kernel.states() if self._kernel is not None else ()

    @property
    def changes(self) -> int:
        """How often the kernel backend's pair changed over, as this one of it knows."""
        return self._kernel.changes if self._kernel is not None else 0

    async def _use(self) -> None:
        news = self.known.news
        specs = [news.spec] if news.spec is not None else []
        if self.known.told and news.spec is None:
            log.warning("proxy.network_gone", vpc=self._place.vpc)
        self.portable.use(specs)
        if self._kernel is not None:
            places = [NodePlace(one.name, host, one.number) for one in news.nodes if one.number and (host := _host(one.address))]
            await self._kernel.use(specs, places)


def _host(address: str) -> str:
    """Its IPv4 address; empty when it has none that kernel tunnels could go by."""
    where = parse_address(address)
    try:
        return str(ipaddress.IPv4Address(where.host)) if isinstance(where, HostPort) else ""
    except ValueError:
        return ""

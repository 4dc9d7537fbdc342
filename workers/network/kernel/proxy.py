"""KernelProxy: what `foreglow vpc proxy` runs for the nodes of the kernel backend, an Endpoint for each Vpc.

The pair holds no election of ours: keepalived decides, and writes into a pipe what this proxy has become. A change of proxies,
number or address makes the endpoint anew; rules and nodes are followed while connections go on.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from workers.network.kernel import addresses
from workers.network.kernel.endpoint import Endpoint, NodePlace
from workers.networks import TunnelState, VpcSpec

BACKEND = "kernel"
LOOK_S = 1.0  # between two looks at the programs
AGAIN_S = 5.0  # until an endpoint that could not be made, or that ended, is made again

log = structlog.get_logger(__name__)


class _Served:
    """An endpoint as it is. `role`: keepalived's word, master | backup | fault; `turns`: how often it has become another."""

    def __init__(self, spec: VpcSpec) -> None:
        self.spec = spec
        self.endpoint: Endpoint | None = None
        self.fault = ""
        self.role = ""
        self.turns = 0
        self.made_at = 0.0
        self.pipe = -1
        self.heard = b""

    @property
    def changes(self) -> int:
        """Of its role, after the first one."""
        return max(0, self.turns - 1)


class KernelProxy:
    """`name`: that of this proxy in the specs. `state`: a folder of its own."""

    def __init__(self, name: str, state: Path) -> None:
        self._name, self._state = name, state
        self._served: dict[int, _Served] = {}
        self._specs: dict[int, VpcSpec] = {}
        self._nodes: tuple[NodePlace, ...] = ()
        self._turn = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError when this backend does not work here."""
        if os.geteuid() != 0:
            raise PermissionError(1, "the kernel backend needs root")
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def use(self, specs: Sequence[VpcSpec], nodes: Sequence[NodePlace]) -> None:
        """The Vpcs this proxy is to serve, and for whom. Returns when that is so, or why not is in `states`."""
        self._specs = {spec.number: spec for spec in specs if self._name in [proxy.name for proxy in spec.proxies]}
        self._nodes = tuple(nodes)
        await self._settle()

    def states(self) -> Sequence[TunnelState]:
        """`attached`: nodes it carries for."""
        return [self._state_of(served) for served in self._served.values()]

    @property
    def changes(self) -> int:
        """Of roles, in the networks served now: by a fault, and without one when advertisements came late."""
        return sum(served.changes for served in self._served.values())

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        async with self._turn:
            for served in self._served.values():
                await self._end(served)
            self._served.clear()

    def _state_of(self, served: _Served) -> TunnelState:
        spec = served.spec
        if served.endpoint is None:
            return TunnelState(spec.vpc, spec.generation, False, served.fault or "it is being made", BACKEND)
        ready = served.role in ("master", "backup")
        reason = f"{BACKEND}, {served.role or 'no role yet'}, {served.changes} changes of role"
        return TunnelState(spec.vpc, spec.generation, ready, reason, BACKEND, len(self._nodes))

    async def _settle(self) -> None:
        async with self._turn:
            for number in self._served.keys() - self._specs.keys():
                await self._end(self._served.pop(number))
            for number, spec in self._specs.items():
                served = self._served.setdefault(number, _Served(spec))
                if served.endpoint is not None and _shape(served.spec) != _shape(spec):
                    await self._end(served)
                before, served.spec = served.spec, spec
                if served.endpoint is None:
                    await self._make(served)
                await self._follow(served, before)

    async def _make(self, served: _Served) -> None:
        now = asyncio.get_running_loop().time()
        if served.fault and now - served.made_at < AGAIN_S:
            return
        served.made_at, spec = now, served.spec
        fault = addresses.refusal(spec)
        if len(spec.proxies) > len(addresses.PAIR):
            fault = f"it has {len(spec.proxies)} proxies; a pair is one or two"
        if not fault:
            endpoint = Endpoint(self._name, spec, self._state / f"vpc-{spec.number}")
            try:
                await endpoint.do(endpoint.start)
                self._listen(served, endpoint)
                await endpoint.do(lambda: endpoint.carry(self._nodes))
                await endpoint.do(endpoint.run)
            except OSError as error:
                fault = str(error)
                self._deaf(served)
                await endpoint.end()
            else:
                served.endpoint = endpoint
        if fault and fault != served.fault:
            log.warning("networks.not_served", vpc=spec.vpc, error=fault)
        served.fault = fault

    async def _follow(self, served: _Served, before: VpcSpec) -> None:
        endpoint, spec = served.endpoint, served.spec
        if endpoint is None:
            return
        try:
            if (before.cidrs, before.rules) != (spec.cidrs, spec.rules):
                await endpoint.do(lambda: endpoint.rule(spec))
            endpoint.spec = spec
            await endpoint.do(lambda: endpoint.carry(self._nodes))
        except OSError as error:
            served.fault = str(error)
            log.error("networks.not_followed", vpc=spec.vpc, error=str(error))
            await self._end(served)

    async def _end(self, served: _Served) -> None:
        self._deaf(served)
        endpoint, served.endpoint = served.endpoint, None
        served.role = ""
        if endpoint is not None:
            await endpoint.end()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            wanting = False
            for served in list(self._served.values()):
                if served.endpoint is None:
                    wanting = True
                elif fault := served.endpoint.ended():
                    log.error("networks.proxy_program_ended", vpc=served.spec.vpc, error=fault)
                    async with self._turn:
                        await self._end(served)
                    served.fault, wanting = fault, True
            if wanting:
                await self._settle()

    def _listen(self, served: _Served, endpoint: Endpoint) -> None:
        served.pipe = os.open(endpoint.roles, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(served.pipe, self._told, served)

    def _deaf(self, served: _Served) -> None:
        if served.pipe >= 0:
            asyncio.get_running_loop().remove_reader(served.pipe)
            os.close(served.pipe)
            served.pipe = -1

    def _told(self, served: _Served) -> None:
        """keepalived's lines: INSTANCE "foreglow" MASTER 200, or MASTER_RX_LOWER_PRI where it stays the master though the other
        had taken itself for that."""
        with contextlib.suppress(BlockingIOError):
            served.heard += os.read(served.pipe, 4096)
        *lines, served.heard = served.heard.split(b"\n")
        served.heard = served.heard[-4096:]
        for line in lines:
            words = line.decode(errors="replace").split()
            if len(words) >= 3 and words[0] == "INSTANCE":
                role = words[2].lower().removesuffix("_rx_lower_pri")
                if role != served.role:
                    served.role, served.turns = role, served.turns + 1
                    log.info("networks.proxy_role", vpc=served.spec.vpc, role=role, changes=served.turns)


def _shape(spec: VpcSpec) -> tuple[object, ...]:
    """What an endpoint is made for; another one needs another endpoint."""
    return spec.address, tuple((proxy.name, addresses.underlay(proxy)) for proxy in spec.proxies)

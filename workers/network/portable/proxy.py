"""The portable backend's side inside a private network: takes links from nodes, and connects on for their functions."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence

import msgspec

from workers.network.portable.credit import Budget
from workers.network.portable.handshakes import Listener, serve
from workers.network.portable.link import Link
from workers.network.portable.outward import has
from workers.network.portable.served import Served
from workers.networks import VpcSpec
from workers.rpc.transport import HostPort, Identity, NotTrusted, Peer

WINDOWS = 256 << 20
SHARES = 4
"""Of the bytes that all windows may hold, one link may hold such a part."""

MAX_LINKS_PER_NODE = 2
"""Of one node and Vpc: one that stands, and one that the node made after a loss this side has not seen yet."""

MAX_UNSAID, MAX_UNSAID_PER_NODE = 64, 4
"""Connections that have not said hello, of all nodes and of one."""

LOOK_S = 1.0
"""Between two looks at which addresses this host has."""

Admits = Callable[[Peer, str], str]
"""Why a node (its certificate is good) may not use a Vpc; empty: it may."""


class Carrying(msgspec.Struct, frozen=True):
    """What a proxy does for one Vpc now. `address_here`: it has the Vpc's fixed address, or the Vpc names none."""

    vpc: str
    generation: int
    nodes: tuple[str, ...]
    streams: int
    address_here: bool


class PortableProxy:
    """One per proxy process. All methods on its event loop."""

    def __init__(self, admit: Admits) -> None:
        self._admit = admit
        self._specs: dict[str, VpcSpec] = {}
        self.budget = Budget(WINDOWS)
        self._servers: list[Listener] = []
        self._served: set[Served] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    async def start(self, addresses: Sequence[HostPort], identity: Identity) -> None:
        """Listens. Raises OSError."""
        try:
            for address in addresses:
                self._servers.append(serve(self._make, address, identity))
        except BaseException:
            await self.stop()
            raise
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for served in list(self._served):
                if (spec := self._specs.get(served.vpc)) is not None:
                    served.look(spec)

    def _make(self) -> Link:
        served = Served(self, Budget(WINDOWS // SHARES, self.budget))
        served.link = Link(served, served.budget, pings=False)
        return served.link

    @property
    def ports(self) -> list[int]:
        """Where it listens, in the order of `start`'s addresses."""
        return [int(server.sockets[0].getsockname()[1]) for server in self._servers]

    def use(self, specs: Sequence[VpcSpec]) -> None:
        """The Vpcs whose private network this is in. Links of others are closed once their streams have ended; streams that the
        rules do not allow any more are reset, links of nodes that may not use the Vpc any more end at once."""
        before, self._specs = self._specs, {spec.vpc: spec for spec in specs}
        for served in list(self._served):
            if not served.vpc:
                continue
            spec = self._specs.get(served.vpc)
            if spec is None:
                served.close_when_drained()
            elif (refused := self._admit(served.peer, served.vpc)) and served.link is not None:
                served.link.drop(refused)
            elif spec != before.get(served.vpc):
                served.follow(spec)

    def states(self) -> list[Carrying]:
        found = []
        for vpc, spec in self._specs.items():
            mine = [served for served in self._served if served.vpc == vpc]
            streams = sum(len(served.link.carried) for served in mine if served.link is not None)
            here = not spec.address or has(spec.address)
            found.append(Carrying(vpc, spec.generation, tuple(sorted({one.node for one in mine})), streams, here))
        return found

    async def stop(self) -> None:
        """Nothing is left."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
        for server in self._servers:
            server.close()
        self._servers.clear()
        for served in list(self._served):
            if served.link is not None:
                served.link.drop("the proxy stops")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- for its links

    def spec(self, vpc: str) -> VpcSpec | None:
        return self._specs.get(vpc)

    def enters(self, served: Served) -> None:
        """Raises NotTrusted when there are too many that said nothing yet."""
        unsaid = [one for one in self._served if not one.vpc]
        own = sum(1 for one in unsaid if one.peer.name == served.peer.name)
        if len(unsaid) >= MAX_UNSAID or own >= MAX_UNSAID_PER_NODE:
            raise NotTrusted("too many connections that said no hello")
        self._served.add(served)

    def admits(self, served: Served, peer: Peer, vpc: str) -> str:
        refused = self._admit(peer, vpc)
        if not refused:
            same = [one for one in self._served if one is not served and (one.node, one.vpc) == (peer.name, vpc)]
            for oldest in sorted(same, key=lambda one: one.number)[: max(0, len(same) - MAX_LINKS_PER_NODE + 1)]:
                if oldest.link is not None:
                    oldest.link.drop("the node has made newer ones")
        return refused

    def leaves(self, served: Served) -> None:
        self._served.discard(served)

    def spawn(self, served: Served, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        for tasks in (self._tasks, served.tasks):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

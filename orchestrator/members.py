"""One peer for each member of a role, as the routes say: added, dialled anew, told of its epoch, dropped."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

import structlog

from orchestrator.catalog.routes import NodeRoute
from workers.callers import ROLES
from workers.rpc.messages import Caller
from workers.rpc.transport import LOCAL, Address, Peer, parse_address

__all__ = ["LOCAL", "Followed", "Members", "admit", "callers_of"]

STOP_S = 2.0
log = structlog.get_logger(__name__)


class Followed(Protocol):
    """A peer that dials for ever once it runs."""

    def set_epoch(self, epoch: int) -> None:
        """The member counts from this epoch on: an older one is told so and dropped."""

    def set_whom(self, whom: Peer) -> None:
        """It is renewing its certificate: from now on these are expected. The connection that stands is left alone."""

    async def run(self) -> None: ...


One = TypeVar("One", bound=Followed)
Make = Callable[[Address, Peer, int], One]


class Members(Generic[One]):
    """`make(address, whom, epoch)`; `changed(peers)` after every change of the set. Lives in one event loop."""

    def __init__(
        self,
        role: str,
        make: Make[One],
        changed: Callable[[list[One]], None],
        died: Callable[["asyncio.Task[None]"], None],
    ) -> None:
        self._role = role
        self._make = make
        self._changed = changed
        self._died = died
        self._known: dict[str, tuple[NodeRoute, One]] = {}
        self._local: list[One] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def peers(self) -> list[One]:
        return [*self._local, *(peer for _, peer in self._known.values())]

    def start(self, local: Iterable[One]) -> None:
        """Peers that are in no table: what settings name."""
        for peer in local:
            self._local.append(peer)
            self._run(peer)
        self._changed(self.peers)

    def on_node(self, name: str, route: NodeRoute | None) -> None:
        """The table changed."""
        known = self._known.get(name)
        if route is not None and route.role != self._role:
            route = None
        if known is not None and route is not None and _same_place(known[0], route):
            self._known[name] = (route, known[1])
            known[1].set_whom(route.peer)
            known[1].set_epoch(route.epoch)
            return
        if known is not None:
            del self._known[name]
            self._end(known[1])
        if route is not None:
            try:
                peer = self._make(parse_address(route.address), route.peer, route.epoch)
            except ValueError as error:
                log.error("member.unreadable", member=name, reason=str(error))
            else:
                self._known[name] = (route, peer)
                self._run(peer)
        self._changed(self.peers)

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        ending = {*self._tasks.values(), *self._ending}
        if ending:
            await asyncio.wait(ending, timeout=STOP_S)

    def _run(self, peer: One) -> None:
        task = self._tasks[id(peer)] = asyncio.get_running_loop().create_task(peer.run())
        task.add_done_callback(self._died)

    def _end(self, peer: One) -> None:
        task = self._tasks.pop(id(peer))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()


def _same_place(old: NodeRoute, new: NodeRoute) -> bool:
    """And the same member: its epoch changes when it joins anew, its certificates overlap while it renews them."""
    return old.address == new.address and (old.epoch == new.epoch or new.peer.counts(old.fingerprint))


def callers_of(routes: Iterable[NodeRoute]) -> list[Caller]:
    """Those who may speak to nodes."""
    return [Caller(one.role, one.name, one.fingerprint, one.fingerprint_before, one.epoch) for one in routes if one.role in ROLES]


def admit(roles: Iterable[str], table: Mapping[str, NodeRoute]) -> Callable[[Peer], str]:
    """Who may dial a gateway or planner: these roles; over TLS, members whose certificate counts now, and what runs beside
    control."""
    allowed = frozenset(roles)

    def admits(peer: Peer) -> str:
        if peer.role not in allowed:
            return f"a {peer.role[:63]} has nothing to ask here"
        if not peer.fingerprint or LOCAL in peer.name:
            return ""
        known = table.get(peer.name)
        if known is None or known.role != peer.role or not known.peer.counts(peer.fingerprint):
            return f"{peer.name[:63]} is no member of this cluster (any more)"
        return ""

    return admits

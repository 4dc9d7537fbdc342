"""Who may speak to a node: whom control counts. A member that was removed is out within seconds, whatever it still holds."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from doubles.cluster import LOOPBACK, identity, port_of
from doubles.joining import Control
from doubles.loop import in_loop, until
from doubles.nodes import SECRET, Rig, running_node, spec
from doubles.ports import held_port
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.authority import Authority
from orchestrator.catalog.store import Store
from orchestrator.control import peers, telling
from orchestrator.control.peers import Peer, Planner, Roster
from orchestrator.control.problems import Problem
from orchestrator.control.telling import Telling
from orchestrator.gateway.reports import Reports
from orchestrator.joining import confirm, join, rejoin, renew
from orchestrator.membership import Self, callers_file, load_callers, load_member, save_callers
from orchestrator.settings import Settings
from workers.callers import CallerList
from workers.rpc.connection import Connection, Listening, RpcError, dial, listen
from workers.rpc.messages import Caller, Callers, Hello, InvokeRequest, Rpc
from workers.rpc.transport import Address, HostPort
from workers.rpc.transport import Peer as Whom

NODE = "node-1"  # as the double is called
NAMES, PRINTS = st.sampled_from(["g1", "g2"]), st.sampled_from(["a", "b", "c", "d"])
LISTS = st.lists(
    st.builds(Caller, st.just("gateway"), NAMES, PRINTS, st.sampled_from(["", "a", "b"]), st.integers(1, 2)),
    max_size=2,
    unique_by=lambda one: one.name,
)


@given(st.lists(LISTS, min_size=1, max_size=6), NAMES, PRINTS)
def test_a_connection_lasts_as_long_as_the_membership_it_was_made_under(told: list[list[Caller]], name: str, shown: str) -> None:
    callers, peer = CallerList(told[0]), Whom("gateway", name, shown)
    connected = [] if callers.admits(peer) else [peer]
    for before, now in itertools.pairwise(told):
        then = {one.name: one for one in before}.get(name)
        there = {one.name: one for one in now}.get(name)
        gone = callers.tell(now, connected)
        counts = there is not None and shown in (there.fingerprint, there.fingerprint_before)
        assert (callers.admits(peer) == "") == counts
        if connected:
            same = then is not None and there is not None and then.epoch == there.epoch
            assert gone == ([] if counts or same else [peer])
        connected = [one for one in connected if one not in gone]


def test_what_no_list_says() -> None:
    nothing, empty = CallerList(), CallerList([])
    assert nothing.admits(Whom("gateway", "g1", "a")) == ""
    assert "no member" in empty.admits(Whom("gateway", "g1", "a"))
    assert empty.admits(Whom("gateway", "gateway@a", "a")) == "", "made by the authority's own folder"
    assert empty.admits(Whom("gateway", "g1")) == "", "of this user, on a unix socket"
    for callers in (nothing, empty):
        assert "nothing to ask" in callers.admits(Whom("node", "n1", "a"))
    assert nothing.tell([], [Whom("gateway", "g1", "a"), Whom("control", "control@a", "b")]) == [Whom("gateway", "g1", "a")]


class Ear:
    def __init__(self) -> None:
        self.lost: list[str] = []

    def on_open(self, connection: Connection) -> None: ...
    def on_message(self, connection: Connection, kind: int, ident: int, message: Any, body: bytes) -> None: ...

    def on_lost(self, connection: Connection, why: str) -> None:
        self.lost.append(why)


class Site:
    """A control with its database, a node and gateways that joined it, in one loop."""

    def __init__(self, control: Control, rig: Rig, at: HostPort, state: Path) -> None:
        self.control, self.rig, self.at, self.state = control, rig, at, state
        self.told: list[list[Caller]] = []
        rig.node.on_callers = lambda callers: self.told.append(list(callers))
        self.roster = Roster([], control.store.nodes, self.make)

    def make(self, name: str, address: Address, whom: Whom) -> Peer:
        """Control's side of a connection."""
        own = identity(self.control.authority, self.control.folder, "control", "control@a")
        return Peer(name, address, Hello("control", "control@a", SECRET), own, whom)

    async def gateway(self, name: str) -> Self:
        state = await self.control.join(self.control.token("gateway"), name, "gateway", "10.0.0.3:8703")
        await until(lambda: self.told and name in {one.name for one in self.told[-1]}, "the node was told")
        return Self(Settings(state=state), "gateway", "")

    async def dial(self, own: Self) -> tuple[Connection, Ear]:
        ear, hello = Ear(), Hello(own.role, own.name, SECRET)
        return await dial(self.at, ear, hello, identity=own.identity, expected=Whom("node", NODE)), ear


@contextlib.asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    control = Control(folder / "c")
    try:
        with held_port() as port:
            at = HostPort(LOOPBACK, port)
            async with control.listening():
                state = await control.join(control.token(), NODE, "node", str(at))
                own = Self(Settings(state=state), "node", "")
                (folder / "n").mkdir()
                async with running_node(folder / "n", also=[at], identity=own.identity) as rig:
                    made = Site(control, rig, at, state)
                    task = asyncio.create_task(Telling(made.roster).run())
                    try:
                        yield made
                    finally:
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
                        made.roster.close()
    finally:
        control.store.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "TELL_S", 0.05)
    monkeypatch.setattr(peers, "KNOWN_S", 0.02)
    monkeypatch.setattr(peers, "DIAL_TIMEOUT_S", 30.0)  # a busy machine is no node that is away


@in_loop
async def test_a_removed_gateway_is_dropped_with_what_it_runs_and_is_not_let_in_again(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        g1, g2 = await here.gateway("g1"), await here.gateway("g2")
        (first, heard), (second, stays) = await here.dial(g1), await here.dial(g2)
        here.rig.driver.init_turn.close()
        first.send(Rpc.DEFINE, 0, spec("echo"))
        first.send(Rpc.INVOKE, 1, InvokeRequest(spec("echo").version, "i" * 16, "t" * 32, "", 0, 30.0, ""))
        await until(lambda: len(here.rig.node.instances.table) == 1)
        here.control.store.nodes.remove("g1", time.time())
        await until(lambda: heard.lost, "its connection has ended")
        with pytest.raises(RpcError):
            await here.dial(g1)
        assert await second.ask("state"), "the others are left alone"
        assert stays.lost == []
        here.rig.driver.init_turn.open()
        second.close()


@in_loop
async def test_a_gateway_that_renews_is_let_in_all_along(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        own = await here.gateway("g1")
        member = load_member(own.state)
        assert member is not None
        standing, ear = await here.dial(own)
        renewed = await asyncio.to_thread(renew, own.state, member)
        await until(lambda: here.told[-1][0].fingerprint_before, "both count")
        (await here.dial(own))[0].close()
        own.certificate.write_text(renewed)
        own.identity.reload()
        (await here.dial(own))[0].close()
        await asyncio.to_thread(confirm, own.state, member)
        await until(lambda: not here.told[-1][0].fingerprint_before, "only the new one counts")
        (await here.dial(own))[0].close()
        await standing.ask("state")
        assert ear.lost == [], "what was proven when it began is still so"
        standing.close()


@in_loop
async def test_only_control_says_who_counts(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        own = await here.gateway("g1")
        count = len(here.told)
        connection, _ = await here.dial(own)
        connection.send(Rpc.CALLERS, 0, Callers([Caller("gateway", "g9", "f" * 64, "", 1)]))
        await connection.ask("state")
        assert len(here.told) == count
        connection.close()


@in_loop
async def test_a_node_that_joins_again_knows_at_once_and_while_control_is_away(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.gateway("g1")
        member = load_member(here.state)
        assert member is not None
        await asyncio.to_thread(rejoin, here.state, member)
        kept = load_callers(here.state)
        assert kept is not None
        assert [(one.role, one.name) for one in kept] == [("gateway", "g1")]
        here.control.store.nodes.remove("g1", time.time())
        await asyncio.to_thread(rejoin, here.state, member)
        assert load_callers(here.state) == []
    save_callers(here.state, kept)
    assert load_callers(here.state) == kept
    callers_file(here.state).write_bytes(b"[half")
    assert load_callers(here.state) is None
    save_callers(tmp_path / "no" / "folder", kept)  # is logged


@in_loop
async def test_control_speaks_only_to_nodes_and_planners_whose_certificate_counts(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        store: Store = here.control.store
        (node,) = await here.roster.peers()
        assert await node.ask("state")
        assert store.leases.acquire("planner/0", "p1 12345678", str(here.at))
        planner = Planner(store.leases, store.nodes, 1, Path("/nowhere.sock"), here.make)
        with pytest.raises(Problem, match="planner p1 was removed"):
            await planner.ask("anything")
        await here.control.join(here.control.token("planner"), "p1", "planner", str(here.at))
        planner._known.clear()
        with pytest.raises(Problem, match="not planner p1"):
            await planner.ask("anything")  # a node is there
        planner.close()
        # another joined under the node's name: what still runs with the certificate from before is not spoken to
        store.nodes.remove(NODE, time.time())
        fresh = here.control.folder / "fresh"
        fresh.mkdir()
        await asyncio.to_thread(join, fresh, here.control.at, here.control.token(), "node", NODE, str(here.at), "")
        found = [node]
        while found in ([], [node]):  # what the database said a moment ago
            found = await here.roster.peers()
        (anew,) = found
        with pytest.raises(Problem, match="does not count any more"):
            await anew.ask("state")


@in_loop
async def test_a_removed_planner_hears_no_more_of_invocations(tmp_path: Path) -> None:
    authority, reports, ears = Authority(tmp_path / "authority"), Reports(), [Ear(), Ear()]
    told = Listening("g1", "gateway")
    server = await listen(HostPort(LOOPBACK, 0), reports, SECRET, told, None, identity(authority, tmp_path, "gateway", "g1"))
    connections = [
        await dial(port_of(server), ear, Hello("planner", name, SECRET), identity=identity(authority, tmp_path, "planner", name))
        for ear, name in zip(ears, ("p1", "p2"), strict=True)
    ]
    for connection in connections:
        connection.send(Rpc.SUBSCRIBE, 0)
    await until(lambda: reports.subscribers == 2)
    reports.on_member_gone("p1")
    await until(lambda: ears[0].lost)
    assert (ears[1].lost, reports.subscribers) == ([], 1)
    connections[1].close()
    server.close()
    await until(lambda: reports.subscribers == 0)

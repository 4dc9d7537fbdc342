"""Who is there, as the routes say; who is silent; what a node does when the cluster counts without it."""

import asyncio
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from doubles.gateways import running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec

from orchestrator import heartbeat
from orchestrator.catalog.routes import NodeRoute
from orchestrator.catalog.store import Store
from orchestrator.catalog.watch import RouteTable
from orchestrator.heartbeat import TICK_S, Pulse
from orchestrator.members import Members, admit
from orchestrator.planner.peers import NodePeer
from orchestrator.planner.vigil import AFTER_S, CRASHED_S, Sight, heard, overdue, unheard
from workers import node as nodes
from workers.rpc.messages import Hello, PrepareBatch, PrepareItem, Rpc, Stale
from workers.rpc.transport import Address, Peer


class Followed:
    def __init__(self, address: Address, whom: Peer, epoch: int) -> None:
        self.address, self.whom, self.epochs, self.ended = address, whom, [epoch], False

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def set_tenants(self, tenants: Collection[str]) -> None:
        self.tenants = tuple(tenants)

    def set_whom(self, whom: Peer) -> None:
        self.whom = whom

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


def route(name: str, epoch: int = 1, address: str = "10.0.0.2:8703", fingerprint: str = "f", role: str = "node") -> NodeRoute:
    return NodeRoute(name, epoch, role, address, "", fingerprint, True, epoch)


@in_loop
async def test_the_set_follows_the_table() -> None:
    sets: list[list[Followed]] = []
    members: Members[Followed] = Members("node", Followed, sets.append, lambda task: None)
    table = RouteTable(on_node=members.on_node)
    local = Followed(Path("/run/node.sock"), Peer("node", ""), 0)
    members.start([local])
    table.replace({}, {}, node={"n1": route("n1"), "g1": route("g1", role="gateway")})
    assert [one.whom.name for one in sets[-1]] == ["", "n1"]
    n1 = sets[-1][1]
    await asyncio.sleep(0)
    table.change("node", "n1", route("n1", epoch=2))
    assert (members.peers[1], n1.epochs) == (n1, [1, 2])
    table.change("node", "n1", msgspec.structs.replace(route("n1", epoch=2), tenants=("acme",)))
    assert (members.peers[1], n1.tenants) == (n1, ("acme",))
    table.change("node", "n1", msgspec.structs.replace(route("n1", epoch=3, address="10.0.0.9:8703"), tenants=("other",)))
    assert members.peers[1].tenants == ("other",)
    await until(lambda: n1.ended)
    assert str(members.peers[1].address) == "10.0.0.9:8703"
    table.change("node", "n2", route("n2", address="nonsense"))
    assert [one.whom.name for one in members.peers] == ["", "n1"]
    table.replace({}, {}, node={})
    assert members.peers == [local]
    await members.stop()
    assert local.ended


@in_loop
async def test_a_member_that_renews_keeps_its_connection_and_one_that_joined_anew_does_not() -> None:
    members: Members[Followed] = Members("node", Followed, lambda peers: None, lambda task: None)
    members.start([])
    members.on_node("n1", route("n1", 7, fingerprint="f1"))
    await asyncio.sleep(0)  # it dials
    for step, fingerprint, before in ((2, "f2", "f1"), (3, "f2", ""), (4, "f9", "")):  # 4: one was missed
        members.on_node("n1", NodeRoute("n1", step, "node", "10.0.0.2:8703", "", fingerprint, True, 7, before))
    (peer,) = members.peers
    assert (peer.whom.fingerprint, peer.whom.before, peer.ended) == ("f9", "", False)
    assert peer.whom.counts("f9")
    assert not peer.whom.counts("f2")
    assert not peer.whom.counts("")
    members.on_node("n1", route("n1", 8))
    await until(lambda: peer.ended)
    assert members.peers != [peer]
    await members.stop()


def test_who_may_dial_a_gateway() -> None:
    admits = admit(("planner",), {"p1": route("p1", role="planner", fingerprint="aa")})
    assert admits(Peer("planner", "p1", "aa")) == ""
    assert admits(Peer("planner", "planner@host-a", "bb")) == "", "made by the authority's own folder"
    assert admits(Peer("planner", "any")) == "", "of this user, on a unix socket"
    assert "nothing to ask" in admits(Peer("node", "n1", "cc"))
    assert "no member" in admits(Peer("planner", "p1", "bb")), "a certificate from before"
    assert "no member" in admits(Peer("planner", "p2", "aa")), "removed"


def test_a_peer_is_silent_by_the_time_this_process_ran() -> None:
    pulse = Pulse(2.5)
    assert not any(pulse.tick(TICK_S) for _ in range(9))
    assert pulse.tick(TICK_S)
    pulse.beat()
    assert not pulse.tick(600.0), "we were stopped, not the peer"


def test_members_are_declared_silent_unless_it_is_rather_us() -> None:
    well = Sight("n1", 1, 0.0, False)
    quiet, crashed = Sight("n2", 4, 100.0, True), Sight("n3", 2, 100.0, False)
    assert overdue([well, quiet, crashed], 100.0) == []
    assert overdue([well, quiet, crashed], 100.0 + AFTER_S) == [("n2", 4)]
    assert overdue([well, quiet, crashed], 100.0 + CRASHED_S) == [("n2", 4), ("n3", 2)]
    assert overdue([quiet, crashed], 1000.0) == [], "nobody is heard: we are cut off"
    assert overdue([well, Sight("", 0, 1.0, True)], 1000.0) == [], "what runs beside control is in no table"
    assert overdue([], 1000.0) == []


def test_that_nothing_is_heard_is_told_also_of_a_lone_node_and_of_one_that_was_never_reached() -> None:
    lone, fresh = Sight("n1", 4, 100.0, True, "n1"), Sight("", 2, 100.0, False, "n2")
    beside, there = Sight("", 0, 100.0, True), Sight("n3", 5, 0.0, False, "n3")
    assert unheard([lone, fresh, beside, there], 100.0) == set()
    assert unheard([lone, fresh, beside, there], 100.0 + AFTER_S) == {("n1", 4)}
    assert unheard([lone, fresh, beside, there], 100.0 + CRASHED_S) == {("n1", 4), ("n2", 2)}
    assert unheard([lone], 1000.0) == {("n1", 4)}
    assert heard([lone, fresh, beside, there]) == {"n3": 5}


def test_a_lone_node_that_is_silent_is_up_again_when_it_is_heard_and_lost_nothing(database_url: str) -> None:
    store = Store(database_url)
    store.migrate()
    nodes = store.nodes
    joined = nodes.join(nodes.make_token("node", 60, 1.0), "node", "n1", "10.0.0.2:1", "", lambda: ("pem", "f" * 64), 2.0)

    def now() -> tuple[str, int, bool]:
        (view,), (route,) = nodes.list(), [one.route for one in nodes.published()]
        assert route is not None
        return view.state, view.epoch, route.up

    assert not nodes.seen({"n1": joined.epoch}, 3.0), "it was up"
    assert not nodes.unheard("n1", joined.epoch - 1, 4.0), "it has joined again since"
    assert nodes.unheard("n1", joined.epoch, 4.0)
    assert not nodes.unheard("n1", joined.epoch, 5.0), "once"
    assert now() == ("silent", joined.epoch, False)
    assert nodes.seen({"n1": joined.epoch}, 6.0)
    assert now() == ("up", joined.epoch, True)
    assert nodes.unheard("n1", joined.epoch, 7.0)
    assert nodes.declare_silent("n1", joined.epoch, 8.0), "another node is heard: now it is void"
    state, epoch, up = now()
    assert (state, up) == ("silent", False)
    assert epoch > joined.epoch
    assert not nodes.seen({"n1": joined.epoch}, 9.0), "who hears it so has not heard of that"
    assert nodes.rejoin("node", "n1", "f" * 64, 10.0) > epoch
    assert now()[0] == "up"
    assert nodes.renew("node", "n1", "f" * 64, lambda: ("pem", "e" * 64), 10.5) == "pem"
    nodes.confirm("node", "n1", "e" * 64, 10.5)
    nodes.remove("n1", 11.0)
    assert not nodes.declare_silent("n1", nodes.list()[0].epoch, 12.0)
    store.close()


@in_loop
async def test_a_member_that_was_not_reached_since_it_joined_is_not_declared_silent() -> None:
    """Gateways may reach it: each declaration would end what runs there."""
    peer = NodePeer(Path("/nowhere.sock"), Hello("planner", "p", "s"), cast(Any, None), None, Peer("node", "n1"), 3)
    assert peer.sight().name == ""
    peer._heard_epoch = 3
    assert peer.sight().name == "n1"
    peer.set_epoch(4)
    assert (peer.sight().name, peer.sight().member) == ("", "n1")


@in_loop
async def test_a_silent_node_is_dropped_and_what_was_in_flight_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "HEARTBEAT_S", 3600.0)  # it is there, and says nothing
    monkeypatch.setattr(Pulse, "__init__", lambda self: setattr(self, "_quiet", 0.0) or setattr(self, "_silent_s", 0.5))
    monkeypatch.setattr(heartbeat, "TICK_S", 0.1)
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        echo = spec("echo")
        gate.serve(echo)
        rig.driver.init_turn.close()
        answer = await asyncio.wait_for(gate.post("echo"), 10)
        assert answer.status_code == 502
        assert "NodeLost" in answer.text
        assert "nothing was heard" in answer.text
        rig.driver.init_turn.open()


@in_loop
async def test_a_node_that_is_told_that_it_is_stale_ends_what_it_holds_and_joins_again(tmp_path: Path) -> None:
    epochs = iter([None, 8])

    async def rejoin() -> int:
        epoch = next(epochs)
        if epoch is None:
            raise OSError("control is away")
        return epoch

    async with running_node(tmp_path) as rig:
        rig.node.standing.joined(5, rejoin)
        caller = await rig.caller()
        assert caller.connection.welcome is not None
        assert caller.connection.welcome.epoch == 5
        await caller.invoke(spec("echo"))
        await until(lambda: len(rig.node.instances.table) == 1)
        caller.connection.send(Rpc.STALE, 0, Stale(5))
        await caller.connection.ask("state")
        assert len(rig.node.instances.table) == 1, "it is not older than that"
        caller.connection.send(Rpc.STALE, 0, Stale(7))
        await until(lambda: rig.node.standing.epoch == 8 and caller.connection.closed)
        assert len(rig.node.instances.table) == 0
        again = await rig.caller()
        assert again.connection.welcome is not None
        assert again.connection.welcome.epoch == 8


@in_loop
async def test_a_gateway_does_not_use_a_node_of_an_older_epoch_and_tells_it(tmp_path: Path) -> None:
    numbers = itertools.count(6)

    async def rejoin() -> int:
        return next(numbers)

    async with running_node(tmp_path) as rig:
        rig.node.standing.joined(5, rejoin)
        async with running_gateway(rig) as gate:
            (link,) = gate.runs.links
            link.set_epoch(5)
            assert link.up
            link.set_epoch(6)
            await until(lambda: rig.node.standing.epoch == 6)
            await until(lambda: link.up)


@in_loop
async def test_a_node_obeys_each_lease_by_its_own_highest_epoch(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller("planner")
        await caller.subscribe()
        caller.define(spec("echo"))

        def order(decision: str, lease: str, epoch: int) -> None:
            item = PrepareItem(decision, spec("echo").version)
            caller.connection.send(Rpc.PREPARE, 0, PrepareBatch([item], epoch, lease))

        order("d1", "planner/0", 3)
        caller.connection.send(Rpc.PREPARE, 0, PrepareBatch([], 4, "planner/0"))  # the next holder says that it is there
        order("d2", "planner/0", 3)
        order("d3", "planner/1", 1)
        order("d4", "planner/0", 4)
        for decision in ("d1", "d3", "d4"):
            await caller.outcome(decision, ["ready"])
        assert (await caller.outcome("d2", ["cancelled", "ready"])).detail == "older epoch"

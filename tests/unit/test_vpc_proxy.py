"""What a proxy is told and keeps, whom it lets in, and what it says when it cannot be."""

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from doubles.joining import Control
from doubles.loop import in_loop, until
from doubles.ports import held_port

from orchestrator.catalog.vpcs import NodeOfVpc, ProxyNews, VpcSettings
from orchestrator.joining import JoinFailed
from orchestrator.membership import NotJoined, load_member
from orchestrator.ops.catalogue import FAMILIES, VPC_PROXY
from orchestrator.settings import Settings
from orchestrator.vpc_proxy.knowing import Away, Known, from_control
from orchestrator.vpc_proxy.metrics import ProxyMetrics, proxy_checks
from orchestrator.vpc_proxy.place import Place
from orchestrator.vpc_proxy.proxy import Proxy
from workers.networks import VpcSpec
from workers.rpc.transport import HostPort, Peer
from workers.sealing import load_key

SPEC = VpcSpec("acme/db", "acme", 7, 3, ("10.0.0.0/16",))
NEWS = ProxyNews(SPEC, [NodeOfVpc("n1", "10.1.0.1:8703", 2, "f1", "f0")])


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = Control(tmp_path / "control")
    for tenant in ("acme", "rival"):
        made.store.keys.create_tenant(tenant, 1)
        made.store.vpcs.create(tenant, "db", VpcSettings(["10.0.0.0/16"]), 1)
    yield made
    made.store.close()


@pytest.fixture
def free_port() -> Iterator[int]:
    with held_port() as port:
        yield port


async def joined(control: Control, vpc: str = "acme/db", name: str = "p1") -> Path:
    return await control.join(control.token("vpc-proxy", vpc=vpc), name, "vpc-proxy", "10.0.0.9:8706")


@in_loop
async def test_a_proxy_learns_its_own_network_and_the_nodes_that_may_host_its_tenant(control: Control) -> None:
    async with control.listening():
        await control.join(control.token(), "n1")
        await control.join(control.token(), "n2")
        control.store.nodes.allow("n2", ["rival"], 5)
        state = await joined(control)
        member = load_member(state)
        assert member is not None
        assert member.vpc == "acme/db"
        news = await asyncio.to_thread(from_control(state, member))
        assert news.spec is not None
        assert (news.spec.vpc, [one.name for one in news.spec.proxies]) == ("acme/db", ["p1"])
        assert [(one.name, one.number) for one in news.nodes] == [("n1", 2)]
        assert "rival" not in str(msgspec.to_builtins(news))
        (seen,) = [one.last_seen for one in control.store.nodes.list() if one.name == "p1"]
        assert seen is not None, "whoever asks is heard of"


@in_loop
async def test_only_a_proxy_is_told_and_only_while_it_counts(control: Control) -> None:
    async with control.listening():
        node = await control.join(control.token(), "n1")
        member = load_member(node)
        assert member is not None
        assert member.number == 2
        with pytest.raises(JoinFailed, match="of no private network"):
            await asyncio.to_thread(from_control(node, member))
        state = await joined(control)
        proxy = load_member(state)
        assert proxy is not None
        control.store.nodes.remove("p1", 9)
        with pytest.raises(JoinFailed, match="no member of this cluster any more"):
            await asyncio.to_thread(from_control(state, proxy))
    with pytest.raises(Away):
        await asyncio.to_thread(from_control(state, proxy))


def test_what_was_told_last_is_kept_for_whoever_begins_without_control(tmp_path: Path) -> None:
    file = tmp_path / "news.json"
    known = Known(file)
    assert known.take(NEWS)
    assert not known.take(NEWS), "nothing new"
    again = Known(file)
    assert (again.news, again.told) == (NEWS, False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_bytes(b"{")
    assert Known(file).news == ProxyNews(None), "what cannot be read is as good as nothing"


def test_nodes_are_let_in_by_the_certificates_that_count(tmp_path: Path) -> None:
    known = Known(tmp_path / "news.json")
    node = Peer("node", "n1", "f1")
    assert "another private network" in known.admits(node, "acme/db"), "before it knows anything"
    known.take(NEWS)
    assert known.admits(node, "acme/db") == ""
    assert known.admits(Peer("node", "n1", "f0"), "acme/db") == "", "one that is being renewed"
    assert "does not count" in known.admits(Peer("node", "n1", "f2"), "acme/db")
    assert "no member" in known.admits(Peer("node", "n2", "f1"), "acme/db")
    assert "another private network" in known.admits(node, "rival/db")
    assert known.admits(Peer("node", "node@here", "anything"), "acme/db") == "", "it runs beside control"


@in_loop
async def test_a_member_is_what_its_token_said(control: Control) -> None:
    async with control.listening():
        state = await joined(control)
    place = Place(Settings(state=state), "", "", False)
    assert (place.vpc, place.address, place.called) == ("acme/db", HostPort("10.0.0.9", 8706), "vpc-proxy")
    with pytest.raises(NotJoined, match="joined for acme/db, not for rival/db"):
        Place(Settings(state=state), "rival/db", "", False)


def test_beside_control_a_pair_has_two_names_and_needs_to_be_told_where(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    with pytest.raises(NotJoined, match="has joined no cluster"):
        Place(settings, "acme/db", "127.0.0.1:0", False)
    load_key(settings.key_file)
    for vpc, listen in (("", "127.0.0.1:0"), ("acme/db", ""), ("acme/db", "nonsense"), ("acme/db", "/run/socket")):
        with pytest.raises(NotJoined):
            Place(settings, vpc, listen, False)
    names = [Place(settings, "acme/db", "127.0.0.1:0", backup).own.name for backup in (False, True)]
    assert names == sorted(names), "the first by name is the primary"
    assert len(set(names)) == 2
    alike = [Place(settings, vpc, "127.0.0.1:0", False) for vpc in ("a-b/c", "a/b-c", f"{'t' * 63}/{'n' * 63}")]
    assert len({one.called for one in alike}) == 3
    assert all(len(one.called) < 45 and len(one.own.name) <= 63 for one in alike), "a socket's path has a bound"


@in_loop
async def test_a_proxy_serves_what_it_knew_last_and_says_what_it_lacks(control: Control, free_port: int) -> None:
    async with control.listening():
        state = await control.join(control.token("vpc-proxy", vpc="acme/db"), "p1", "vpc-proxy", f"127.0.0.1:{free_port}")
    place = Place(Settings(state=state), "", "", False)
    place.folder.mkdir()
    known = Known(place.folder / "news.json")
    proxy = Proxy(place, known)
    try:
        port = await proxy.start()
        assert port == place.address.port
        assert {one.name: one.ok for one in proxy_checks(proxy)}["network"] is False
        known.take(ProxyNews(msgspec.structs.replace(SPEC, address="203.0.113.7"), []))
        ask = asyncio.create_task(proxy.follow(lambda: (_ for _ in ()).throw(Away("control is away"))))
        await until(lambda: proxy.asked_in_vain > 0, "it asks")
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)
        following = asyncio.create_task(proxy.follow(lambda: ProxyNews(SPEC, [])))
        await until(lambda: bool(proxy.carrying()), "it follows what it is told")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        found = {one.name: one.ok for one in proxy_checks(proxy)}
        assert (found["network"], found["address"], found["control"]) == (True, True, True)
        names = {family.name for family in ProxyMetrics(proxy).collect()}
        assert names == {name for name, one in FAMILIES.items() if one.processes == (VPC_PROXY,)}
    finally:
        await proxy.stop()
    assert not proxy.serving

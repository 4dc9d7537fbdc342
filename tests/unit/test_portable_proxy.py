"""A proxy against nodes that want more than is theirs, and what neither it nor a node ever carries."""

import asyncio
import errno
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import msgspec
import pytest
from doubles.cluster import LOOPBACK, identity
from doubles.links import Raw, hostile
from doubles.loop import in_loop, until
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.authority import Authority
from workers.framing import FrameParser
from workers.network.kernel.addresses import refusal
from workers.network.portable import destinations, link
from workers.network.portable.attached import Attached
from workers.network.portable.destinations import allowed
from workers.network.portable.outward import NoWay
from workers.network.portable.proxy import MAX_UNSAID_PER_NODE, PortableProxy
from workers.network.portable.served import Served
from workers.network.portable.wiring import Wired
from workers.network.portable.words import PROTOCOL, Hello, Kind, Open
from workers.networks import RESERVED, TUNNEL_PORTS, Proxy, VpcSpec
from workers.rpc.transport import HostPort, Peer

ROOT = Path(__file__).parents[2]
SPEC = VpcSpec("acme/db", "acme", 7, 1, ("10.0.0.0/16",))


class Cluster:
    """A proxy on loopback, and what control says of nodes."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.folder = Authority(folder / "authority"), folder
        self.refused: set[str] = set()
        self.proxy = PortableProxy(self.admits)

    def admits(self, peer: Peer, vpc: str) -> str:
        return f"{peer.name} is no member" if peer.name in self.refused else ""

    async def node(self, name: str, hello: bool = True) -> Raw:
        raw = await hostile(HostPort(LOOPBACK, self.proxy.ports[0]), identity(self.authority, self.folder, "node", name))
        if hello:
            raw.say(Kind.HELLO, 0, msgspec.msgpack.encode(Hello(PROTOCOL, SPEC.vpc, 1)))
            await until(lambda: self.nodes().count(name), "the proxy has let it in")
        return raw

    def nodes(self) -> tuple[str, ...]:
        return self.proxy.states()[0].nodes


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    made = Cluster(folder)
    await made.proxy.start([HostPort(LOOPBACK, 0)], identity(made.authority, folder, "vpc-proxy", "p1"))
    made.proxy.use([SPEC])
    try:
        yield made
    finally:
        await made.proxy.stop()


@in_loop
async def test_a_node_that_is_removed_loses_its_link_and_others_keep_theirs(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        gone, stays = await made.node("n1"), await made.node("n2")
        made.refused.add("n1")
        made.proxy.use([SPEC])
        await asyncio.wait_for(gone.closed, 30)
        assert made.nodes() == ("n2",)
        assert not stays.closed.done()


@in_loop
async def test_a_node_that_says_nothing_keeps_no_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HELLO_TIMEOUT_S", 300.0)  # not what ends them
    async with cluster(tmp_path) as made:
        silent = [await made.node("n1", hello=False) for _ in range(MAX_UNSAID_PER_NODE + 3)]
        await until(lambda: sum(one.closed.done() for one in silent) == 3, "it has no more than its own")
        await made.node("n2")


@in_loop
async def test_a_port_that_is_none_costs_nobody_a_link(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        raw = await made.node("n1")
        for ident, protocol in enumerate(("tcp", "udp"), 1):
            raw.say(Kind.OPEN, ident, msgspec.msgpack.encode(Open(protocol, "10.0.1.5", 70_000)))
        kinds: list[int] = []
        pieces = FrameParser()

        def refused() -> bool:
            data, raw.got = bytes(raw.got), bytearray()
            kinds.extend(frame.kind for frame in pieces.feed(data))
            return kinds.count(Kind.REFUSED) == 2

        await until(refused, "both are refused")
        assert not raw.closed.done()


@given(st.integers(-5, 70_000), st.sampled_from(["tcp", "udp"]))
def test_what_is_no_port_or_carries_tunnels_is_never_reached(port: int, protocol: str) -> None:
    may = 0 < port < 65536 and (protocol, port) not in {("udp", one) for one in TUNNEL_PORTS}
    assert allowed(SPEC, "10.0.1.5", protocol, port) == may


@pytest.mark.parametrize("port", TUNNEL_PORTS)
def test_no_function_speaks_to_tunnels_on_its_way_to_the_internet(port: int) -> None:
    attached = Attached(None, "internet", cast(Wired, None), lambda _: None)
    assert attached.way("udp", "203.0.113.9", port) is None
    assert attached.way("tcp", "203.0.113.9", port) is not None
    with pytest.raises(NoWay, match="not allowed"):
        Served._where(SPEC, Open("udp", "203.0.113.9", port, True))


@pytest.mark.parametrize(("code", "may"), [(errno.EAFNOSUPPORT, False), (errno.EPERM, False), (errno.ENETUNREACH, True)])
def test_a_proxy_that_may_not_ask_which_addresses_are_its_own_reaches_none(
    code: int, may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a unit that restricts address families: no netlink."""

    def refused() -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(destinations, "Netlink", refused)
    assert destinations.public("203.0.113.9") == may


def test_the_unit_of_a_proxy_lets_it_ask() -> None:
    unit = (ROOT / "deploy/systemd/foreglow-vpc-proxy.service").read_text()
    assert "AF_NETLINK" in unit.partition("\nRestrictAddressFamilies=")[2].partition("\n")[0].split()


@pytest.mark.parametrize("network", RESERVED)
def test_no_spec_makes_what_is_reserved_a_vpcs(network: ipaddress.IPv4Network) -> None:
    """Whoever wrote it: the orchestrator refuses to."""
    everything = VpcSpec("acme/db", "acme", 7, 1, ("0.0.0.0/0",), address="10.0.0.9", proxies=(Proxy("p1", "10.0.0.8:1"),))
    for address in (network[0], network[-1]):
        assert not allowed(everything, str(address), "tcp", 443)
    assert "not to be had" in refusal(msgspec.structs.replace(everything, cidrs=(str(network),)))

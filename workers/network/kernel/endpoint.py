"""One Vpc's end in a proxy: a namespace between the tunnel and the private network, with keepalived and conntrackd in it.

Three devices are in it: `tunnel` (VXLAN to the nodes), `inside` (a macvlan of the device by which this host is in the private
network) and `pair` (VXLAN to the other proxy, which no node is on). Nothing is changed outside of it, so whatever ends the
process leaves the address and the routes to the other proxy at once. Methods run on its one thread and raise OSError.
"""

import contextlib
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from workers.network import namespaces
from workers.network.kernel import addresses, pair, router, rules
from workers.network.kernel.pair import INSIDE, PAIR, TUNNEL, Way
from workers.network.namespaces import Namespace
from workers.networks import VpcSpec

T = TypeVar("T")

log = structlog.get_logger(__name__)

END_S = 5.0
EVERYWHERE = "00:00:00:00:00:00"

SETTINGS = (
    *router.SETTINGS,
    ("ipv4/conf/all/arp_ignore", "1"),  # the tunnel's address is not asked for from inside
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),  # of a connection taken over, the sequence numbers seen last are old
)


class NodePlace(msgspec.Struct, frozen=True):
    """A node as proxies must know it: the address that carries its tunnels, and its number in the cluster."""

    name: str
    underlay: str
    number: int


class Endpoint:
    """`name`: this proxy's in the spec. `folder`: its own, for what the two programs write."""

    def __init__(self, name: str, spec: VpcSpec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.place = [proxy.name for proxy in spec.proxies].index(name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="foreglow-vpc")
        self._home: Namespace | None = None
        self._nodes: dict[int, NodePlace] = {}
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    async def do(self, work: Callable[[], T]) -> T:
        return await router.done(self._thread, work)

    @property
    def alone(self) -> bool:
        return len(self.spec.proxies) == 1

    @property
    def roles(self) -> Path:
        """The pipe into which keepalived writes what this proxy has become."""
        return self.folder / "roles"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.roles.unlink(missing_ok=True)
        os.mkfifo(self.roles, 0o600)
        self._home = Namespace.here()
        outside = IPRoute()
        try:
            own = addresses.underlay(self.spec.proxies[self.place])
            mtu = router.mtu_of(outside, own) - router.OVERHEAD
            device, ways = inside_of(outside, self.spec)
            namespaces.unshare()
            here = Namespace.here()
            router.settings(SETTINGS)
            try:
                self._devices(outside, here.descriptor, own, mtu, device)
            finally:
                here.close()
        finally:
            outside.close()
        self.rule(self.spec)
        (self.folder / "keepalived.conf").write_text(
            pair.keepalived(self.folder, self.place, self.alone, self.spec.address, ways), encoding="utf-8"
        )
        (self.folder / "conntrackd.conf").write_text(pair.conntrackd(self.folder, self.place), encoding="utf-8")

    def _devices(self, outside: IPRoute, namespace: int, own: str, mtu: int, device: int) -> None:
        tunnel = {"kind": "vxlan", "vxlan_id": self.spec.number, "vxlan_local": own, "net_ns_fd": namespace, "mtu": mtu}
        self._inside = IPRoute()
        router.added(
            outside,
            ifname=TUNNEL,
            vxlan_port=rules.VXLAN_PORT,
            vxlan_learning=0,
            address=addresses.gateway_mac(self.spec.number),
            **tunnel,
        )
        other = {} if self.alone else {"vxlan_group": addresses.underlay(self.spec.proxies[1 - self.place])}
        router.added(outside, ifname=PAIR, vxlan_port=rules.PAIR_VXLAN_PORT, **tunnel, **other)
        outside.link("add", ifname=INSIDE, kind="macvlan", macvlan_mode="bridge", link=device, net_ns_fd=namespace)
        self._tunnel, card, both = (self._inside.link_lookup(ifname=name)[0] for name in (TUNNEL, INSIDE, PAIR))
        for index in (self._tunnel, card, both):
            self._inside.link("set", index=index, state="up")
        self._inside.addr("add", index=both, address=addresses.PAIR[self.place], prefixlen=30)
        self._inside.addr("add", index=self._tunnel, address=addresses.ANCHOR, prefixlen=32)
        # a proxy that does not carry the address has no route inside, and says nothing about it
        self._inside.route("add", family=2, dst="0.0.0.0/0", type="blackhole", priority=0xFFFF_FFFF)

    def run(self) -> None:
        """Starts the two programs; they end with this process, whatever ends it."""
        shutil.rmtree(self.folder / "pids", ignore_errors=True)
        (self.folder / "pids").mkdir()
        keepalived = ["keepalived", "-n", "-l", "-P", "-f", str(self.folder / "keepalived.conf")]
        keepalived += ["-p", str(self.folder / "pids/keepalived"), "-r", str(self.folder / "pids/vrrp")]
        (self.folder / "conntrackd.lock").unlink(missing_ok=True)
        self._spawn("keepalived", keepalived)
        if not self.alone:
            self._spawn("conntrackd", ["conntrackd", "-C", str(self.folder / "conntrackd.conf")])

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("wb") as output:
            try:
                self.programs[name] = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "SIGKILL", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=router.ENVIRONMENT,
                )
            except FileNotFoundError as error:
                raise OSError(2, f"{name} cannot be started: {error}") from error

    def ended(self) -> str:
        """Which of the programs does not run, and with what; empty while both do."""
        for name, process in self.programs.items():
            code = process.poll()
            if code is not None:
                return f"{name} ended with {code}: {self._last_words(name)}"
        return ""

    def _last_words(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / f"{name}.out").read_text(errors="replace").strip().rpartition("\n")[2][-200:]
        return ""

    def carry(self, nodes: Sequence[NodePlace]) -> None:
        """Carries for these nodes, and no others any more."""
        wanted = {node.number: node for node in nodes}  # one that cannot be carried for stands in nobody else's way
        for number, node in list(self._nodes.items()):
            if wanted.get(number) != node:
                self._node(node, "del", "delete")
                del self._nodes[number]
        for number, node in wanted.items():
            if number not in self._nodes:
                try:
                    self._node(node, "replace", "append")
                except (OSError, ValueError, NetlinkError) as error:
                    log.warning("networks.node_not_carried", node=node.name, underlay=node.underlay, error=str(error))
                else:
                    self._nodes[number] = node
        router.nft(rules.proxied_nodes(sorted(self._nodes)))

    def rule(self, spec: VpcSpec) -> None:
        """Holds this spec's rules; connections that they allow go on."""
        router.nft(rules.proxy(spec, TUNNEL, INSIDE, PAIR) + rules.proxied_nodes(sorted(self._nodes)))

    def _node(self, node: NodePlace, verb: str, entry: str) -> None:
        mac = addresses.node_mac(node.number)
        with contextlib.suppress(NetlinkError) if verb == "del" else contextlib.nullcontext():
            for destination in (mac, EVERYWHERE):
                self._inside.fdb(entry, ifindex=self._tunnel, lladdr=destination, dst=node.underlay)
            for egress in (False, True):
                address = addresses.tunnel_address(node.number, egress)
                self._inside.neigh(verb, dst=address, lladdr=mac, ifindex=self._tunnel, state="permanent")
                self._inside.route(verb, dst=f"{address}/32", oif=self._tunnel, scope="link")

    def stop(self) -> None:
        """keepalived says goodbye, so that the other takes over at once; the devices end with the namespace."""
        for process in self.programs.values():
            process.terminate()
        for process in self.programs.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_S)
        self.programs.clear()
        if (inside := self.__dict__.pop("_inside", None)) is not None:
            # the kernel takes its time with a namespace, and a successor wants the same tunnels now
            for name in (TUNNEL, PAIR, INSIDE):
                for index in inside.link_lookup(ifname=name):
                    inside.link("del", index=index)
            inside.close()
        if self._home is not None:
            namespaces.enter(self._home.descriptor)
            self._home.close()
            self._home = None
        shutil.rmtree(self.folder, ignore_errors=True)

    async def end(self) -> None:
        try:
            await self.do(self.stop)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)


def inside_of(host: IPRoute, spec: VpcSpec) -> tuple[int, list[Way]]:
    """The device by which this host is in the private network, and all its routes through that. Raises OSError when the fixed
    address is on no network of this host."""
    (found,) = host.route("get", dst=spec.address)
    device = found.get_attr("RTA_OIF")
    if found.get_attr("RTA_GATEWAY") or found["type"] != 1:
        raise OSError(99, f"{spec.vpc}: the address {spec.address} is on no network of this host, or its own: it must be free")
    ways = []
    for way in host.get_routes(table=254, family=2):
        if way.get_attr("RTA_OIF") == device and way["type"] == 1:
            destination = way.get_attr("RTA_DST")
            network = f"{destination}/{way['dst_len']}" if destination else "0.0.0.0/0"
            ways.append(Way(network, way.get_attr("RTA_GATEWAY") or ""))
    ways.sort(key=lambda way: (bool(way.gateway), ipaddress.ip_network(way.destination)))
    return device, ways

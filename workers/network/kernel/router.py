"""A node's router: the network namespace in which instances' cables and Vpcs' tunnels meet, and the one thread that works in it.

Nothing of it has a name outside: it ends with the process, however that ends. Methods are called on the thread (`do`); they
raise OSError with the step that failed.
"""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from workers.network import namespaces, netlink
from workers.network.kernel import addresses, requests, rules
from workers.network.namespaces import Namespace
from workers.network.netlink import NO_ARP, UP, Netlink
from workers.networks import VpcSpec
from workers.ports import SandboxNetwork

T = TypeVar("T")

INSTANCES = 100  # routing table with the way to every instance
FIRST_TABLE = 1000  # of a Vpc: this and its slot
CABLES = 1 << 20  # an instance's device in the router: this and its index
SANDBOX_DEVICE = "eth0"
SANDBOX_DEVICE_INDEX = 10  # of the device in the sandbox
GOING_S = 3.0  # how long the kernel may take to end the namespace of a killed process
TRIED_PORT = 4787  # nobody is asked to answer there
OVERHEAD = 50  # bytes that VXLAN puts around a packet
PROGRAM_TIMEOUT_S = 10.0
WORK_S = 30.0  # a step takes milliseconds, at the end of a long queue of others seconds
NICENESS = 5  # it holds the kernel's one lock of network settings while it works

ORPHAN_RETRIES = "4"
"""Of a connection that its process left open when it was ended: some 6 s instead of 100, as long as it keeps the namespace."""

SETTINGS = (  # below /proc/sys/net
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),  # a packet's mark says where it comes from, and no address does
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
)


class Router:
    """`number` is the node's, `underlay` its own address that carries tunnels."""

    def __init__(self, underlay: str, number: int) -> None:
        self.underlay, self.number = underlay, number
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="foreglow-router")
        self._home: Namespace | None = None
        self.namespace: Namespace | None = None
        self.mtu = 0
        """Of tunnels and cables, bytes."""

    async def do(self, work: Callable[[], T]) -> T:
        return await done(self._thread, work)

    def start(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        self._home = Namespace.here()
        self._outside = IPRoute()
        self.mtu = mtu_of(self._outside, self.underlay) - OVERHEAD
        namespaces.unshare()
        self.namespace = Namespace.here()
        settings(SETTINGS)
        self._inside = IPRoute()
        self._quick = Netlink()
        self.elements = Netlink(netlink.NETFILTER)  # for the event loop: its users are there
        self._connections = Netlink(netlink.NETFILTER)
        nft(rules.router(self.number))
        self._inside.rule("add", priority=10, fwmark=0, fwmask=addresses.INDEX_MASK, table=INSTANCES)
        self._inside.route("add", family=socket.AF_INET, dst="0.0.0.0/0", type="blackhole")
        self._try_vxlan()
        self.departures = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        self.departures.bind((0, 1))  # RTMGRP_LINK

    def _try_vxlan(self) -> None:
        """Whether this kernel has it, found by making one."""
        assert self.namespace is not None
        beside = {"vxlan_id": 1, "vxlan_port": TRIED_PORT, "net_ns_fd": self.namespace.descriptor}
        self._outside.link("add", ifname="tried", kind="vxlan", vxlan_local=self.underlay, **beside)
        self._inside.link("del", index=self._inside.link_lookup(ifname="tried")[0])

    def close(self) -> None:
        """The namespace ends with its last descriptor and this thread; devices go with it. Idempotent."""
        if (inside := self.__dict__.get("_inside")) is not None:  # the kernel takes its time with a namespace
            for link in inside.get_links(kind="vxlan"):
                inside.link("del", index=link["index"])
        for name in ("_outside", "_inside", "_quick", "elements", "_connections", "departures"):
            held = self.__dict__.pop(name, None)
            if held is not None:
                held.close()
        if self._home is not None:
            namespaces.enter(self._home.descriptor)
            self._home.close()
            self._home = None
        if self.namespace is not None:
            self.namespace.close()
            self.namespace = None

    async def end(self) -> None:
        try:
            await self.do(self.close)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def wire(self, network: SandboxNetwork, index: int) -> None:
        """The sandbox's cable, its address and its way out."""
        device, mac, address = CABLES + index, addresses.instance_mac(index), addresses.instance_address(index)
        assert self.namespace is not None
        self._quick.ask(
            "an instance's cable",
            requests.cable(f"i{index}", device, SANDBOX_DEVICE, SANDBOX_DEVICE_INDEX, network.namespace, mac, self.mtu),
        )
        try:
            # this end first: the other's queue is live only once both are up, and is then waited for
            ways = netlink.up(device, UP | NO_ARP), requests.route(address, 32, device, INSTANCES)
            self._quick.ask("an instance's way in", *ways)
            namespaces.enter(network.namespace)
            try:
                self._wire_inside(network, address)
            finally:
                namespaces.enter(self.namespace.descriptor)
            self._quick.ask("an instance's way in", netlink.settled(device))
        except BaseException:
            with contextlib.suppress(OSError):
                self._quick.ask("a cable taken away", requests.removed(device))
            raise

    @staticmethod
    def _wire_inside(network: SandboxNetwork, address: str) -> None:
        settings((*SETTINGS[:2], ("ipv4/tcp_orphan_retries", ORPHAN_RETRIES)))
        with Netlink() as inside:
            inside.ask(
                "an instance's way out",
                netlink.up(SANDBOX_DEVICE_INDEX, UP | NO_ARP),
                netlink.address(SANDBOX_DEVICE_INDEX, address, 32),
                requests.route("0.0.0.0", 0, SANDBOX_DEVICE_INDEX),  # noqa: S104 - everywhere
                netlink.settled(SANDBOX_DEVICE_INDEX),
            )
            if network.card:
                card = socket.if_nametoindex(network.card)
                inside.ask("a guest's gateway", netlink.address(card, addresses.GUEST_GATEWAY, addresses.GUEST_PREFIX))
                settings((("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0")))
                nft(rules.guest(network.card, network.guest, SANDBOX_DEVICE, address))

    def unwire(self, indices: Sequence[int]) -> None:
        """Takes away the cables that are still there."""
        for index in indices:
            with contextlib.suppress(OSError):  # gone with the sandbox
                self._quick.ask("a cable taken away", requests.removed(CABLES + index))

    def forget(self, mark: int) -> None:
        """All connections with the mark."""
        self._connections.ask("forgetting connections", requests.connections_gone(mark))

    def wired(self) -> set[int]:
        """The indices of all cables that are there."""
        return {link["index"] - CABLES for link in self._inside.get_links() if link["index"] >= CABLES}

    def open(self, spec: VpcSpec, slot: int) -> int:
        """The tunnel's device, ready but for the proxies."""
        name = f"vx{spec.number}"
        assert self.namespace is not None
        try:
            added(
                self._outside,
                ifname=name,
                kind="vxlan",
                vxlan_id=spec.number,
                vxlan_local=self.underlay,
                vxlan_port=rules.VXLAN_PORT,
                vxlan_learning=1,
                address=addresses.node_mac(self.number),
                mtu=self.mtu,
                net_ns_fd=self.namespace.descriptor,
            )
            (device,) = self._inside.link_lookup(ifname=name)
            self._inside.link("set", index=device, group=rules.TUNNELS)
            for egress in (False, True):
                self._inside.addr("add", index=device, address=addresses.tunnel_address(self.number, egress), prefixlen=32)
            self._inside.link("set", index=device, flags=UP | NO_ARP, change=UP | NO_ARP)
            gateway = addresses.gateway_mac(spec.number)
            self._inside.neigh("replace", dst=addresses.GATEWAY, lladdr=gateway, ifindex=device, state="permanent")
            table = FIRST_TABLE + slot
            self._inside.route("replace", dst="0.0.0.0/0", gateway=addresses.GATEWAY, oif=device, table=table, flags="onlink")
            mark = slot << addresses.SLOT_SHIFT
            self._inside.rule("add", priority=20, fwmark=mark, fwmask=addresses.SLOT_MASK, table=table)
            self.follow(spec, slot, device, None)
        except BaseException:
            self.shut(spec, slot, 0)
            raise
        return int(device)

    def follow(self, spec: VpcSpec, slot: int, device: int, before: VpcSpec | None) -> None:
        """Rules and proxies as the spec has them; `before`: the one that was followed until now."""
        nft(rules.vpc(spec, slot, device))
        wanted, known = underlays(spec), underlays(before) if before else set[str]()
        for proxy in known - wanted:
            with contextlib.suppress(NetlinkError):
                self._inside.fdb("delete", ifindex=device, lladdr="00:00:00:00:00:00", dst=proxy)
        for proxy in wanted - known:
            self._inside.fdb("append", ifindex=device, lladdr="00:00:00:00:00:00", dst=proxy)

    def shut(self, spec: VpcSpec, slot: int, device: int) -> None:
        """Takes all of the tunnel away, as far as it is there."""
        if device:
            nft(rules.vpc_gone(slot, device))
        mark = slot << addresses.SLOT_SHIFT
        with contextlib.suppress(NetlinkError):
            self._inside.rule("del", priority=20, fwmark=mark, fwmask=addresses.SLOT_MASK, table=FIRST_TABLE + slot)
        for index in self._inside.link_lookup(ifname=f"vx{spec.number}"):
            self._inside.link("del", index=index)
        self._connections.ask("forgetting connections", requests.connections_gone(mark, addresses.SLOT_MASK))

    def probe(self, device: int, slot: int) -> socket.socket:
        """A socket that asks the proxies' end of a tunnel for an echo."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, addresses.mark(slot, addresses.OWN_INDEX))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, socket.if_indextoname(device).encode() + b"\0")
        sock.connect((addresses.GATEWAY, 0))
        return sock

    def carriers(self, tunnels: Mapping[int, VpcSpec]) -> dict[int, str]:
        """By device, the name of the proxy that was heard last on the tunnel; of all at once, for the kernel goes through all it
        knows whatever it is asked for."""
        found = {}
        for entry in self._inside.fdb("dump"):
            spec = tunnels.get(entry["ifindex"])
            if spec is not None and entry.get_attr("NDA_LLADDR") == addresses.gateway_mac(spec.number):
                heard = entry.get_attr("NDA_DST")
                found[entry["ifindex"]] = next((one.name for one in spec.proxies if addresses.underlay(one) == heard), "")
        return found


async def done(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """What `work` gives on the thread. Raises OSError, also when that takes too long: then the thread is stuck, and says so."""
    try:
        async with asyncio.timeout(WORK_S):
            return await asyncio.get_running_loop().run_in_executor(thread, told, work)
    except TimeoutError:
        raise OSError(errno.ETIMEDOUT, f"the kernel did not answer within {WORK_S:g} s") from None


def told(work: Callable[[], T]) -> T:
    """Calls it; what pyroute2 and ipaddress complain of is raised as OSError."""
    try:
        return work()
    except NetlinkError as error:
        raise OSError(error.code, f"{os.strerror(error.code)} ({error})") from error
    except ValueError as error:
        raise OSError(0, str(error)) from error


def added(host: IPRoute, **wanted: object) -> None:
    """Makes a VXLAN device; waits for one of the same number that is going, as after a kill."""
    end = time.monotonic() + GOING_S
    while True:
        try:
            host.link("add", **wanted)
            return
        except NetlinkError as error:
            if error.code != errno.EEXIST or time.monotonic() > end:
                raise
            time.sleep(0.02)


def underlays(spec: VpcSpec) -> set[str]:
    return {addresses.underlay(proxy) for proxy in spec.proxies}


def mtu_of(host: IPRoute, address: str) -> int:
    """Of the device that has the address. Raises OSError."""
    for found in host.get_addr(address=address):
        (link,) = host.get_links(found["index"])
        return int(link.get_attr("IFLA_MTU"))
    raise OSError(99, f"the address {address}, which is to carry tunnels, is not one of this host's")


def settings(values: Sequence[tuple[str, str]]) -> None:
    """Of the calling thread's namespace, below /proc/sys/net; what the kernel does not have is passed over for IPv6."""
    for name, value in values:
        path = Path("/proc/sys/net", name)
        try:
            if path.read_text(encoding="ascii").strip() != value:
                path.write_text(value, encoding="ascii")
        except FileNotFoundError:
            if not name.startswith("ipv6"):
                raise


def nft(text: str) -> None:
    """One transaction in the calling thread's namespace. Raises OSError with what nft complained of."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=text,
            text=True,
            capture_output=True,
            check=False,
            timeout=PROGRAM_TIMEOUT_S,
            env=ENVIRONMENT,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise OSError(0, f"nft (Debian's nftables): {error}") from error
    if done.returncode:
        raise OSError(0, f"nft: {done.stderr.strip().partition(chr(10))[0]}")


ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}

"""VpcSpec: everything a node and a proxy must know of one private network."""

import ipaddress
import socket
from enum import StrEnum

import msgspec

RESOLVER = "100.64.0.53"
"""Where every sandbox and guest looks for names; something answers there once it is attached to a Vpc with a resolver."""


BESIDE_CONTROL = 1
"""The number of the node that runs there, which is no member; members have others."""

TUNNEL_PORTS = (4788, 4789)
"""UDP, of the kernel backend's tunnels: no function sends to these, by whatever backend. Where a private network leads to the
underlay, it would be in everybody's tunnels."""


RESERVED = {
    ipaddress.IPv4Network("0.0.0.0/8"): "this host",
    ipaddress.IPv4Network("100.64.0.0/10"): "the sandboxes' own addresses",
    ipaddress.IPv4Network("127.0.0.0/8"): "loopback",
    ipaddress.IPv4Network("169.254.0.0/16"): "link-local and metadata addresses",
    ipaddress.IPv4Network("224.0.0.0/3"): "multicast and reserved addresses",
}
"""What no private network may hold, and whose it is: refused when one is made, and once more by every backend."""

NOT_INTERNET = (
    *RESERVED,
    *map(
        ipaddress.IPv4Network,
        (
            "10.0.0.0/8",
            "168.63.129.16/32",  # a cloud's service for its own machines, at an address that looks public
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
        ),
    ),
)
"""Private, shared, link-local (metadata), protocols' own, benchmarking, groups and reserved (RFC 6890): no backend takes these
for the Internet."""


class Egress(StrEnum):
    NONE = "none"
    INTERNET = "internet"  # through the forward proxy, with the Vpc's fixed address, without a Vpc the node's


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """What functions may reach: `cidr` lies inside the Vpc's; `protocol`: tcp | udp; ports `first` to `last`, both included."""

    cidr: str
    protocol: str
    first: int
    last: int


class Proxy(msgspec.Struct, frozen=True, array_like=True):
    """One of the pair inside the private network: a member of role `vpc-proxy`. `address`: host:port of its listener;
    `underlay`: the address that carries the kernel backend's tunnels, empty: the address's host. The fingerprints are its
    certificates', as of any member."""

    name: str
    address: str
    underlay: str = ""
    fingerprint: str = ""
    fingerprint_before: str = ""


class VpcSpec(msgspec.Struct, frozen=True, array_like=True):
    """`vpc`: tenant/name. `number`: unique in the cluster, 1 to 2^24 - 1, never given again (the VXLAN's). `address`: the fixed
    source address with which functions leave the proxy, empty: that of the proxy that carries them. `resolver`: a DNS server
    inside, empty: names are not resolved there. `proxies`: primary first. `generation` grows with every change."""

    vpc: str
    tenant: str
    number: int
    generation: int
    cidrs: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    address: str = ""
    resolver: str = ""
    proxies: tuple[Proxy, ...] = ()

    def allows(self, address: str, protocol: str, port: int) -> bool:
        """One of the Vpc's CIDRs holds the address and, when there are rules, one of them allows it. Neither backend may let
        through what this refuses."""
        where = ipaddress.ip_address(address)
        if not any(where in ipaddress.ip_network(cidr) for cidr in self.cidrs):
            return False
        return not self.rules or any(
            rule.protocol == protocol and rule.first <= port <= rule.last and where in ipaddress.ip_network(rule.cidr)
            for rule in self.rules
        )


class TunnelState(msgspec.Struct, frozen=True, array_like=True):
    """A node's tunnel into one Vpc: `ready` for the spec of `generation`; `reason` says why not, else by what way (the backend
    and the proxy that carries it). `attached`: instances now."""

    vpc: str
    generation: int
    ready: bool
    reason: str
    backend: str = ""
    attached: int = 0


def own_address() -> str:
    """The IPv4 address by which this host goes to others; loopback's where it goes nowhere. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: nobody's
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])

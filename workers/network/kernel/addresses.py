"""Which addresses and marks the kernel backend uses, all of them inside shared address space (RFC 6598), 100.64.0.0/10.

    100.64.0.0/24     a guest's link and the resolver, the same in every sandbox
    100.64.1.0 up to 100.79.255.255   instances, one address each on a node (`index` is its place)
    100.80.0.1, 100.80.255.1, .2      the proxies' end of a tunnel; the pair among themselves
    100.80.0.2        at that end for good, of both proxies: reachable by nobody
    100.96.0.0/12     nodes, as their proxies see them; 100.112.0.0/12 the same nodes, for packets that may go to the internet

A mark tells whose a packet is: 11 bits slot (the Vpc on this node), 1 bit egress, 20 bits index.
"""

import ipaddress

from workers.networks import RESERVED, Proxy, VpcSpec

FIRST_INDEX, LAST_INDEX = 256, (1 << 20) - 1
INDEX_MASK, EGRESS, SLOT_SHIFT, LAST_SLOT = 0xFFFFF, 1 << 20, 21, 2046
SLOT_MASK = 0xFFE0_0000
OWN_INDEX = 1  # of what the node itself sends into a tunnel: probes

GUEST_GATEWAY, GUEST_PREFIX = "100.64.0.1", 30
GATEWAY = "100.80.0.1"
ANCHOR = "100.80.0.2"
"""A device that loses its last address loses its routes, too: with this one, those to nodes outlive the turns of GATEWAY."""

PAIR = ("100.80.255.1", "100.80.255.2")
LAST_NUMBER = 65535  # of a node

_INSTANCES, _NODES, _EGRESS = (int(ipaddress.IPv4Address(first)) for first in ("100.64.0.0", "100.96.0.0", "100.112.0.0"))


def instance_address(index: int) -> str:
    return str(ipaddress.IPv4Address(_INSTANCES + index))


def tunnel_address(number: int, egress: bool = False) -> str:
    """A node's address in its tunnels, from its number (1 to LAST_NUMBER)."""
    return str(ipaddress.IPv4Address((_EGRESS if egress else _NODES) + number))


def mark(slot: int, index: int, egress: bool = False) -> int:
    return slot << SLOT_SHIFT | (EGRESS if egress else 0) | index


def node_mac(number: int) -> str:
    """Derived, so that the other end need not ask, and one that comes back is known."""
    return _mac(0x02FC_0000_0000 + number)


def gateway_mac(number: int) -> str:
    """Of the proxies' end of the Vpc's tunnel: both have it, the one that carries it sends with it."""
    return _mac(0x02FD_0000_0000 + number)


def instance_mac(index: int) -> str:
    """Of both ends of an instance's cable."""
    return _mac(0x02FE_0000_0000 + index)


def refusal(spec: VpcSpec) -> str:
    """Why the kernel backend cannot carry this Vpc; empty when it can."""
    if not spec.cidrs:
        return "it has no CIDR"
    if not spec.proxies:
        return "it has no proxy yet: start `foreglow vpc proxy` inside the private network"
    if not spec.address:
        return "it has no fixed address, which the kernel backend's proxies share: set one"
    return _refused_cidr(spec) or _refused_words(spec)


def _refused_cidr(spec: VpcSpec) -> str:
    for cidr in spec.cidrs:
        try:
            network = ipaddress.ip_network(cidr)
        except ValueError as error:
            return f"CIDR {cidr}: {error}"
        if not isinstance(network, ipaddress.IPv4Network):
            return f"CIDR {cidr}: the kernel backend carries IPv4 only"
        for taken in RESERVED:
            if network.overlaps(taken):
                return f"CIDR {cidr} meets {taken}, which is not to be had in a private network"
    return ""


def _refused_words(spec: VpcSpec) -> str:
    for rule in spec.rules:
        if rule.protocol not in ("tcp", "udp"):
            return f"rule {rule.cidr} {rule.protocol}: the protocol is tcp or udp"
        try:
            ipaddress.IPv4Network(rule.cidr)
        except ValueError as error:
            return f"rule {rule.cidr}: {error}"
    for what, address in (("address", spec.address), ("resolver", spec.resolver)):
        try:
            ipaddress.IPv4Address(address or "0.0.0.0")  # noqa: S104 - not given
        except ValueError as error:
            return f"{what} {address}: {error}"
    return ""


def underlay(proxy: Proxy) -> str:
    """The address that carries a proxy's tunnels: its own word, else its listener's host."""
    return proxy.underlay or proxy.address.rpartition(":")[0].strip("[]")


def _mac(number: int) -> str:
    return ":".join(f"{byte:02x}" for byte in number.to_bytes(6, "big"))

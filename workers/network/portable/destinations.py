"""Which addresses a function may reach: those of its Vpc that the rules allow; with `egress = internet` public ones beside."""

import errno
import ipaddress
import socket

from workers.network.portable.netlink import ROUTE_UNICAST, Netlink, ask_route, route_type
from workers.networks import TUNNEL_PORTS, VpcSpec

LAST_PORT = 65535

NOT_PUBLIC = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's service for its own machines, at an address that looks public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/3",
    )
)
"""Private, shared, link-local (metadata), protocols' own, benchmarking, groups and reserved (RFC 6890)."""


def never(address: str) -> bool:
    """An address that no Vpc can hold, whatever its CIDRs say: this host's loopback, link-local (metadata), a group's."""
    where = ipaddress.ip_address(address)
    return where.version != 4 or where.is_loopback or where.is_link_local or where.is_multicast or where.is_unspecified


def inside(spec: VpcSpec, address: str) -> bool:
    """One of the Vpc's CIDRs holds it."""
    where = ipaddress.ip_address(address)
    return any(where in ipaddress.ip_network(cidr) for cidr in spec.cidrs)


def allowed(spec: VpcSpec, address: str, protocol: str, port: int) -> bool:
    return exists(protocol, port) and not never(address) and spec.allows(address, protocol, port)


def exists(protocol: str, port: int) -> bool:
    """A port there is, and none of the kernel backend's tunnels."""
    return 0 < port <= LAST_PORT and not (protocol == "udp" and port in TUNNEL_PORTS)


def public(address: str) -> bool:
    """An address of the Internet, and none that this host has itself: no private, shared, link-local, metadata, reserved or
    group's address. Asks the kernel where it would go."""
    where = ipaddress.ip_address(address)
    return where.version == 4 and not any(where in network for network in NOT_PUBLIC) and not _own(address)


def _own(address: str) -> bool:
    try:
        with Netlink(socket.NETLINK_ROUTE) as routes:
            answers = routes.ask(ask_route(address))
    except OSError as error:  # who may not ask (a unit that restricts AF_NETLINK) is not believed to reach others only
        return error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH)  # no way there: connecting will say so
    return not answers or route_type(answers[0]) != ROUTE_UNICAST

"""Which addresses a function may reach: those of its Vpc that the rules allow; with `egress = internet` public ones beside."""

import ipaddress
import socket

from workers.network.portable.netlink import ROUTE_UNICAST, Netlink, ask_route, route_type
from workers.networks import VpcSpec

METADATA = frozenset({"168.63.129.16"})
"""Services of clouds for their own machines, at addresses that look public. The others' are link-local or shared space."""


def never(address: str) -> bool:
    """An address that no Vpc can hold, whatever its CIDRs say: this host's loopback, link-local (metadata), a group's."""
    where = ipaddress.ip_address(address)
    return where.version != 4 or where.is_loopback or where.is_link_local or where.is_multicast or where.is_unspecified


def inside(spec: VpcSpec, address: str) -> bool:
    """One of the Vpc's CIDRs holds it."""
    where = ipaddress.ip_address(address)
    return any(where in ipaddress.ip_network(cidr) for cidr in spec.cidrs)


def allowed(spec: VpcSpec, address: str, protocol: str, port: int) -> bool:
    return port > 0 and not never(address) and spec.allows(address, protocol, port)


def public(address: str) -> bool:
    """An address of the Internet, and none that this host has itself: no private, shared, link-local, metadata, reserved or
    group's address. Asks the kernel where it would go."""
    where = ipaddress.ip_address(address)
    if where.version != 4 or not where.is_global or where.is_multicast or where.is_reserved or address in METADATA:
        return False
    return _leaves(address)


def _leaves(address: str) -> bool:
    try:
        with Netlink(socket.NETLINK_ROUTE) as routes:
            answers = routes.ask(ask_route(address))
    except OSError:
        return False  # no way there
    return bool(answers) and route_type(answers[0]) == ROUTE_UNICAST

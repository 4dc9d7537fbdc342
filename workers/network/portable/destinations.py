"""Which addresses a function may reach: those of its Vpc that the rules allow; with `egress = internet` public ones beside."""

import errno
import ipaddress

from workers.network.netlink import Netlink
from workers.network.portable.requests import ROUTE_UNICAST, ask_route, route_type
from workers.networks import NOT_INTERNET, RESERVED, TUNNEL_PORTS, VpcSpec

LAST_PORT = 65535


def never(address: str) -> bool:
    """An address that no Vpc can hold, whatever its CIDRs say."""
    where = ipaddress.ip_address(address)
    return where.version != 4 or any(where in network for network in RESERVED)


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
    return where.version == 4 and not any(where in network for network in NOT_INTERNET) and not _own(address)


def _own(address: str) -> bool:
    try:
        with Netlink() as routes:
            answers = routes.ask("the way to an address", ask_route(address))
    except OSError as error:  # who may not ask (a unit that restricts AF_NETLINK) is not believed to reach others only
        return error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH)  # no way there: connecting will say so
    return not answers or route_type(answers[0]) != ROUTE_UNICAST

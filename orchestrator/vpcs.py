"""What a private network may be: its CIDRs, rules and addresses, read and checked. Pure.

Rules are written `PROTOCOL:CIDR:PORTS`, as `tcp:10.0.1.0/24:5432` or `udp:10.0.0.53/32:53-54`.
"""

import ipaddress
import itertools
import re
from collections.abc import Sequence

from orchestrator.catalog.errors import Refused
from workers.networks import RESERVED, Rule

PROXY_ROLE = "vpc-proxy"
VPC_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
MAX_CIDRS = 16
MAX_RULES = 64
MAX_NUMBER = (1 << 24) - 1
PROTOCOLS = ("tcp", "udp")
LAST_PORT = 65535
SHOWN = 60

Network = ipaddress.IPv4Network


def read_cidrs(told: Sequence[str]) -> tuple[str, ...]:
    """Sorted, each once. Raises Refused naming `cidrs`."""
    if not told:
        raise Refused("a private network has at least one CIDR, such as 10.0.0.0/16", "cidrs")
    if len(told) > MAX_CIDRS:
        raise Refused(f"{len(told)} CIDRs; at most {MAX_CIDRS}", "cidrs")
    networks = sorted({_network(one, "cidrs") for one in told})
    for network in networks:
        _check_place(network)
    for one, other in itertools.pairwise(networks):
        if one.overlaps(other):
            raise Refused(f"{other} lies within {one}; name one of them", "cidrs")
    return tuple(map(str, networks))


def read_rules(told: Sequence[str], cidrs: Sequence[str]) -> tuple[str, ...]:
    """As they are kept: sorted, each once; none means that all of the CIDRs may be reached. Raises Refused naming `rules`."""
    if len(told) > MAX_RULES:
        raise Refused(f"{len(told)} rules; at most {MAX_RULES}", "rules")
    rules = sorted({_rule(one) for one in told}, key=lambda rule: (rule.protocol, rule.cidr, rule.first, rule.last))
    within = [Network(one) for one in cidrs]
    for rule in rules:
        if not any(Network(rule.cidr).subnet_of(one) for one in within):
            raise Refused(f"{write_rule(rule)}: {rule.cidr} is not within {', '.join(cidrs)}", "rules")
    return tuple(map(write_rule, rules))


def rule_of(kept: str) -> Rule:
    """A rule as `read_rules` gave it."""
    return _rule(kept)


def write_rule(rule: Rule) -> str:
    ports = f"{rule.first}" if rule.first == rule.last else f"{rule.first}-{rule.last}"
    return f"{rule.protocol}:{rule.cidr}:{ports}"


def read_address(told: str, field: str, cidrs: Sequence[str] = ()) -> str:
    """An IPv4 address that a host may have, within `cidrs` where some are given; empty stays empty. Raises Refused."""
    if not told:
        return ""
    try:
        address = ipaddress.IPv4Address(told)
    except ValueError:
        raise Refused(f"{told[:SHOWN]!r} is not an IPv4 address", field) from None
    for reserved, whose in RESERVED.items():
        if address in reserved:
            raise Refused(f"{address} is of {reserved}, {whose}", field)
    if cidrs and not any(address in Network(one) for one in cidrs):
        raise Refused(f"{address} is not within {', '.join(cidrs)}", field)
    return str(address)


def check_name(name: str) -> None:
    """Raises Refused."""
    if not VPC_NAME.match(name):
        raise Refused("a private network's name is 1 to 63 lower-case letters, digits and hyphens", "name")


def _network(told: str, field: str) -> Network:
    try:
        return Network(told)
    except ValueError:
        pass
    try:
        whole = Network(told, strict=False)
    except ValueError:
        raise Refused(f"{told[:SHOWN]!r} is not a CIDR of IPv4, such as 10.0.0.0/16", field) from None
    if "/" in told and told.partition("/")[2].isdigit():
        raise Refused(f"{told[:SHOWN]} has bits set behind its prefix; the network is {whole}", field)
    raise Refused(f"{told[:SHOWN]!r} is not a CIDR of IPv4, such as 10.0.0.0/16", field)


def _check_place(network: Network) -> None:
    if network.prefixlen == 0:
        raise Refused("0.0.0.0/0 is everything there is; for the internet deploy with egress = internet", "cidrs")
    for reserved, whose in RESERVED.items():
        if network.overlaps(reserved):
            raise Refused(f"{network} overlaps {reserved}, {whose}", "cidrs")


def _rule(told: str) -> Rule:
    protocol, _, rest = told.partition(":")
    cidr, _, ports = rest.partition(":")
    if protocol not in PROTOCOLS or not cidr or not ports:
        raise Refused(f"{told[:SHOWN]!r}: write PROTOCOL:CIDR:PORTS, such as tcp:10.0.1.0/24:5432, with tcp or udp", "rules")
    first, dash, last = ports.partition("-")
    low, high = _port(first, told), _port(last if dash else first, told)
    if low > high:
        raise Refused(f"{told[:SHOWN]}: the first port is behind the last", "rules")
    return Rule(str(_network(cidr, "rules")), protocol, low, high)


def _port(text: str, told: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(LAST_PORT)) else 0
    if not 1 <= port <= LAST_PORT:
        raise Refused(f"{told[:SHOWN]}: {text[:SHOWN]!r} is not a port from 1 to {LAST_PORT}", "rules")
    return port

"""The nftables rulesets as text: of a node's router, of one Vpc in it, of a microVM's namespace, of a proxy. Pure.

A node's router, for every packet: where it came in decides its mark (a tunnel: its Vpc's; an instance: one element of `instances`
under its device *and* its address, so a forged source has none), no mark is the end of it. The Vpc's chain then puts it into a
zone of connection tracking of its own, before fragments are put together. What an instance sends is held against the rules packet
by packet, and so is what comes back: a changed rule holds at once, for what is open too. Nothing comes back but to connections of
instances attached now (`live`).
"""

import ipaddress
from collections.abc import Iterable, Sequence

from workers.network.kernel import addresses
from workers.network.kernel.addresses import EGRESS, INDEX_MASK, OWN_INDEX, SLOT_MASK
from workers.networks import NOT_INTERNET, RESOLVER, TUNNEL_PORTS, VpcSpec

TABLE = "foreglow"
TUNNELS, UPLINKS = 2, 3  # groups of devices in a router
CONNECTIONS = 1024  # at once, of one instance: no more, so that none takes the table that all share
PAIR_PORT = 3780
PAIR_VXLAN_PORT, VXLAN_PORT = TUNNEL_PORTS  # the pairs', so that no node is heard there, and IANA's

_BEFORE_FRAGMENTS = -450  # conntrack puts fragments together at -400


def _set(addresses_or_ranges: Iterable[str]) -> str:
    return "{ " + ", ".join(addresses_or_ranges) + " }"


_NOT_INTERNET = _set(map(str, NOT_INTERNET))


def router(number: int) -> str:
    """A node's; `number` is the node's own."""
    return f"""
table inet {TABLE} {{
  map instances {{ type iface_index . ipv4_addr : mark; size 1048576; }}
  set live {{ type mark; size 1048576; }}
  map tunnels {{ type iface_index : mark; }}
  map zones {{ type mark : verdict; }}
  map policies {{ type mark : verdict; }}
  map answers {{ type mark : verdict; }}
  map resolvers {{ type mark : verdict; }}
  set counted {{ type mark; size 65536; flags dynamic; }}
  chain arriving {{
    type filter hook prerouting priority {_BEFORE_FRAGMENTS}; policy drop;
    meta protocol != ip drop
    meta mark set iif map @tunnels
    meta mark set iif . ip saddr map @instances
    meta mark 0 drop
    meta mark & {SLOT_MASK:#x} vmap @zones
  }}
  chain names {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 meta mark & {SLOT_MASK:#x} vmap @resolvers
  }}
  chain passing {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    iifgroup {TUNNELS} ct mark @live ct state related accept
    iifgroup {TUNNELS} ct mark @live ct state established meta mark & {SLOT_MASK:#x} vmap @answers
    iifgroup {TUNNELS} drop
    oifgroup != {TUNNELS} drop
    udp dport {_set(map(str, TUNNEL_PORTS))} drop
    ct state invalid drop
    ct state related accept
    ct state new add @counted {{ meta mark ct count over {CONNECTIONS} }} drop
    ct state new ct mark set meta mark
    meta mark & {SLOT_MASK:#x} vmap @policies
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {INDEX_MASK:#x} == {OWN_INDEX} accept
    oifgroup {TUNNELS} meta mark & {EGRESS:#x} == {EGRESS:#x} snat ip to {addresses.tunnel_address(number, True)} fully-random
    oifgroup {TUNNELS} snat ip to {addresses.tunnel_address(number)} fully-random
  }}
  chain to_itself {{
    type filter hook input priority filter; policy drop;
    iifgroup {TUNNELS} ip saddr {addresses.GATEWAY} icmp type echo-reply accept
  }}
  chain of_itself {{
    type filter hook output priority filter; policy drop;
    meta mark & {INDEX_MASK:#x} == {OWN_INDEX} oifgroup {TUNNELS} icmp type echo-request accept
    oifgroup != {TUNNELS} icmp type {{ destination-unreachable, time-exceeded }} accept
  }}
}}
"""


def vpc(spec: VpcSpec, slot: int, device: int) -> str:
    """Adds the Vpc to a node's router, or makes what is there follow its spec: one transaction."""
    mark = f"{slot << addresses.SLOT_SHIFT:#x}"
    resolver = f"\nadd rule inet {TABLE} resolver_{slot} dnat ip to {spec.resolver}" if spec.resolver else ""
    return f"""
add chain inet {TABLE} zone_{slot}
add chain inet {TABLE} policy_{slot}
add chain inet {TABLE} answer_{slot}
add chain inet {TABLE} resolver_{slot}
flush chain inet {TABLE} zone_{slot}
flush chain inet {TABLE} policy_{slot}
flush chain inet {TABLE} answer_{slot}
flush chain inet {TABLE} resolver_{slot}
add rule inet {TABLE} zone_{slot} ct zone set {slot} accept
add rule inet {TABLE} policy_{slot} meta mark & {EGRESS:#x} == {EGRESS:#x} ip daddr != {_NOT_INTERNET} accept
{allowed(spec, f"inet {TABLE} policy_{slot}")}
add rule inet {TABLE} answer_{slot} ct mark & {EGRESS:#x} == {EGRESS:#x} ip saddr != {_NOT_INTERNET} accept
{allowed(spec, f"inet {TABLE} answer_{slot}", back=True)}{resolver}
add element inet {TABLE} zones {{ {mark} : goto zone_{slot} }}
add element inet {TABLE} policies {{ {mark} : goto policy_{slot} }}
add element inet {TABLE} answers {{ {mark} : goto answer_{slot} }}
add element inet {TABLE} resolvers {{ {mark} : goto resolver_{slot} }}
add element inet {TABLE} tunnels {{ {device} : {mark} }}
"""


def vpc_gone(slot: int, device: int) -> str:
    mark = f"{slot << addresses.SLOT_SHIFT:#x}"
    return f"""
delete element inet {TABLE} tunnels {{ {device} }}
delete element inet {TABLE} zones {{ {mark} }}
delete element inet {TABLE} policies {{ {mark} }}
delete element inet {TABLE} answers {{ {mark} }}
delete element inet {TABLE} resolvers {{ {mark} }}
delete chain inet {TABLE} zone_{slot}
delete chain inet {TABLE} policy_{slot}
delete chain inet {TABLE} answer_{slot}
delete chain inet {TABLE} resolver_{slot}
"""


def guest(card: str, guest_address: str, cable: str, address: str) -> str:
    """In a microVM's namespace: between the guest's card and its cable, under the instance's one address."""
    return f"""
table inet {TABLE} {{
  chain passing {{
    type filter hook forward priority filter; policy drop;
    iifname "{card}" oifname "{cable}" ip saddr {guest_address} accept
    iifname "{cable}" oifname "{card}" ct state established,related accept
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{cable}" snat ip to {address}
  }}
  chain to_itself {{ type filter hook input priority filter; policy drop; }}
  chain of_itself {{
    type filter hook output priority filter; policy drop;
    oifname "{card}" icmp type {{ destination-unreachable, time-exceeded }} accept
  }}
}}
"""


def proxy(spec: VpcSpec, tunnel: str, inside: str, pair: str) -> str:
    """A proxy's, in the namespace of one Vpc, by the names of its devices. The sets `nodes` and `travellers` (nodes again, under
    the addresses that may go to the internet) are filled beside."""
    return f"""
add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set nodes {{ type ipv4_addr; }}
  set travellers {{ type ipv4_addr; }}
  chain allowed {{ }}
  chain answered {{ }}
  chain passing {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    iifname "{inside}" oifname != "{tunnel}" drop
    iifname "{inside}" ct state related accept
    iifname "{inside}" ct state != established drop
    iifname "{inside}" ct original ip saddr @travellers ip saddr != {_NOT_INTERNET} accept
    iifname "{inside}" goto answered
    iifname != "{tunnel}" drop
    oifname != "{inside}" drop
    udp dport {_set(map(str, TUNNEL_PORTS))} drop
    ct state invalid drop
    ct state related accept
    ip saddr @travellers ip daddr != {_NOT_INTERNET} accept
    ip saddr @nodes goto allowed
    ip saddr @travellers goto allowed
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{inside}" snat ip to {spec.address}
  }}
  chain to_itself {{
    type filter hook input priority filter; policy drop;
    iifname "{tunnel}" ip daddr {addresses.GATEWAY} icmp type echo-request accept
    iifname "{pair}" ip saddr {_set(addresses.PAIR)} ip protocol vrrp accept
    iifname "{pair}" ip saddr {_set(addresses.PAIR)} udp dport {PAIR_PORT} accept
  }}
  chain of_itself {{
    type filter hook output priority filter; policy drop;
    oifname "{pair}" accept
    oifname "{tunnel}" ip saddr {addresses.GATEWAY} icmp type echo-reply accept
    oifname {{ "{tunnel}", "{inside}" }} icmp type {{ destination-unreachable, time-exceeded }} accept
  }}
}}
{allowed(spec, f"inet {TABLE} allowed")}
{allowed(spec, f"inet {TABLE} answered", back=True)}
"""


def proxied_nodes(numbers: Sequence[int]) -> str:
    """The nodes that a proxy carries for: those and no others."""
    lines = [f"flush set inet {TABLE} nodes", f"flush set inet {TABLE} travellers"]
    for number in numbers:
        lines.append(f"add element inet {TABLE} nodes {{ {addresses.tunnel_address(number)} }}")
        lines.append(f"add element inet {TABLE} travellers {{ {addresses.tunnel_address(number, True)} }}")
    return "\n".join(lines) + "\n"


def allowed(spec: VpcSpec, chain: str, back: bool = False) -> str:
    """VpcSpec.allows as rules, for packets on their way there or (`back`) from there; the chain ends in its caller's drop."""
    address, port = ("ip saddr", "sport") if back else ("ip daddr", "dport")
    held = _set(map(str, ipaddress.collapse_addresses(map(ipaddress.IPv4Network, spec.cidrs))))
    if not spec.rules:
        return f"add rule {chain} {address} {held} meta l4proto {{ tcp, udp }} accept"
    lines = [f"add rule {chain} {address} != {held} drop"]
    lines += [
        f"add rule {chain} {address} {rule.cidr} {rule.protocol} {port} {rule.first}-{rule.last} accept" for rule in spec.rules
    ]
    return "\n".join(lines)

"""The two programs that make a pair of proxies one: keepalived (VRRPv3: who carries the address) and conntrackd (what the other
needs to go on with connections), configured for one Vpc in its namespace. Pure."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from workers.network.kernel import addresses
from workers.network.kernel.rules import PAIR_PORT

ADVERTISEMENT_S = 0.2
"""Three missed ones and up to one more, by priority: a backup takes over 0.7 s after the last."""

AGAIN_S = 10  # between two announcements of who carries the address, for a switch or a node that missed the first
TUNNEL, INSIDE, PAIR = "tunnel", "inside", "pair"


class Way(msgspec.Struct, frozen=True):
    """A route of the proxy's host into the private network; `gateway` is empty for what is on the wire."""

    destination: str
    gateway: str = ""


def keepalived(folder: Path, place: int, alone: bool, address: str, ways: Sequence[Way]) -> str:
    """`place`: 0 for the primary, 1 for its backup. Routes come and go with the address, so that one proxy alone answers."""
    own, other = addresses.PAIR[place], addresses.PAIR[1 - place]
    peers = "" if alone else f"unicast_peer {{\n    {other}\n  }}"
    routes = "\n    ".join(_route(way, address) for way in ways)
    return f"""global_defs {{
  router_id foreglow
  vrrp_version 3
  vrrp_notify_fifo {folder / "roles"}
  vrrp_garp_master_delay 1
  vrrp_garp_master_repeat 3
  vrrp_garp_master_refresh {AGAIN_S}
  vrrp_priority -15
}}
vrrp_instance foreglow {{
  state BACKUP
  nopreempt
  interface {PAIR}
  virtual_router_id 1
  priority {200 - 100 * place}
  advert_int {ADVERTISEMENT_S}
  unicast_src_ip {own}
  {peers}
  track_interface {{
    {INSIDE}
  }}
  virtual_ipaddress {{
    {address}/32 dev {INSIDE}
  }}
  virtual_ipaddress_excluded {{
    {addresses.GATEWAY}/32 dev {TUNNEL}
  }}
  virtual_routes {{
    {routes}
  }}
}}
"""


def _route(way: Way, address: str) -> str:
    if way.gateway:
        return f"{way.destination} via {way.gateway} dev {INSIDE} src {address}"
    return f"{way.destination} dev {INSIDE} scope link src {address}"


def conntrackd(folder: Path, place: int) -> str:
    """What the other proxy learns goes straight into its kernel: when it takes over there is nothing left to do."""
    return f"""Sync {{
  Mode FTFW {{
    DisableExternalCache On
    StartupResync On
  }}
  UDP {{
    IPv4_address {addresses.PAIR[place]}
    IPv4_Destination_Address {addresses.PAIR[1 - place]}
    Port {PAIR_PORT}
    Interface {PAIR}
    SndSocketBuffer 1249280
    RcvSocketBuffer 1249280
    Checksum on
  }}
}}
General {{
  HashSize 32768
  HashLimit 131072
  LogFile {folder / "conntrackd.log"}
  Syslog Off
  LockFile {folder / "conntrackd.lock"}
  UNIX {{
    Path {folder / "conntrackd.sock"}
  }}
  NetlinkBufferSize 2097152
  NetlinkBufferSizeMaxGrowth 8388608
  Filter From Kernelspace {{
    Protocol Accept {{
      TCP
      UDP
    }}
  }}
}}
"""

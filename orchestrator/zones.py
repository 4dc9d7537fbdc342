"""Zones: failure domains by name, and which caches are in them. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

DEFAULT_ZONE = "default"
"""Of whoever was told none."""

CACHE_ROLE = "zone-cache"


class Member(Protocol):
    """What the routes say of a member."""

    @property
    def role(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def zone(self) -> str: ...


def zone_of(member: Member) -> str:
    return member.zone or DEFAULT_ZONE


def caches_by_zone(members: Iterable[Member], own_zone: str = DEFAULT_ZONE, own: Sequence[str] = ()) -> dict[str, list[str]]:
    """Addresses of the caches of each zone that has one, sorted; `own`: what settings name, in `own_zone`."""
    found: dict[str, set[str]] = defaultdict(set)
    if own:
        found[own_zone].update(own)
    for one in members:
        if one.role == CACHE_ROLE and one.address:
            found[zone_of(one)].add(one.address)
    return {zone: sorted(addresses) for zone, addresses in sorted(found.items())}

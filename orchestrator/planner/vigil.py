"""Declares members silent in the database, so that every gateway hears of it and the node, should it come back, is refused.

Only the planner that holds the first shard's lease does. When no node at all is to be heard, it is rather this planner that is
cut off: then it declares nobody, since there is nowhere to rebuild anything either. That it hears nothing of them is told all the
same, and voids nothing: operators must not read that a dead node is up.
"""

from collections.abc import Iterable

import msgspec

AFTER_S = 0.5  # a link already waited for heartbeats before it was dropped; a node that crashed gets the time to begin anew
CRASHED_S = 6.0
SEEN_EVERY_S = 5.0


class Sight(msgspec.Struct, frozen=True):
    """A node as the planner has it: `name` of a member that this planner reached since it joined, empty beside control;
    `down_since` monotonic, 0 while it is heard; `member`: its name, reached or not."""

    name: str
    epoch: int
    down_since: float
    silent: bool
    member: str = ""


def overdue(sights: Iterable[Sight], now: float) -> list[tuple[str, int]]:
    """Name and epoch of the members to declare silent now; pure."""
    all_of_them = list(sights)
    if all(one.down_since for one in all_of_them):
        return []
    return [(one.name, one.epoch) for one in all_of_them if one.name and _long_down(one, now)]


def unheard(sights: Iterable[Sight], now: float) -> set[tuple[str, int]]:
    """Name and epoch of the members of which nothing is heard, whoever may be cut off; pure."""
    return {(one.member, one.epoch) for one in sights if one.member and _long_down(one, now)}


def heard(sights: Iterable[Sight]) -> dict[str, int]:
    """Name and epoch of the members that are heard; pure."""
    return {one.member: one.epoch for one in sights if one.member and not one.down_since}


def _long_down(one: Sight, now: float) -> bool:
    return one.down_since > 0 and now - one.down_since >= (AFTER_S if one.silent else CRASHED_S)

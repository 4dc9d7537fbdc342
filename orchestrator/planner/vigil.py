"""Declares members silent in the database, so that every gateway hears of it and the node, should it come back, is refused.

Only the planner that holds the first shard's lease does. When no node at all is to be heard, it is rather this planner that is
cut off: then it declares nobody, since there is nowhere to rebuild anything either.
"""

from collections.abc import Iterable

import msgspec

AFTER_S = 0.5  # a link already waited for heartbeats before it was dropped; a node that crashed gets the time to begin anew
CRASHED_S = 6.0
SEEN_EVERY_S = 5.0


class Sight(msgspec.Struct, frozen=True):
    """A node as the planner has it: `name` of a member, empty beside control; `down_since` monotonic, 0 while it is heard."""

    name: str
    epoch: int
    down_since: float
    silent: bool


def overdue(sights: Iterable[Sight], now: float) -> list[tuple[str, int]]:
    """Name and epoch of the members to declare silent now; pure."""
    all_of_them = list(sights)
    if all(one.down_since for one in all_of_them):
        return []
    return [
        (one.name, one.epoch)
        for one in all_of_them
        if one.name and one.down_since and now - one.down_since >= (AFTER_S if one.silent else CRASHED_S)
    ]

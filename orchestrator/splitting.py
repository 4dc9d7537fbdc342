"""Which of two versions a weighted pointer means. Pure: a gateway and the planner come to the same answer without asking.

A ticket is what must choose alike: a run's trace id, so that all of a run sees one version; or what an alias is sticky by, so
that one user does. Tickets keep their order while a share grows: who had the second version has it after as well.
"""

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import msgspec

SPAN = 2**64


class Pointer(msgspec.Struct, frozen=True):
    """`share`: the part of all tickets, from 0 to 1, that means `second`; the rest means `version`."""

    version: int
    second: int | None = None
    share: float = 0.0


def shares(pointer: Pointer) -> dict[int, float]:
    """By version, the part of the tickets that means it; a version without any is not in it."""
    if pointer.second is None or pointer.share <= 0.0:
        return {pointer.version: 1.0}
    if pointer.share >= 1.0:
        return {pointer.second: 1.0}
    return {pointer.version: 1.0 - pointer.share, pointer.second: pointer.share}


def plain(pointer: Pointer) -> Pointer:
    """The same, written with one version when it means one."""
    meant = shares(pointer)
    return pointer if len(meant) > 1 else Pointer(next(iter(meant)))


def to_second(share: float, place: str, ticket: str) -> bool:
    """Whether the ticket means the second version at `place`, a function and alias: elsewhere it chooses anew."""
    digest = hashlib.blake2b(f"{place} {ticket}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest) < share * SPAN


def steps_of(before: Pointer, target: Pointer, ramp: tuple[float, ...]) -> tuple[Pointer, ...]:
    """The pointers that a release goes through: `target` at once, or the target's version at each share of `ramp`, beside the one
    that has most now. Raises ValueError, in words for who asked."""
    if not ramp:
        return (plain(target),)
    if target.second is not None:
        raise ValueError("a ramp leads to one version: leave the second one out")
    if any(not 0.0 < share <= 1.0 for share in ramp) or any(one >= other for one, other in pairwise(ramp)):
        raise ValueError("a ramp is growing shares, above 0 and at most 100 %")
    now = shares(before)
    stays = max((one for one in now if one != target.version), key=now.__getitem__, default=None)
    if stays is None:
        return (plain(target),)
    return tuple(Pointer(stays, target.version, share) if share < 1.0 else Pointer(target.version) for share in ramp)


def growing(before: Pointer, after: Pointer) -> Mapping[int, float]:
    """The versions that get more than before, with their share then."""
    had = shares(before)
    return {version: share for version, share in shares(after).items() if share > had.get(version, 0.0)}

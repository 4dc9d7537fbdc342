"""Which replica holds what: rendezvous hashing. Each key ranks the replicas by a hash of both, and nobody keeps a table.

A replica that leaves moves only what it held, to the next of each key; one that comes takes only what it now ranks first for.
"""

import hashlib
from collections.abc import Iterable


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """The replicas, the one that holds `key` first; the same for everybody who knows the same replicas, in whatever order."""
    return sorted(replicas, key=lambda replica: (_weight(key, replica), replica), reverse=True)


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()

"""What the node and a lazy layer's server say to each other. Standard library only.

A datagram holds words: from the server `index` (a chunk was touched; the node brings it unless it is there), from the node
`index, state`. PING goes to the server as an index and comes back as it is.
"""

import struct
from collections.abc import Iterable, Iterator

MISSING, HELD, FAILED = 0, 1, 2
PING = 0xFFFF_FFFF
READY = 0xFFFF_FFFE
"""From the server: the kernel has spoken to it."""

MAX_DATAGRAM = 4096
_TOUCHED, _STATE = struct.Struct("=I"), struct.Struct("=IB")
MAX_TOUCHED = MAX_DATAGRAM // _TOUCHED.size
MAX_STATES = MAX_DATAGRAM // _STATE.size


def pack_touched(indexes: Iterable[int]) -> bytes:
    return b"".join(map(_TOUCHED.pack, indexes))


def unpack_touched(datagram: bytes) -> Iterator[int]:
    """Raises struct.error for what is cut off."""
    return (index for (index,) in _TOUCHED.iter_unpack(datagram))


def pack_state(index: int, state: int) -> bytes:
    return _STATE.pack(index, state)


def unpack_states(datagram: bytes) -> Iterator[tuple[int, int]]:
    return _STATE.iter_unpack(datagram)

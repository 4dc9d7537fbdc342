"""How a function template stands still while it is snapshotted, so that no thread of it runs in a clone before the clone is
somebody of its own. Standard library only, beside runtime.py.

The first process freezes every process of the function; in a clone it lets go of them after the kernel has its entropy and the
clock is right. What is drawn from the kernel is fresh from then on. Generators that Python keeps are in the process's memory, and
the one thread that seeds them would be one among many once all go on. So that thread goes to rest *with* the interpreter's lock,
inside one call that is C from end to end: it says so, reads, and seeds with what it read, and nobody else executes a line of
Python in between. (A thread that waits for the lock has asked for it; the next line of Python would hand it over.)
"""

import _random
import ctypes
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from operator import add
from typing import Any, cast

from workers.guest import runtime

HOLD, HELD = b"hold", b"held"
SEED = 64
MT_WORDS = 624  # of the state of numpy's global generator
SIZE = SEED + MT_WORDS * 4
"""Bytes the held thread reads: what it seeds with."""


def hold(gate: socket.socket) -> None:
    """Waits at `gate` for HOLD, says HELD, and returns when SIZE bytes have come, with every generator seeded by them.
    Raises OSError when they do not."""
    if gate.recv(len(HOLD)) != HOLD:
        raise OSError("the first process has gone")
    libc = ctypes.PyDLL(None)  # its functions keep the interpreter's lock
    for function in (libc.read, libc.write):
        function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_ssize_t
    fresh = ctypes.create_string_buffer(SIZE)
    words = ctypes.create_string_buffer(HELD, len(HELD))
    seeding = chain(*_seedings(fresh))
    done: list[Any] = []
    collecting, signals = gc.isenabled(), signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    gc.disable()  # a finaliser would be a line of Python, a signal the end of the call
    try:
        fd = gate.fileno()
        steps = chain(map(libc.write, [fd], [words], [len(HELD)]), map(libc.read, [fd], [fresh], [SIZE]), seeding)
        done.extend(steps)
    except Exception as error:  # of a module that is not as we know it: it is seeded by `reseed`, some milliseconds later
        done.append(error)
    finally:
        if collecting:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    if done[:2] != [len(HELD), SIZE]:
        raise OSError("a clone of the template got no entropy")
    fresh.raw = os.urandom(SIZE)  # nobody finds in memory what was seeded with


def _seedings(fresh: "ctypes.Array[ctypes.c_char]") -> list[Iterator[Any]]:
    """Iterators that seed as they are consumed, with what `fresh` holds then, without a line of Python."""
    mine: list[random.Random] = [random._inst]
    unseeded = runtime._unseeded  # may grow until all is held
    modules, read = cast(Any, sys.modules), cast(Callable[[Any, str], int], int.from_bytes)
    numbers = map(add, map(read, repeat(fresh), repeat("big")), count())
    found: list[Iterator[Any]] = [
        map(_random.Random.seed, chain(mine, unseeded), numbers),
        map(setattr, chain(mine, unseeded), repeat("gauss_next"), repeat(None)),
    ]
    if "ssl" in modules:
        found.append(map(modules["ssl"].RAND_add, [fresh], [float(SEED)]))
    if "uuid" in modules:
        found.append(map(setattr, repeat(modules["uuid"]), ("_node", "_last_timestamp"), repeat(None)))
    if "tempfile" in modules:
        found.append(map(setattr, [modules["tempfile"]], ["_name_sequence"], [None]))
    if "numpy.random" in modules:
        found += _numpy(modules, fresh)
    return found


def _numpy(modules: Any, fresh: "ctypes.Array[ctypes.c_char]") -> list[Iterator[Any]]:
    try:
        key = modules["numpy"].frombuffer(fresh, modules["numpy"].uint32, MT_WORDS, SEED)
        put: Callable[[Any], Any] = modules["numpy.random"].set_state
    except Exception:  # half imported, or another numpy than we know
        return []
    return [map(put, [("MT19937", key, MT_WORDS, 0, 0.0)])]

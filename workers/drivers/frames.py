"""The guest protocol: what passes between a node and the runtime inside a sandbox. Meta is a JSON object.

The guest side knows the same numbers (workers/guest/runtime.py imports nothing of ours); tests/contracts/test_frames.py
holds the golden bytes of both. Ids: the node numbers invocations, the guest numbers its calls; they do not mix, because
a kind belongs to one of the two.
"""

from enum import IntEnum


class ToGuest(IntEnum):
    SPECIALISE = 1  # {version, handler, kind, concurrency, memory_mb, environment, paths, entropy (hex), exercise?}: become this
    INVOKE = 2  # {invocation, type, content_type, deadline_s, trace_id, depth, http?}, body: the payload
    CALL_RESULT = 3  # {status, content_type, error?}, body: the answer to a CALL with this id
    CANCEL = 4  # the invocation with this id is given up
    PING = 5


class FromGuest(IntEnum):
    READY = 17  # {init_ms, error?: {type, message, stack}, step?: what of the sandbox failed}: SPECIALISE is done
    RESULT = 18  # {content_type, http?: {status, headers}}, body (MORE: streamed)
    ERROR = 19  # {type, message, stack, payload?}: the handler raised, or (payload) the payload is not what it says
    CALL = 20  # {invocation id as u32 `invocation`, function, content_type, asynchronous}, body: a child call
    LOG = 21  # {stream: out | err}, body: text the handler wrote, id of its invocation
    PONG = 22
    CANCEL_CALL = 23  # the call with this id is not waited for any more


class ToInit(IntEnum):
    """To the first process of a microVM (workers/guest/microvm.py), which runs no tenant code, on a port of its own."""

    ACTIVATE = 33  # {entropy (hex), hostname, now_ns?, disks, files}, body: the files; before, or with, SPECIALISE on the channel
    CLOCK = 34  # {now_ns}: the answer to ASK_CLOCK
    RENEW = 35  # the exercise is over: take away what was put in, and say STANDING when the runtime waits again
    COUNT = 36  # how much is used now?
    HOLD = 37  # of a function template's original: stop every thread of the function, until a clone is activated


class FromInit(IntEnum):
    STANDING = 49  # {python}: a runtime waits for SPECIALISE
    OUTPUT = 50  # {stream: out | err}, body: written past the runtime, by C code or a child process
    EXIT = 51  # {code | signal, out_of_memory}: the runtime's process has ended, nothing else will come
    COUNTED = 52  # {memory_bytes, processes}, id as asked
    ASK_CLOCK = 53  # ACTIVATE had no `now_ns`: what time is it?
    FROZEN = 54  # {frozen}: the answer to HOLD

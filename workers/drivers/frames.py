"""The guest protocol: what passes between a node and the runtime inside a sandbox. Meta is a JSON object.

The guest side knows the same numbers (workers/guest/runtime.py imports nothing of ours); tests/contracts/test_frames.py
holds the golden bytes of both. Ids: the node numbers invocations, the guest numbers its calls; they do not mix, because
a kind belongs to one of the two.

In a microVM the channel is the virtio-serial port named `agent`; ports `out` and `err` are descriptors 1 and 2 of the runtime.
SPECIALISE has a `hostname` there as well, and sets clock (`now`), hostname and the kernel's entropy before anything else.
Its code is either its body (workers.drivers.microvm.disk says how it is packed) or, with `disk`, the EROFS image on /dev/vda.
With `withheld` the runtime imports the module, says READY and waits for a second SPECIALISE, as a clone of a function template.
"""

from enum import IntEnum


class ToGuest(IntEnum):
    SPECIALISE = 1  # {version, handler, kind, concurrency, memory_mb, environment, paths, entropy (hex), now}: become this
    INVOKE = 2  # {invocation, type, content_type, deadline_s, trace_id, depth, http?}, body: the payload
    CALL_RESULT = 3  # {status, content_type, error?}, body: the answer to a CALL with this id
    CANCEL = 4  # the invocation with this id is given up
    PING = 5
    WARM = 6  # microVM, before SPECIALISE: {now, entropy}: go once through all that SPECIALISE and INVOKE do with code of its own


class FromGuest(IntEnum):
    READY = 17  # {init_ms, error?: {type, message, stack}, step?: what of the sandbox failed}: SPECIALISE is done
    RESULT = 18  # {content_type, http?: {status, headers}}, body (MORE: streamed)
    ERROR = 19  # {type, message, stack, payload?}: the handler raised, or (payload) the payload is not what it says
    CALL = 20  # {invocation id as u32 `invocation`, function, content_type, asynchronous}, body: a child call
    LOG = 21  # {stream: out | err}, body: text the handler wrote, id of its invocation
    PONG = 22
    CANCEL_CALL = 23  # the call with this id is not waited for any more
    UP = 24  # microVM: {}: the agent has booted and waits for WARM or SPECIALISE
    WARMED = 25  # microVM: {}: WARM is done, everything is as before it
    EXITED = 26  # microVM: {code | signal, out_of_memory?}: process 1 says how the runtime, its child, ended

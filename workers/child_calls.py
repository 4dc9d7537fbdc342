"""The calls of handlers in flight: each goes out on the connection its invocation came by, and its answer back to the guest."""

from workers.drivers.frames import ToGuest
from workers.framing import Frame
from workers.instances import Instance, State
from workers.invocations import Invocation, decode_call, guest_call_result
from workers.rpc.connection import Connection
from workers.rpc.messages import ChildCall, ErrorDetail, InvokeResult, Rpc

MAX_CALLS = 256  # in flight of one invocation


class CallRepeated(Exception):
    """A guest gave a call the id of one in flight: it breaks the protocol."""


class ChildCalls:
    """Which call of which guest each call on a connection is. `len`: how many wait for their answer."""

    def __init__(self) -> None:
        self._open: dict[tuple[Connection, int], tuple[Invocation, int]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def made(self, instance: Instance, frame: Frame) -> None:
        """A guest calls a function. Refused at once unless it is for an invocation live in that instance. Raises
        CallRepeated, and msgspec's errors where the frame says something else."""
        call = decode_call(frame.meta)
        invocation = instance.live.get(call.invocation)
        if any(frame.id in one.calls for one in instance.live.values()):
            raise CallRepeated("a call has the id of one in flight")
        refusal = ""
        if invocation is None:
            refusal = "the invocation this call names is not live in this instance"
        elif len(invocation.calls) >= MAX_CALLS:
            refusal = f"more than {MAX_CALLS} calls in flight"
        if invocation is None or refusal:
            _answer(instance, frame.id, InvokeResult("refused", error=ErrorDetail("CallRefused", refusal)), b"")
            return
        connection = invocation.connection
        ident = connection.next_id()
        invocation.calls[frame.id] = ident
        self._open[connection, ident] = (invocation, frame.id)
        connection.send(
            Rpc.CALL,
            ident,
            ChildCall(invocation.request.invocation_id, call.function, call.content_type, call.asynchronous),
            frame.body,
        )

    def answered(self, connection: Connection, ident: int, result: InvokeResult, body: bytes) -> None:
        """For the guest that waits for it; what nobody waits for any more is dropped."""
        found = self._open.pop((connection, ident), None)
        if found is None:
            return
        invocation, guest_call = found
        invocation.calls.pop(guest_call, None)
        if invocation.instance is not None:
            _answer(invocation.instance, guest_call, result, body)

    def given_up(self, instance: Instance, guest_call: int) -> None:
        """Its guest does not want it any more."""
        for invocation in instance.live.values():
            ident = invocation.calls.pop(guest_call, None)
            if ident is not None:
                self._open.pop((invocation.connection, ident), None)
                invocation.connection.send(Rpc.CANCEL_CALL, ident)
                return

    def end(self, invocation: Invocation) -> None:
        """The invocation is over: what it called is cancelled with it."""
        for ident in invocation.calls.values():
            if self._open.pop((invocation.connection, ident), None) is not None:
                invocation.connection.send(Rpc.CANCEL_CALL, ident)
        invocation.calls.clear()


def _answer(instance: Instance, guest_call: int, result: InvokeResult, body: bytes) -> None:
    if instance.clone is not None and instance.state is not State.GONE:
        instance.clone.send(ToGuest.CALL_RESULT, guest_call, guest_call_result(result), body)

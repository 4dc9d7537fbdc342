"""What a guest may say: child calls within the rules, output within bounds. Who breaks the protocol loses its instance."""

from pathlib import Path

import msgspec
import pytest
from doubles.loop import in_loop, until
from doubles.nodes import Caller, Rig, Running, running_node, spec
from doubles.sandboxes import DoubleClone, silent
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from workers import child_calls
from workers.drivers.frames import FromGuest, ToGuest
from workers.rpc.messages import ErrorDetail, InvokeResult, Rpc

PARENT = spec("parent")
CHILD = {"function": "child", "content_type": "application/json", "asynchronous": False}


async def parent(rig: Rig, caller: Caller, deadline_s: float = 10.0) -> tuple[Running, DoubleClone, int]:
    """A running invocation, its sandbox, and its number there."""
    rig.driver.handler = silent
    running = caller.start(PARENT, deadline_s=deadline_s)
    await until(lambda: rig.driver.instances and rig.driver.instances[-1].invocations())
    clone = rig.driver.instances[-1]
    return running, clone, clone.invocations()[-1].id


def answers(clone: DoubleClone) -> list[tuple[int, dict[str, object], bytes]]:
    return [(frame.id, msgspec.json.decode(frame.meta), frame.body) for frame in clone.sent if frame.kind == ToGuest.CALL_RESULT]


# -- child calls


@in_loop
async def test_a_call_goes_out_in_the_parents_name_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        clone.say(FromGuest.CALL, 77, {**CHILD, "invocation": ident}, b"payload")
        await until(lambda: caller.calls)
        number, call, body = caller.calls[0]
        assert (call.invocation_id, call.function, body) == (running.invocation_id, "child", b"payload")
        caller.connection.send(Rpc.CALL_RESULT, number, InvokeResult("ok", content_type="text/x"), b"result")
        await until(lambda: answers(clone))
        assert answers(clone) == [(77, {"status": "ok", "content_type": "text/x"}, b"result")]
        clone.answer(ident)
        assert await running.status() == "ok"
        assert caller.cancelled_calls == []


@in_loop
async def test_a_failed_call_is_told_with_its_type_and_message_and_no_stack_of_the_callee(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        _, clone, ident = await parent(rig, caller)
        clone.say(FromGuest.CALL, 5, {**CHILD, "invocation": ident})
        await until(lambda: caller.calls)
        error = ErrorDetail("KeyError", "'sku'", "a stack of another function")
        caller.connection.send(Rpc.CALL_RESULT, caller.calls[0][0], InvokeResult("error", error=error))
        await until(lambda: answers(clone))
        told = {"status": "error", "error": {"type": "KeyError", "message": "'sku'"}}
        assert [meta for _, meta, _ in answers(clone)] == [told]


@in_loop
async def test_calls_answered_out_of_order_find_their_callers(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        _, clone, ident = await parent(rig, caller)
        for number in range(8):
            clone.say(FromGuest.CALL, 100 + number, {**CHILD, "invocation": ident}, b"%d" % number)
        await until(lambda: len(caller.calls) == 8)
        for number, _, body in reversed(caller.calls):
            caller.connection.send(Rpc.CALL_RESULT, number, InvokeResult("ok"), b"answer to " + body)
        await until(lambda: len(answers(clone)) == 8)
        assert {guest: body for guest, _, body in answers(clone)} == {100 + n: b"answer to %d" % n for n in range(8)}


@pytest.mark.parametrize("when", ["after the end", "of nobody", "of another instance"])
@in_loop
async def test_a_call_is_taken_only_for_an_invocation_live_in_that_instance(tmp_path: Path, when: str) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        claimed = ident
        if when == "after the end":
            clone.answer(ident)
            await running.result()
        elif when == "of nobody":
            claimed = 4_000_000_000
        else:
            clone.answer(ident)
            await running.result()
            first, second = caller.start(PARENT), caller.start(PARENT)
            await until(lambda: len(rig.driver.instances) == 2 and rig.driver.instances[1].invocations())
            clone = rig.driver.instances[1]  # its own invocation is number 1; 2 lives in the other
            claimed = 2
            del first, second
        clone.say(FromGuest.CALL, 9, {**CHILD, "invocation": claimed})
        guest, meta, _ = answers(clone)[0]
        assert (guest, meta["status"]) == (9, "refused")
        await caller.caught_up()
        assert caller.calls == []
        assert not clone.ended


@pytest.mark.parametrize("end", ["answer", "exception", "timeout", "cancel", "death", "lost gateway"])
@in_loop
async def test_what_it_called_is_cancelled_when_the_parent_ends_however_it_ends(tmp_path: Path, end: str) -> None:
    async with running_node(tmp_path) as rig:
        caller, other = await rig.caller(), await rig.caller()
        running, clone, ident = await parent(rig, caller, deadline_s=3.0 if end == "timeout" else 10.0)
        clone.say(FromGuest.CALL, 1, {**CHILD, "invocation": ident})
        clone.say(FromGuest.CALL, 2, {**CHILD, "invocation": ident})
        await until(lambda: len(caller.calls) == 2)
        if end == "answer":
            clone.answer(ident)
        elif end == "exception":
            clone.say(FromGuest.ERROR, ident, {"type": "E", "message": "m"})
        elif end == "cancel":
            running.cancel()
        elif end == "death":
            clone.die("killed")
        elif end == "lost gateway":
            caller.connection.close()
            await until(lambda: clone.ended)
        if end != "lost gateway":
            await running.result()
            await until(lambda: len(caller.cancelled_calls) == 2)
            assert sorted(caller.cancelled_calls) == sorted(number for number, _, _ in caller.calls)
            for number, _, _ in caller.calls:  # too late: nobody waits, nothing breaks
                caller.connection.send(Rpc.CALL_RESULT, number, InvokeResult("ok"))
            await caller.caught_up()
            assert answers(clone) == []
        assert len(rig.node.execution.calls) == 0
        assert rig.node.execution._streams == {}
        rig.driver.handler = lambda clone, frame: clone.answer(frame.id)
        assert (await other.invoke(PARENT))[0].status == "ok"


@in_loop
async def test_a_call_the_guest_gave_up_is_cancelled_and_its_answer_dropped(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        clone.say(FromGuest.CALL, 1, {**CHILD, "invocation": ident})
        clone.say(FromGuest.CANCEL_CALL, 1)
        clone.say(FromGuest.CANCEL_CALL, 1)
        clone.say(FromGuest.CANCEL_CALL, 999)
        await until(lambda: caller.cancelled_calls)
        caller.connection.send(Rpc.CALL_RESULT, caller.calls[0][0], InvokeResult("ok"))
        await caller.caught_up()
        assert answers(clone) == []
        assert len(caller.cancelled_calls) == 1
        clone.answer(ident)
        assert await running.status() == "ok"


@in_loop
async def test_more_calls_in_flight_than_the_bound_are_refused_until_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_calls, "MAX_CALLS", 3)
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        _, clone, ident = await parent(rig, caller)
        for number in range(4):
            clone.say(FromGuest.CALL, number, {**CHILD, "invocation": ident})
        assert [(guest, meta["status"]) for guest, meta, _ in answers(clone)] == [(3, "refused")]
        await until(lambda: len(caller.calls) == 3)
        caller.connection.send(Rpc.CALL_RESULT, caller.calls[0][0], InvokeResult("ok"))
        await until(lambda: len(answers(clone)) == 2)
        clone.say(FromGuest.CALL, 4, {**CHILD, "invocation": ident})
        await until(lambda: len(caller.calls) == 4)


@in_loop
async def test_a_call_id_used_twice_ends_the_instance(tmp_path: Path) -> None:
    """Otherwise one id would stand for any number of calls: past the bound, and never cancelled."""
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        clone.say(FromGuest.CALL, 1, {**CHILD, "invocation": ident})
        clone.say(FromGuest.CALL, 1, {**CHILD, "invocation": ident})
        assert await running.status() == "killed"
        await until(lambda: len(caller.cancelled_calls) == 1)


# -- broken and hostile guests


BROKEN = [
    (FromGuest.RESULT, b"not json"),
    (FromGuest.RESULT, b'{"content_type": 7}'),
    (FromGuest.RESULT, b'{"content_type": "\\ud800"}'),
    (FromGuest.RESULT, b'{"http": {"status": "200"}}'),
    (FromGuest.RESULT, b'{"http": {"headers": [["a"]]}}'),
    (FromGuest.RESULT, b""),
    (FromGuest.ERROR, b"[]"),
    (FromGuest.ERROR, b'{"type": null}'),
    (FromGuest.CALL, b"{}"),
    (FromGuest.CALL, b'{"invocation": "1", "function": "f"}'),
    (FromGuest.LOG, b"\xff"),
    (FromGuest.LOG, b"3"),
]


@pytest.mark.parametrize(("kind", "meta"), BROKEN, ids=[f"{kind.name}-{number}" for number, (kind, _) in enumerate(BROKEN)])
@in_loop
async def test_a_guest_that_breaks_the_protocol_loses_its_instance_and_nobody_else_notices(
    tmp_path: Path, kind: FromGuest, meta: bytes
) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        spared = caller.start(spec("spared"))
        await until(lambda: len(rig.driver.instances) == 2 and rig.driver.instances[1].invocations())
        neighbour = rig.driver.instances[1]
        clone.say(kind, ident, meta)
        result, _ = await running.result()
        assert result.status == "killed"
        assert result.error is not None
        assert "broke the protocol" in result.error.message
        await until(lambda: clone.ended)
        neighbour.answer(1)
        assert await spared.status() == "ok"


@settings(
    max_examples=150,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    said=st.lists(
        st.tuples(
            st.sampled_from([*FromGuest, 0, 99, 255]),
            st.integers(0, 3) | st.just(2**32 - 1),
            st.binary(max_size=20)
            | st.sampled_from(
                [b"{}", b'{"content_type":"a"}', b'{"invocation":1,"function":"x"}', b'{"invocation":1e99,"function":""}']
            ),
            st.binary(max_size=20),
            st.sampled_from([0, 1, 2, 255]),
        ),
        max_size=12,
    )
)
def test_whatever_a_guest_says_its_caller_gets_one_answer_and_the_node_lives(
    tmp_path: Path, said: list[tuple[int, int, bytes, bytes, int]]
) -> None:
    @in_loop
    async def body() -> None:
        async with running_node(tmp_path) as rig:
            caller = await rig.caller()
            running, clone, _ = await parent(rig, caller)
            for kind, ident, meta, text, flags in said:
                clone.say(kind, ident, meta, text, flags)
            if not clone.ended:
                clone.answer(1)
            await running.result()
            await caller.caught_up()
            assert caller.results == {running.stream: 1}
            rig.driver.handler = lambda clone, frame: clone.answer(frame.id)
            assert (await caller.invoke(spec("other")))[0].status == "ok"
            assert len(rig.node.execution.calls) == 0

    body()


@in_loop
async def test_results_for_nobody_and_second_results_are_ignored(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        clone.answer(ident + 1, b"nobody's")
        clone.answer(ident, b"the answer")
        clone.answer(ident, b"once more")
        clone.say(FromGuest.ERROR, ident, {"type": "E"})
        assert (await running.result())[1] == b"the answer"
        await caller.caught_up()
        assert caller.results == {running.stream: 1}


# -- output


@in_loop
async def test_output_belongs_to_its_invocation(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        running, clone, ident = await parent(rig, caller)
        clone.say(FromGuest.LOG, ident, {"stream": "out"}, b"one\n")
        clone.say(FromGuest.LOG, ident, {"stream": "err"}, b"two\n")
        clone.say(FromGuest.LOG, ident, {"stream": "anything"}, b"three\n")
        clone.on_output("err", b"from C\n")
        clone.answer(ident)
        await running.result()
        clone.on_output("out", b"nobody's\n")
        logs = await caller.connection.ask("logs", tenant="acme", function="parent", invocation=running.invocation_id)
        texts = [(part["stream"], part["text"]) for part in logs[0]["output"]]
        assert "".join(text for stream, text in texts if stream == "out") == "one\nthree\n"
        assert "".join(text for stream, text in texts if stream == "err") == "two\nfrom C\n"
        everything = await caller.connection.ask("logs", tenant="acme", function="parent")
        assert [entry["invocation_id"] for entry in everything] == [running.invocation_id, ""]
        assert await caller.connection.ask("logs", tenant="other", function="parent") == []


@in_loop
async def test_output_of_several_at_once_past_the_runtime_is_nobodys(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        wide = spec("wide", concurrency=2)
        both = [caller.start(wide), caller.start(wide)]
        await until(lambda: rig.driver.clones and len(rig.driver.clones[0].invocations()) == 2)
        rig.driver.clones[0].on_output("out", b"whose?")
        logs = await caller.connection.ask("logs", tenant="acme", function="wide")
        assert [entry["invocation_id"] for entry in logs] == [""]
        for number, running in enumerate(both, start=1):
            rig.driver.clones[0].answer(number)
            await running.result()

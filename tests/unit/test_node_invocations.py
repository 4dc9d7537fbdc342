"""How a node finds an instance for an invocation and what comes back, over its real socket with sandboxes in memory."""

import asyncio
import json
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.sandboxes import DoubleClone, silent

from graph.calls import StartKind
from workers import execution
from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import MORE, Frame
from workers.ports import CodeUnavailable, DriverError, InitFailed
from workers.preparation import FETCHES
from workers.rpc.messages import Drain, HttpRequest, PrepareItem, Rpc
from workers.sealing import Sealer
from workers.versions import Kind

ECHO = spec("echo")


# -- how it found its instance


@in_loop
async def test_the_first_is_cold_the_next_is_warm(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        first, body = await caller.invoke(ECHO, b"hello")
        assert (first.status, first.start, body) == ("ok", StartKind.COLD, b"hello")
        assert first.timings.clone >= 0
        assert (first.timings.init, first.timings.code >= 2.0) == (3.0, True)
        again, body = await caller.invoke(ECHO, b"again")
        assert (again.status, again.start, body) == ("ok", StartKind.WARM, b"again")
        assert again.timings.start_ms - again.timings.queue == 0
        assert len(rig.driver.clones) == 1


@in_loop
async def test_a_standby_is_used_before_anything_is_cloned(tmp_path: Path) -> None:
    async with running_node(tmp_path, standbys=1) as rig:
        caller = await rig.caller()
        caller.define(ECHO)
        await until(lambda: len(rig.driver.alive) == 1, "a standby")
        rig.driver.clone_turn.close()
        result, _ = await caller.invoke(ECHO)
        assert result.start is StartKind.STANDBY


@in_loop
async def test_prepared_ahead_is_prewarmed_once_and_then_warm(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        await caller.subscribe()
        caller.define(ECHO)
        caller.prepare(PrepareItem("d1", ECHO.version))
        await caller.outcome("d1", ["ready"])
        first, _ = await caller.invoke(ECHO)
        assert (first.start, first.decision_id) == (StartKind.PREWARMED, "d1")
        second, _ = await caller.invoke(ECHO)
        assert (second.start, second.decision_id) == (StartKind.WARM, "")


@in_loop
async def test_what_is_being_prepared_is_adopted_not_made_again(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        caller = await rig.caller()
        caller.define(ECHO)
        caller.prepare(PrepareItem("d1", ECHO.version))
        await until(lambda: rig.driver.initialising)
        running = caller.start(ECHO, b"x")
        await caller.caught_up()
        assert not running.done
        assert rig.driver.clones[0].speculations == [True, False], "it yields to others until somebody waits for it"
        rig.driver.init_turn.open()
        result, _ = await running.result()
        assert (result.start, result.decision_id) == (StartKind.ALMOST_WARM, "d1")
        assert result.timings.init == 0, "who adopts queued; the steps are the decision's"
        assert result.timings.queue > 0
        assert len(rig.driver.clones) == 1


@in_loop
async def test_one_waiter_for_each_place_and_then_another_instance(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        caller = await rig.caller()
        pair = spec("pair", concurrency=2)
        running = [caller.start(pair) for _ in range(3)]
        await until(lambda: len(rig.driver.initialising) == 2)
        rig.driver.init_turn.open()
        kinds = [(await one.result())[0].start for one in running]
        assert kinds == [StartKind.COLD, StartKind.ALMOST_WARM, StartKind.COLD]
        assert len(rig.driver.clones) == 2


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "in the same moment"])
@in_loop
async def test_an_adopted_step_goes_ahead_of_what_only_a_plan_wants(tmp_path: Path, queued: bool) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        rig.driver.clone_turn.close()
        caller = await rig.caller()
        block, wanted, other = spec("block"), spec("wanted"), spec("other")
        caller.define(block, wanted, other)
        caller.prepare(PrepareItem("d0", block.version))
        await until(lambda: rig.driver.clone_turn.waiting == 1)
        caller.prepare(PrepareItem("d1", other.version, needed_in_s=1.0), PrepareItem("d2", wanted.version, needed_in_s=9.0))
        if queued:
            await until(lambda: rig.node._gate.waiting == 2)
        running = caller.start(wanted)
        await caller.caught_up()
        await until(lambda: rig.driver.clone_turn.waiting == 2, "it does not wait for a plan's clone that has begun either")
        for _ in range(2):
            rig.driver.clone_turn.pass_one()
        result, _ = await running.result()
        assert result.start is StartKind.ALMOST_WARM
        assert {clone.work.version for clone in rig.driver.clones if clone.work} == {block.version, wanted.version}


@in_loop
async def test_code_and_clone_are_brought_side_by_side(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        rig.code.everything_held = False
        rig.code.fetch_turn.close()
        rig.driver.clone_turn.close()
        caller = await rig.caller()
        running = caller.start(ECHO)
        await until(lambda: rig.driver.clone_turn.waiting == rig.code.fetch_turn.waiting == 1)
        rig.driver.clone_turn.open()
        rig.code.fetch_turn.open()
        assert await running.status() == "ok"
        work = rig.driver.clones[0].work
        assert work is not None
        assert [str(layer) for layer in work.layers] == [f"/code/{ECHO.package.code}"]


@in_loop
async def test_while_code_does_not_come_those_whose_code_is_here_start(tmp_path: Path) -> None:
    async with running_node(tmp_path, cores=1) as rig:
        rig.code.everything_held = False
        rig.code.fetch_turn.close()
        caller = await rig.caller()
        stuck = [caller.start(spec(f"stuck{number}")) for number in range(FETCHES + 3)]
        await until(lambda: rig.code.fetch_turn.waiting == FETCHES)
        rig.code.fetched.append(ECHO.version)
        assert (await caller.invoke(ECHO))[0].status == "ok"
        rig.code.fetch_turn.open()
        assert {await one.status() for one in stuck} == {"ok"}
        assert rig.code.most_fetching <= FETCHES + 1


@in_loop
async def test_the_environment_is_opened_for_the_instance_only(tmp_path: Path) -> None:
    key, other_key = Fernet.generate_key(), Fernet.generate_key()
    sealed = spec("sealed", environment=Sealer(key).seal({"TOKEN": "hush"}))
    async with running_node(tmp_path, key=key) as rig:
        caller = await rig.caller()
        assert (await caller.invoke(sealed))[0].status == "ok"
        work = rig.driver.clones[0].work
        assert work is not None
        assert work.environment == {"TOKEN": "hush"}
        foreign = spec("foreign", environment=Sealer(other_key).seal({"TOKEN": "hush"}))
        result, _ = await caller.invoke(foreign)
        assert result.status != "ok"
        assert result.error is not None
        assert "hush" not in result.error.message


# -- how it ends badly


@in_loop
async def test_a_timeout_is_answered_and_ends_the_instance(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        result, _ = await caller.invoke(ECHO, deadline_s=2.0)
        assert result.status == "timeout"
        assert result.error is not None
        assert "within 2 s" in result.error.message
        assert result.timings.run >= 500
        await until(lambda: rig.driver.alive == [])
        assert len(rig.node.instances.table) == 0
        assert rig.node.instances.memory.used_mb == 0


@in_loop
async def test_an_answer_after_the_timeout_changes_nothing(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        rig.driver.kill_turn.close()
        caller = await rig.caller()
        running = caller.start(ECHO, deadline_s=0.5)
        assert await running.status() == "timeout"
        rig.driver.clones[0].answer(1)
        await caller.caught_up()
        assert caller.results == {running.stream: 1}


@in_loop
async def test_a_deadline_that_passes_while_waiting_spares_the_instance(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        caller = await rig.caller()
        assert (await caller.invoke(ECHO, deadline_s=0.02))[0].status == "timeout"
        rig.driver.init_turn.open()
        await rig.quiet()
        result, _ = await caller.invoke(ECHO)
        assert (result.status, len(rig.driver.clones)) == ("ok", 1)


@pytest.mark.parametrize("concurrency", [1, 3])
@in_loop
async def test_a_dead_instance_fails_its_own_invocations_and_nobody_elses(tmp_path: Path, concurrency: int) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        one, other = spec("one", concurrency=concurrency), spec("other")
        doomed = [caller.start(one) for _ in range(concurrency)]
        await until(lambda: rig.driver.clones and len(rig.driver.clones[0].invocations()) == concurrency)
        spared = caller.start(other, b"still here")
        await until(lambda: len(rig.driver.clones) == 2 and rig.driver.clones[1].invocations())
        rig.driver.clones[0].die("out of memory")
        for running in doomed:
            result, _ = await running.result()
            assert result.status == "killed"
            assert result.error is not None
            assert result.error.message == "out of memory"
        assert not spared.done
        rig.driver.clones[1].answer(1, b"fine")
        assert await spared.status() == "ok"
        rig.driver.handler = lambda clone, frame: clone.answer(frame.id)
        assert (await caller.invoke(one))[0].status == "ok"


@pytest.mark.parametrize(
    ("fault", "status", "type_"),
    [
        (InitFailed({"type": "ImportError", "message": "no module named x", "stack": "Traceback"}), "init-failed", "ImportError"),
        (DriverError("mount: no"), "killed", "DriverError"),
        (TimeoutError(), "init-failed", "InitTimeout"),
        (OSError("disk"), "killed", "OSError"),
    ],
    ids=["init", "driver", "timeout", "os"],
)
@in_loop
async def test_a_failed_start_answers_everybody_who_waits_and_leaves_nothing(
    tmp_path: Path, fault: Exception, status: str, type_: str
) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_error = fault
        rig.driver.init_turn.close()
        caller = await rig.caller()
        wide = spec("wide", concurrency=2)
        waiting = [caller.start(wide), caller.start(wide)]
        await caller.caught_up()
        rig.driver.init_turn.open()
        for running in waiting:
            result, _ = await running.result()
            assert result.status == status
            assert result.error is not None
            assert result.error.type == type_
        await rig.quiet()
        assert (rig.driver.alive, rig.node.instances.memory.used_mb, len(rig.node.instances.table)) == ([], 0, 0)
        rig.driver.init_error = None
        assert (await caller.invoke(wide))[0].status == "ok"


@in_loop
async def test_a_clone_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.clone_error = lambda _tenant, _memory: DriverError("no more processes")
        caller = await rig.caller()
        result, _ = await caller.invoke(ECHO)
        assert (result.status, result.error and result.error.message) == ("killed", "no more processes")
        assert rig.node.instances.memory.used_mb == 0


@in_loop
async def test_code_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.code.everything_held = False
        rig.code.error = CodeUnavailable("the origin answers 404")
        caller = await rig.caller()
        result, _ = await caller.invoke(ECHO)
        assert (result.status, result.error and result.error.message) == ("code-unavailable", "the origin answers 404")
        await rig.quiet()
        assert rig.driver.alive == []


@in_loop
async def test_code_and_clone_failing_both_is_one_error(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.code.everything_held = False
        rig.code.error = CodeUnavailable("the origin answers 404")
        rig.driver.clone_turn.close()
        rig.driver.clone_error = lambda _tenant, _memory: DriverError("no more processes")
        caller = await rig.caller()
        running = caller.start(ECHO)
        await until(lambda: rig.driver.clone_turn.waiting and not rig.code.fetching)
        rig.driver.clone_turn.open()
        assert await running.status() == "killed"


@in_loop
async def test_a_sandbox_that_does_not_die_does_not_keep_the_next_request_waiting(tmp_path: Path) -> None:
    """Its victim's end may fail (a process in the kernel's hands): whoever needed the place hears of it."""
    async with running_node(tmp_path, memory_mb=300) as rig:
        caller = await rig.caller()
        await caller.invoke(ECHO)
        victim = rig.driver.clones[0]

        async def stuck(reason: str) -> None:
            raise DriverError("process 7 did not die")

        kill = victim.kill
        victim.kill = stuck  # type: ignore[method-assign]
        result, _ = await caller.invoke(spec("next", memory_mb=256))
        assert (result.status, result.error and result.error.message) == ("killed", "process 7 did not die")
        victim.kill = kill  # type: ignore[method-assign]
        await victim.kill("the test ends it")


# -- cancelled


@in_loop
async def test_a_cancelled_invocation_ends_its_instance_because_user_code_cannot_be_stopped(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        running = caller.start(ECHO)
        await until(lambda: rig.driver.clones and rig.driver.clones[0].invocations())
        running.cancel()
        assert await running.status() == "cancelled"
        await until(lambda: rig.driver.alive == [])


@in_loop
async def test_cancelled_while_it_waits_the_instance_is_the_next_ones(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.init_turn.close()
        caller = await rig.caller()
        running = caller.start(ECHO)
        await until(lambda: rig.driver.initialising)
        running.cancel()
        assert await running.status() == "cancelled"
        later = caller.start(ECHO)
        await caller.caught_up()
        rig.driver.init_turn.open()
        assert await later.status() == "ok"
        assert len(rig.driver.clones) == 1


@in_loop
async def test_a_lost_gateway_takes_its_invocations_with_it_and_no_others(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        lost, stays = await rig.caller(), await rig.caller()
        lost.start(spec("one"))
        kept = stays.start(spec("two"))
        await until(lambda: len([one for one in rig.driver.clones if one.invocations()]) == 2)
        lost.connection.close()
        await until(lambda: len(rig.driver.alive) == 1)
        rig.driver.alive[0].answer(1)
        assert await kept.status() == "ok"


# -- full


@in_loop
async def test_a_full_node_says_so_at_once_and_has_room_again_after(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=300) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        one, two, three = spec("one"), spec("two"), spec("three")
        first, second = caller.start(one), caller.start(two)
        await until(lambda: len([clone for clone in rig.driver.clones if clone.invocations()]) == 2)
        assert (await caller.invoke(three))[0].status == "full"
        rig.driver.clones[0].answer(1)
        assert await first.status() == "ok"
        rig.driver.handler = lambda clone, frame: clone.answer(frame.id)
        result, _ = await caller.invoke(three)
        assert (result.status, result.start) == ("ok", StartKind.COLD)
        assert rig.driver.clones[0].ended == "gave way to a request"
        assert not rig.driver.clones[1].ended, "a busy one never gives way"
        rig.driver.clones[1].answer(1)
        assert await second.status() == "ok"


@in_loop
async def test_what_gave_way_is_gone_before_its_memory_is_used_again(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=150) as rig:
        caller = await rig.caller()
        await caller.invoke(spec("one"))
        rig.driver.kill_turn.close()
        running = caller.start(spec("two"))
        await until(lambda: rig.driver.kill_turn.waiting == 1)
        await caller.caught_up()
        assert len(rig.driver.clones) == 1
        rig.driver.kill_turn.open()
        assert await running.status() == "ok"


@in_loop
async def test_an_unknown_version_is_refused_before_anything_happens(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        caller = await rig.caller()
        caller.connection.defined.add(ECHO.version)
        assert (await caller.invoke(ECHO))[0].status == "unknown-version"
        caller.define(ECHO)
        assert (await caller.invoke(ECHO))[0].status == "ok"


# -- idle


@in_loop
async def test_idle_ones_are_given_up_and_their_memory_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.node.HEARTBEAT_S", 0.01)
    async with running_node(tmp_path, idle_s=0.03) as rig:
        caller = await rig.caller()
        await caller.invoke(ECHO)
        await until(lambda: rig.driver.alive == [])
        assert rig.driver.clones[0].ended == "idle"
        assert rig.node.instances.memory.used_mb == 0


@in_loop
async def test_an_instance_whose_only_waiter_gave_up_is_idle_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan made it, a request adopted it and was cancelled: no lifetime of a decision ends it any more."""
    monkeypatch.setattr("workers.node.HEARTBEAT_S", 0.01)
    async with running_node(tmp_path, idle_s=0.03) as rig:
        rig.driver.init_turn.close()
        caller = await rig.caller()
        await caller.subscribe()
        caller.define(ECHO)
        caller.prepare(PrepareItem("d1", ECHO.version, expires_s=0.03))
        await until(lambda: rig.driver.initialising)
        running = caller.start(ECHO)
        await caller.outcome("d1", ["late"])
        running.cancel()
        assert await running.status() == "cancelled"
        rig.driver.init_turn.open()
        await until(lambda: rig.driver.alive == [])


@in_loop
async def test_draining_makes_none_ends_idle_ones_at_once_and_busy_ones_when_they_are_done(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        busy, idle = caller.start(ECHO), caller.start(ECHO)
        await until(lambda: len([one for one in rig.driver.clones if one.invocations()]) == 2)
        rig.driver.clones[1].answer(1)
        assert await idle.status() == "ok"
        caller.connection.send(Rpc.DRAIN, 0, Drain(ECHO.version))
        await until(lambda: rig.driver.clones[1].ended == "draining")
        assert (await caller.invoke(ECHO))[0].status == "draining"
        assert not rig.driver.clones[0].ended
        rig.driver.clones[0].answer(1, b"the last one")
        assert (await busy.result())[1] == b"the last one"
        await until(lambda: rig.driver.alive == [])


# -- results


@in_loop
async def test_the_guest_is_told_what_it_needs_and_the_caller_what_it_said(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        web = spec("site", kind=Kind.HTTP)

        def teapot(clone: DoubleClone, frame: Frame) -> None:
            head = {"content_type": "text/html", "http": {"status": 418, "headers": [["X-A", "1"], ["X-A", "2"]]}}
            clone.say(FromGuest.RESULT, frame.id, head, b"<p>")

        rig.driver.handler = teapot
        caller = await rig.caller()
        request = HttpRequest("PATCH", "/a/b", "q=1", [("accept", "text/html")])
        result, body = await caller.invoke(web, b"in", http=request, deadline_s=7.0)
        assert (result.http_status, result.headers, result.content_type) == (418, [("X-A", "1"), ("X-A", "2")], "text/html")
        assert body == b"<p>"
        frame = rig.driver.clones[0].invocations()[0]
        meta = json.loads(frame.meta)
        assert meta["http"] == {"method": "PATCH", "path": "/a/b", "query": "q=1", "headers": [["accept", "text/html"]]}
        assert 6.0 < meta["deadline_s"] <= 7.0
        assert (frame.kind, frame.body) == (ToGuest.INVOKE, b"in")


@in_loop
async def test_an_exception_keeps_its_type_message_and_stack_within_bounds(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        detail = {"type": "T" * 5000, "message": "m" * 50_000, "stack": "s" * 500_000}
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.ERROR, frame.id, detail)
        caller = await rig.caller()
        result, _ = await caller.invoke(ECHO)
        assert result.status == "error"
        assert result.error is not None
        assert (len(result.error.type), len(result.error.message), len(result.error.stack)) == (200, 8192, 65536)
        assert not rig.driver.clones[0].ended, "an exception is the handler's, not the instance's"


@in_loop
async def test_a_result_in_pieces_is_one_result(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:

        def stream(clone: DoubleClone, frame: Frame) -> None:
            clone.say(FromGuest.RESULT, frame.id, {"content_type": "text/csv"}, b"a,", MORE)
            clone.say(FromGuest.RESULT, frame.id, b"", b"", MORE)
            clone.say(FromGuest.RESULT, frame.id, b"", b"b,", MORE)
            clone.say(FromGuest.RESULT, frame.id, b"", b"c")

        rig.driver.handler = stream
        caller = await rig.caller()
        for _ in range(2):
            result, body = await caller.invoke(ECHO)
            assert (result.status, result.content_type, body) == ("ok", "text/csv", b"a,b,c")


@pytest.mark.parametrize("pieces", [1, 4])
@in_loop
async def test_a_result_over_the_limit_is_an_error_and_ends_the_instance(
    tmp_path: Path, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MAX_RESULT", 1000)
    async with running_node(tmp_path) as rig:

        def large(clone: DoubleClone, frame: Frame) -> None:
            for number in range(pieces):
                clone.say(FromGuest.RESULT, frame.id, {}, bytes(1001 // pieces + 1), MORE if number < pieces - 1 else 0)

        rig.driver.handler = large
        caller = await rig.caller()
        result, body = await caller.invoke(ECHO)
        assert (result.status, result.error and result.error.type, body) == ("error", "ResultTooLarge", b"")
        await until(lambda: rig.driver.alive == [])
        rig.driver.handler = lambda clone, frame: clone.say(FromGuest.RESULT, frame.id, {}, bytes(1000))
        assert len((await caller.invoke(ECHO))[1]) == 1000


@in_loop
async def test_a_stream_without_end_is_cut_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "MAX_RESULT", 1000)
    async with running_node(tmp_path) as rig:

        def endless(clone: DoubleClone, frame: Frame) -> None:
            for _ in range(11):
                clone.say(FromGuest.RESULT, frame.id, {}, bytes(100), MORE)

        rig.driver.handler = endless
        caller = await rig.caller()
        assert (await caller.invoke(ECHO))[0].status == "error"
        await until(lambda: rig.driver.alive == [])


@in_loop
async def test_several_at_once_share_an_instance_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        wide = spec("wide", concurrency=4)
        running = [caller.start(wide, b"%d" % number) for number in range(4)]
        await until(lambda: rig.driver.clones and len(rig.driver.clones[0].invocations()) == 4)
        clone = rig.driver.clones[0]
        for frame in reversed(clone.invocations()):
            clone.answer(frame.id, b"answer to " + frame.body)
        bodies = [(await one.result())[1] for one in running]
        assert bodies == [b"answer to %d" % number for number in range(4)]
        assert len(rig.driver.clones) == 1


# -- the end of the node


@in_loop
async def test_stopping_answers_what_runs_and_ends_every_sandbox(tmp_path: Path) -> None:
    async with running_node(tmp_path, standbys=1) as rig:
        rig.driver.handler = silent
        caller = await rig.caller()
        running = caller.start(ECHO)
        await until(lambda: any(clone.invocations() for clone in rig.driver.clones))
        await until(lambda: len(rig.driver.alive) == 2, "an instance and a standby")
        stopping = asyncio.ensure_future(rig.node.instances.stop())
        result, _ = await running.result()
        assert result.status == "killed"
        assert (await caller.invoke(spec("late")))[0].status == "full", "nothing new is begun"
        await stopping

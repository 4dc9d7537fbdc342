"""What workers.ports asks of a driver, held against every driver with real sandboxes, as whoever runs the tests."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from doubles.loop import until
from doubles.over_drivers import over
from doubles.process_bench import ECHO, Bench, HandlerError, Running

from workers.drivers.frames import FromGuest, ToGuest
from workers.ports import DriverError, InitFailed, Specialisation
from workers.versions import Kind

pytestmark = pytest.mark.system


@over("process", "microvm")
async def test_a_clone_becomes_the_version_and_answers(made: Bench) -> None:
    assert made.report.isolated
    one = await made.run(ECHO)
    assert await one.value({"a": [1, "ü", None]}) == {"a": [1, "ü", None]}
    assert await one.value(b"\x00\xff") == b"\x00\xff"
    assert one.report.attach_ms > 0
    assert one.report.init_ms > 0


@over("process", "microvm")
async def test_init_time_is_the_modules_own(made: Bench) -> None:
    slow, quick = await made.run("import time\ntime.sleep(0.5)\n" + ECHO), await made.run(ECHO)
    assert slow.report.init_ms >= 500
    assert quick.report.init_ms < slow.report.init_ms


@over("process", "microvm")
async def test_a_clone_without_code_waits_and_is_worth_nothing_to_read(made: Bench) -> None:
    clone = await made.driver.clone("acme", 128)
    frames: list[object] = []
    clone.on_frame = frames.append
    clone.send(ToGuest.PING, 5)  # a standby knows SPECIALISE only: this ends it
    reasons: list[str] = []
    clone.on_exit = reasons.append
    await until(lambda: reasons, "the clone has ended")
    assert not frames


@pytest.mark.parametrize(
    ("source", "handler", "kind", "error"),
    [
        ("raise KeyError('config')", "handler:handler", Kind.EVENT, "KeyError"),
        ("def handler(:", "handler:handler", Kind.EVENT, "SyntaxError"),
        ("import not_there", "handler:handler", Kind.EVENT, "ModuleNotFoundError"),
        ("x = 1", "handler:handler", Kind.EVENT, "LookupError"),
        ("handler = 1", "handler:handler", Kind.EVENT, "TypeError"),
        (ECHO, "other:handler", Kind.EVENT, "ModuleNotFoundError"),
        ("raise SystemExit(3)", "handler:handler", Kind.EVENT, "SystemExit"),
        (ECHO, "handler:handler", Kind.WEB, "ValueError"),
    ],
)
@over("process", "microvm")
async def test_init_failures_say_what_happened(made: Bench, source: str, handler: str, kind: Kind, error: str) -> None:
    with pytest.raises(InitFailed) as caught:
        await made.run(source, handler=handler, kind=kind)
    assert caught.value.detail["type"] == error
    assert "runtime.py" not in caught.value.detail["stack"]
    if error == "KeyError":
        assert "handler.py" in caught.value.detail["stack"]
    assert await (await made.run(ECHO)).value(1) == 1


@over("process", "microvm")
async def test_a_layer_that_is_not_there_is_a_driver_error(made: Bench) -> None:
    clone = await made.driver.clone("acme", 128)
    missing = made.folder / "nowhere"
    with pytest.raises(DriverError, match="nowhere"):
        await clone.specialise(Specialisation("a/b:1", "h:h", Kind.EVENT, 1, 128, (missing,), {}), 5)
    await clone.kill("no code")


@over("process", "microvm")
async def test_init_that_takes_too_long_times_out_and_can_be_killed(made: Bench) -> None:
    clone = await made.driver.clone("acme", 128)
    with pytest.raises(TimeoutError):
        await clone.specialise(made.work("while True: pass\n"), 0.3)
    reasons: list[str] = []
    clone.on_exit = reasons.append
    await clone.kill("too slow")
    assert reasons == ["too slow"]


@over("process", "microvm")
async def test_every_frame_but_ready_comes_and_output_past_the_runtime_too(made: Bench) -> None:
    source = """
import os, subprocess, sys
print("while importing")
def handler(event, context):
    print("one", 2)
    print("three", file=sys.stderr)
    os.write(1, b"raw out")
    subprocess.run([sys.executable, "-I", "-S", "-c", "import sys; sys.stderr.write('from a child')"], check=True)
    return "done"
"""
    one = await made.run(source)
    assert await one.value() == "done"
    assert one.logs == [(0, "out", "while importing\n"), (1, "out", "one 2\n"), (1, "err", "three\n")]
    await until(lambda: one.output == {"out": b"raw out", "err": b"from a child"}, "the pipes were read")
    one.clone.send(ToGuest.PING, 9)
    await until(lambda: one.others, "the guest answers a ping")
    assert [(frame.kind, frame.id) for frame in one.others] == [(FromGuest.PONG, 9)]


@over("process", "microvm")
async def test_an_exception_is_an_error_with_the_users_stack(made: Bench) -> None:
    source = "def inner():\n    raise ValueError('no such sku')\ndef handler(event, context):\n    inner()\n"
    one = await made.run(source)
    with pytest.raises(HandlerError) as caught:
        await one.value()
    detail = caught.value.detail
    assert (detail["type"], detail["message"]) == ("ValueError", "no such sku")
    assert 'File "/var/task/handler.py", line 2, in inner' in detail["stack"]
    assert "runtime.py" not in detail["stack"]
    with pytest.raises(HandlerError):
        await one.value()  # it lives on


@over("process", "microvm")
async def test_environment_and_dependencies_reach_the_function(made: Bench) -> None:
    source = """
import os, graph, library
key = os.environ["KEY"]
def handler(event, context):
    return [key, graph.me, library.me]
"""
    one = await made.run(
        {"handler.py": source, "graph.py": "me = 'the user'"},
        environment={"KEY": "wert=ü"},
        dependencies={"library/__init__.py": "me = 'a wheel'"},
    )
    assert await one.value() == ["wert=ü", "the user", "a wheel"]


@over("process", "microvm")
async def test_killed_sandboxes_say_so_once_and_take_nothing_more(made: Bench) -> None:
    one = await made.run("import time\ndef handler(event, context):\n    time.sleep(60)\n")
    one.begin()
    await asyncio.gather(one.clone.kill("first"), one.clone.kill("second"))
    await one.clone.kill("third")
    assert one.exits == ["first"]
    one.clone.send(ToGuest.INVOKE, 7, b"{}", b"x" * 100_000)
    assert one.clone.usage() is None
    with pytest.raises(DriverError, match="first"):
        await one.clone.specialise(made.work(), 1)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\ndef handler(event, context):\n    os._exit(3)\n", "exit 3"),
        ("import ctypes\ndef handler(event, context):\n    ctypes.string_at(1)\n", "signal 11"),
        ("import os\ndef handler(event, context):\n    os.abort()\n", "signal"),
    ],
)
@over("process", "microvm")
async def test_a_sandbox_that_ends_by_itself_is_reported_with_its_status(made: Bench, source: str, reason: str) -> None:
    one, other = await made.run(source), await made.run(ECHO)
    with pytest.raises(EOFError):
        await one.value()
    assert len(one.exits) == 1
    assert reason in one.exits[0]
    assert await other.value(2) == 2


@over("process", "microvm")
async def test_a_callback_set_late_still_hears_of_the_end(made: Bench) -> None:
    clone = await made.driver.clone("acme", 128)
    await clone.kill("early")
    reasons: list[str] = []
    clone.on_exit = reasons.append
    await until(lambda: reasons, "the callback was called")
    assert reasons == ["early"]


@over("process", "microvm")
async def test_usage_counts_memory_and_processes(made: Bench) -> None:
    source = """
import os, time
kept = []
def handler(event, context):
    kept.append(os.urandom(30 << 20))
    if os.fork() == 0:
        time.sleep(60)
"""
    one = await made.run(source, memory_mb=256)
    await until(one.clone.usage, "it was counted")  # a microVM's guest is asked, and its last answer told
    before = one.clone.usage()
    await one.value()

    def grown() -> bool:
        after = one.clone.usage()
        return after.processes == before.processes + 1 and after.memory_bytes > before.memory_bytes + (29 << 20)

    await until(grown, "a process and its memory are counted")


@over("process", "microvm")
async def test_speculative_work_goes_on_and_can_be_adopted(made: Bench) -> None:
    clone = await made.driver.clone("acme", 128)
    clone.speculative(True)
    one = Running(clone, await clone.specialise(made.work(), 60))
    clone.speculative(False)
    clone.speculative(False)
    assert await one.value("x") == "x"


@over("process")
async def test_a_retired_tenants_template_goes_after_its_clones(made: Bench) -> None:
    one = await made.run(ECHO)
    template = os.stat(f"/proc/{parent_of(one.clone.pid)}")
    await made.driver.retire("acme")
    assert await one.value(1) == 1
    path = f"/proc/{parent_of(one.clone.pid)}"
    await one.clone.kill("over")
    await until(lambda: not os.path.exists(path) or os.stat(path).st_ctime != template.st_ctime, "the template has gone")
    assert await (await made.run(ECHO)).value(2) == 2  # the tenant may come back


@over("process")
async def test_a_template_that_dies_takes_its_clones_and_nobody_else(made: Bench) -> None:
    mine, other = await made.run(ECHO, tenant="mine"), await made.run(ECHO, tenant="other")
    os.kill(parent_of(mine.clone.pid), 9)
    await until(lambda: mine.exits, "its clone is reported gone")
    assert await other.value(1) == 1
    assert await (await made.run(ECHO, tenant="mine")).value(2) == 2


@over("process", "microvm")
async def test_concurrency_runs_invocations_side_by_side(made: Bench) -> None:
    source = """
import threading
together = threading.Barrier(3, timeout=60)
def handler(event, context):
    print("I am", event)
    together.wait()
    return event
"""
    one = await made.run(source, concurrency=3)
    idents = [one.begin(number) for number in range(3)]
    results = [await one.end(ident) for ident in idents]
    assert [json.loads(bodies[0]) for _, bodies in results] == [0, 1, 2]
    assert sorted(one.logs) == [(ident, "out", f"I am {number}\n") for number, ident in enumerate(idents)]


@over("process", "microvm")
async def test_a_call_of_the_guest_goes_out_on_its_channel_and_its_answer_comes_back(made: Bench) -> None:
    source = """
def handler(event, context):
    both = context.invoke_all([("price", event), ("stock", event)])
    return [both, context.function_name, context.invocation_id]
"""
    one = await made.run(source)
    ident = one.begin({"sku": 7})
    asked = [await asyncio.wait_for(one.calls.get(), 60) for _ in range(2)]
    assert [(meta["function"], meta["invocation"], json.loads(body)) for _, meta, body in asked] == [
        ("price", ident, {"sku": 7}),
        ("stock", ident, {"sku": 7}),
    ]
    for call, meta, _ in reversed(asked):
        one.answer(call, f"the {meta['function']}")
    _, bodies = await one.end(ident)
    assert json.loads(bodies[0]) == [["the price", "the stock"], "shop", f"{ident:016x}"]


@over("process", "microvm")
async def test_a_streamed_answer_comes_part_by_part(made: Bench) -> None:
    source = """
def handler(request, context):
    def parts():
        for number in range(3):
            yield f"{request.path} {number}\\n"
            context.invoke("next")
    return {"status": 201, "headers": {"x-from": "inside"}, "body": parts()}
"""
    one = await made.run(source, kind=Kind.HTTP)
    ident = one.begin(b"", http={"method": "GET", "path": "/tale", "query": "", "headers": []})
    seen = []
    for number in range(3):
        call, _, _ = await asyncio.wait_for(one.calls.get(), 60)  # it waits here, its part is out
        seen.append(number)
        one.answer(call)
    head, bodies = await one.end(ident)
    assert head["http"] == {"status": 201, "headers": [["x-from", "inside"]]}
    assert b"".join(bodies) == b"/tale 0\n/tale 1\n/tale 2\n"
    assert len(bodies) >= len(seen)


@over("process", "microvm")
async def test_big_payloads_pass_both_ways_while_others_are_served(made: Bench) -> None:
    big, small = await made.run(ECHO, memory_mb=512), await made.run(ECHO)
    payload = os.urandom(6 << 20)
    ident = big.begin(payload)
    began = time.monotonic()
    assert await small.value(1) == 1
    assert time.monotonic() - began < 10
    _, bodies = await big.end(ident)
    assert b"".join(bodies) == payload


@over("process", "microvm")
async def test_many_clones_at_once(made: Bench) -> None:
    clones = await asyncio.gather(*(made.driver.clone(f"t{number % 3}", 128) for number in range(12)))
    assert len({clone.clone_id for clone in clones}) == 12
    work = made.work()
    await asyncio.gather(*(clone.specialise(work, 60) for clone in clones))
    await asyncio.gather(*(clone.kill("done") for clone in clones[:6]))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

"""What workers.ports asks of function templates, held against every driver with real sandboxes, as any user."""

import asyncio
import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from doubles.loop import until
from doubles.over_drivers import over
from doubles.process_bench import ECHO, Bench, Running, Templated

from workers.ports import DriverError, InitFailed, Specialisation, TemplateRefused
from workers.versions import Kind

pytestmark = pytest.mark.system

COUNTED = """
import os
imported = []
imported.append(1)
def handler(event, context):
    imported.append(event)
    return [len(imported), os.environ.get("KEY"), context.function_name, os.listdir("/tmp")]
"""


@over("process", "microvm")
async def test_the_module_is_imported_once_and_each_instance_has_its_own_copy(made: Bench) -> None:
    one = await made.template("import time\ntime.sleep(2)\n" + COUNTED, environment={"KEY": "wert=ü"})
    first, second = await one.run(), await one.run()
    assert one.template.init_ms >= 2000
    assert first.report.init_ms < 2000
    assert await first.value(1) == [2, "wert=ü", "shop", []]
    assert await first.value(2) == [3, "wert=ü", "shop", []]
    assert await second.value(1) == [2, "wert=ü", "shop", []]
    assert 0 < one.template.memory_mb <= 128 + made.driver.traits.template_beside_mb


@over("process", "microvm")
async def test_dependencies_concurrency_and_output_are_as_in_any_instance(made: Bench) -> None:
    source = """
import library, os, subprocess, sys, threading
print("imported")
together = threading.Barrier(2, timeout=10)
def handler(event, context):
    together.wait()
    print("I am", event)
    subprocess.run([sys.executable, "-I", "-S", "-c", "print('child')"], check=True)
    return library.me
"""
    one = await made.run_templated(source, dependencies={"library.py": "me = 'a wheel'"}, concurrency=2)
    idents = [one.begin(number) for number in range(2)]
    assert [(await one.end(ident))[1] for ident in idents] == [[b'"a wheel"'], [b'"a wheel"']]
    assert sorted(one.logs) == [(ident, "out", f"I am {number}\n") for number, ident in enumerate(idents)]
    await until(lambda: one.output["out"].count(b"child") == 2, "the pipe was read")


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
"""
REFUSED = [
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n", "thread", "threads"),
    ("import socket\nkept = socket.socket()\n", "socket", "a socket"),
    ("import os\nif os.fork() == 0:\n    import time\n    time.sleep(60)\n", "process", "a process"),
    (DAEMON, "process", "a process"),
    ("import mmap\nkept = mmap.mmap(-1, 4096)\n", "shared-memory", "shares memory"),
    ("open('/tmp/model', 'w').close()\n", "files", "/tmp (model)"),
    ("kept = open('/tmp/log', 'w')\nimport os\nos.remove('/tmp/log')\n", "descriptor", "for writing"),
    ("import os\nkept = os.pipe()\n", "descriptor", "pipe"),
    ("import asyncio\nkept = asyncio.new_event_loop()\n", "descriptor", "eventpoll"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "kind", "words"), REFUSED, ids=[f"{number}-{one[1]}" for number, one in enumerate(REFUSED)])
@over("process")
async def test_what_cannot_be_cloned_is_refused_with_the_reason(made: Bench, source: str, kind: str, words: str) -> None:
    with pytest.raises(TemplateRefused, match="after the import") as caught:
        await made.template(source + ECHO)
    assert caught.value.kind == kind
    assert words in str(caught.value)
    assert await (await made.run(source + ECHO)).value(1) == 1  # as before


@over("microvm")
async def test_a_machines_template_keeps_what_a_process_cannot_clone(made: Bench) -> None:
    for source, _, _ in REFUSED:
        one = await made.template(source + ECHO)
        first, second = await one.run(), await one.run()
        assert [await first.value(1), await second.value(2)] == [1, 2], source
        await made.end()


@pytest.mark.parametrize(
    "asks",
    [
        "os.environ.get('DB', 'none')",
        "os.environ['DB'] if 'DB' in os.environ else 1",
        "os.getenv('DB')",
        "dict(os.environ)",
        "os.environ.copy()",
        "os.environb.get(b'DB')",
    ],
)
@over("process", "microvm")
async def test_a_module_that_asks_for_withheld_values_is_refused_by_name(made: Bench, asks: str) -> None:
    source = f"import os\nvalue = {asks}\n" + ECHO
    with pytest.raises(TemplateRefused, match=r"\(DB\).*on_restore") as caught:
        await made.template(source, environment={"DB": "secret"})
    assert caught.value.kind == "environment"
    assert "secret" not in str(caught.value)
    await made.template(source)  # where none is set, it would find none in an instance either


@over("process", "microvm")
async def test_a_module_that_fails_for_want_of_a_withheld_value_is_refused_by_its_name(made: Bench) -> None:
    source = "import os\nvalue = os.environ['DB']\n" + ECHO
    with pytest.raises(TemplateRefused, match=r"\(DB\).*on_restore") as caught:
        await made.template(source, environment={"DB": "secret"})
    assert caught.value.kind == "environment"
    with pytest.raises(InitFailed, match="KeyError"):  # no instance would have it either
        await made.template(source)


@over("process")
async def test_nothing_of_the_environment_is_in_the_original(made: Bench) -> None:
    source = "import os\nseen = os.environ.get('LANG')\ndef handler(event, context):\n    return [seen, os.environ['TOKEN']]\n"
    one = await made.template(source, environment={"TOKEN": "s3cret-token-value"})
    assert await (await one.run()).value() == ["C.UTF-8", "s3cret-token-value"]
    assert await (await one.run(environment={"TOKEN": "other"})).value() == ["C.UTF-8", "other"]
    assert "s3cret" not in Path(f"/proc/{one.template.original.pid}/environ").read_text()


@pytest.mark.parametrize("templated", [True, False])
@over("process", "microvm")
async def test_restore_hooks_run_in_each_instance_before_its_first_invocation(made: Bench, templated: bool) -> None:
    source = """
import os, foreglow
at = []
@foreglow.on_restore
def first():
    at.append(os.environ["KEY"])
foreglow.on_restore(lambda: at.append("second"))
def handler(event, context):
    return at
"""
    run = made.run_templated if templated else made.run
    one = await run(source, environment={"KEY": "value"})
    assert await one.value() == ["value", "second"]


@over("process", "microvm")
async def test_a_hook_that_raises_is_that_instances_failing_init(made: Bench) -> None:
    source = (
        """
import os, foreglow
@foreglow.on_restore
def connect():
    if os.environ["KEY"] == "bad":
        raise ConnectionError("no such database")
"""
        + ECHO
    )
    one = await made.template(source, environment={"KEY": "bad"})
    with pytest.raises(InitFailed, match="ConnectionError: no such database") as caught:
        await one.run()
    assert "handler.py" in caught.value.detail["stack"]
    assert await (await one.run(environment={"KEY": "good"})).value(1) == 1


@over("process", "microvm")
async def test_no_two_of_many_clones_draw_the_same(made: Bench) -> None:
    source = """
import os, random, secrets, ssl, tempfile, uuid
ssl.RAND_bytes(4), uuid.uuid1(), random.random(), tempfile.mktemp()  # state that a clone would share
mine = random.Random()
fixed = random.Random(42)
def handler(event, context):
    return {"random": random.random(), "mine": mine.random(), "ssl": ssl.RAND_bytes(16).hex(), "secrets": secrets.token_hex(8),
            "uuid1": str(uuid.uuid1()), "uuid4": str(uuid.uuid4()), "tempfile": tempfile.mktemp()}, fixed.random()
"""
    one = await made.template(source)
    drawn = []
    times = 100 if made.report.driver == "process" or os.environ.get("FULL") == "1" else 20
    for _ in range(times):
        instance = await one.run()
        drawn.append(await instance.value())
        await instance.clone.kill("drawn")
    for name in drawn[0][0]:
        assert len({draw[name] for draw, _ in drawn}) == times, name
    assert len({fixed for _, fixed in drawn}) == 1  # who gives a seed wants the same numbers


DRAWS = """
import os, random, ssl, threading, time
mine, drawn = random.Random(), []
def draw():
    while True:
        began, hexes = time.monotonic(), (os.urandom(8).hex(), ssl.RAND_bytes(8).hex())
        drawn.append((began, random.random(), mine.random(), *hexes, time.time()))
        {pause}
threading.Thread(target=draw, daemon=True).start()
if os.fork() == 0:
    with open("/tmp/drawn", "w", buffering=1) as file:
        while True:
            print(time.monotonic(), os.urandom(8).hex(), file=file)
            time.sleep(0.01)
def handler(event, context):
    time.sleep(2)
    with open("/tmp/drawn") as file:
        return list(drawn), [line.split() for line in file if line.endswith("\\n")]
"""


@pytest.mark.parametrize("pause", ["time.sleep(0.002)", "sum(range(100_000))"], ids=["sleeps", "computes"])
@over("microvm")
async def test_what_an_import_started_goes_on_when_the_clone_is_somebody_of_its_own(made: Bench, pause: str) -> None:
    one = await made.template(DRAWS.format(pause=pause))
    seen: list[tuple[list[list[Any]], list[list[Any]]]] = []
    for _ in range(2):
        clone = await one.template.clone(one.work.memory_mb)
        await asyncio.sleep(1.0)  # it runs, and is nobody yet
        began = time.time()
        instance = Running(clone, await clone.specialise(msgspec.structs.replace(one.work, withheld=None), 30))
        threads, processes = await instance.value()
        after, later = since_the_gap(threads), since_the_gap(processes)
        assert after, "the thread goes on"
        assert later, "the process goes on"
        assert all(began - 0.05 < at[-1] < time.time() + 0.05 for at in after), "with the right time"
        seen.append((after, later))
        await clone.kill("seen")
    for first, second, columns in ((seen[0][0], seen[1][0], range(1, 5)), (seen[0][1], seen[1][1], range(1, 2))):
        for column in columns:
            assert not {draw[column] for draw in first} & {draw[column] for draw in second}, column


def since_the_gap(draws: list[list[Any]]) -> list[list[Any]]:
    """What was drawn after it had stood still: the first column is monotonic time."""
    times = [float(draw[0]) for draw in draws]
    gap = max(number for number in range(1, len(times)) if times[number] - times[number - 1] > 0.8)
    return draws[gap:]


@over("process")
async def test_numpy_differs_in_every_clone(made: Bench) -> None:
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parent.parent
    source = "import numpy\nnumpy.random.rand()\ndef handler(event, context):\n    return float(numpy.random.rand())\n"
    work = Specialisation(
        "acme/shop:1", "handler:handler", Kind.EVENT, 1, 512, (made.layer({"handler.py": source}), site), {}, ()
    )
    one = Templated(await made.driver.template("acme", work, 15), work)
    assert len({await (await one.run(withheld=None)).value() for _ in range(8)}) == 8


@over("process")
async def test_fork_hooks_of_user_modules_run(made: Bench) -> None:
    source = """
import os
told = []
os.register_at_fork(after_in_child=lambda: told.append(os.getpid()))
def handler(event, context):
    return told[-1] == os.getpid()
"""
    assert await (await made.run_templated(source)).value() is True


@over("process", "microvm")
async def test_a_file_read_at_import_has_a_position_of_its_own_in_each_instance(made: Bench) -> None:
    source = "kept = open('/var/task/words')\nkept.readline()\ndef handler(event, context):\n    return kept.readline()\n"
    one = await made.template({"handler.py": source, "words": "".join(f"{number:09000}\n" for number in range(9))})
    first, second = await one.run(), await one.run()
    assert [await first.value(), await second.value(), await first.value()] == [f"{n:09000}\n" for n in (1, 1, 2)]


@over("process", "microvm")
async def test_init_that_fails_or_takes_too_long_leaves_nothing(made: Bench) -> None:
    with pytest.raises(InitFailed, match="KeyError"):
        await made.template("raise KeyError('config')\n")
    work = made.work("while True: pass\n")
    with pytest.raises(TimeoutError):
        await made.driver.template("acme", work, 0.5)
    with pytest.raises(DriverError):
        await made.template("import os\nos._exit(3)\n")


@over("process")
async def test_an_original_that_is_killed_says_so_and_its_instances_live_on(made: Bench) -> None:
    one = await made.template(ECHO)
    gone: list[str] = []
    one.template.on_gone = gone.append
    instance = await one.run()
    os.kill(one.template.original.pid, 9)
    await until(lambda: gone, "the end was told")
    assert await instance.value(1) == 1
    with pytest.raises(DriverError):
        await one.run()
    assert await (await (await made.template(ECHO)).run()).value(2) == 2
    await instance.clone.kill("over")
    assert instance.exits == ["over"]


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


@over("process")
async def test_an_original_that_is_killed_with_requests_unread_takes_no_instance_with_it(made: Bench) -> None:
    one = await made.template(ECHO)
    instance = await one.run()
    os.kill(one.template.original.pid, signal.SIGSTOP)
    before = children(one.template.keeper_pid)
    asked = [asyncio.ensure_future(one.run()) for _ in range(3)]
    await until(lambda: len(children(one.template.keeper_pid) - before) == 3, "each has its shell, and two at least were told it")
    os.kill(one.template.original.pid, signal.SIGKILL)
    assert all(isinstance(answer, DriverError) for answer in await asyncio.gather(*asked, return_exceptions=True))
    assert await instance.value(1) == 1


@over("process")
async def test_a_keeper_that_is_killed_takes_its_own_only(made: Bench) -> None:
    one, other = await made.template(ECHO), await made.template(ECHO)
    mine, theirs, plain = await one.run(), await other.run(), await made.run(ECHO)
    os.kill(one.template.keeper_pid, 9)
    await until(lambda: mine.exits, "its instance is reported gone")
    assert await theirs.value(1) == 1
    assert await plain.value(2) == 2


@over("process")
async def test_an_ended_template_leaves_its_instances_and_then_nothing(made: Bench) -> None:
    one = await made.template(ECHO)
    instance, keeper = await one.run(), one.template.keeper_pid
    await one.template.end("not wanted")
    await one.template.end("not wanted")
    assert await instance.value(1) == 1
    await instance.clone.kill("over")
    await until(lambda: not os.path.exists(f"/proc/{keeper}"), "the keeper has gone")


@pytest.mark.parametrize(("does", "reason"), [("os._exit(3)", "exit 3"), ("os.abort()", "signal 6")])
@over("process", "microvm")
async def test_an_instance_that_ends_by_itself_is_reported_with_its_status(made: Bench, does: str, reason: str) -> None:
    one = await made.template(f"import os\ndef handler(event, context):\n    if event: {does}\n    return event\n")
    instance, other = await one.run(), await one.run()
    with pytest.raises(EOFError, match=reason):
        await instance.value(1)
    assert await other.value(0) == 0


@over("process", "microvm")
async def test_its_children_go_with_an_instance_that_ends(made: Bench) -> None:
    source = """
import os, time
def handler(event, context):
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
"""
    with pytest.raises(EOFError):
        await (await made.run_templated(source)).value()


@over("process", "microvm")
async def test_many_at_once(made: Bench) -> None:
    one = await made.template(COUNTED)
    instances = await asyncio.gather(*(one.run() for _ in range(12)))
    assert [answer[0] for answer in await asyncio.gather(*(instance.value() for instance in instances))] == [2] * 12


@over("process")
async def test_memory_is_held_in_each_clone(made: Bench) -> None:
    source = "kept = bytearray(20 << 20)\ndef handler(event, context):\n    more = b'x' * (event << 20)\n    return len(more)\n"
    one = await made.template(source)
    greedy, other = await one.run(), await one.run()
    assert await other.value(30) == 30 << 20
    with pytest.raises((EOFError, Exception), match=r"out of memory|MemoryError"):
        await greedy.value(3000)
    assert await other.value(1) == 1 << 20

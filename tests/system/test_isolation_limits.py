"""A function that takes more than its shape loses its own sandbox and nothing else."""

import asyncio
from pathlib import Path

import pytest
from doubles.loop import in_loop
from doubles.process_bench import ECHO, HandlerError, bench

from workers.drivers.cells import PROCESSES
from workers.drivers.process.isolation import OPEN_FILES

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("made_either_way")]


@pytest.mark.parametrize("how", ["bytearray(1 << 24)", "numbers(event)"])
def test_memory_over_the_shape_ends_the_sandbox_with_that_reason(tmp_path: Path, how: str) -> None:
    source = f"""
kept = []
def numbers(event):
    return list(range(event, event + 500_000))
def handler(event, context):
    if event is None:
        return len(kept)
    import time
    for _ in range(100):
        kept.append({how})
        time.sleep(0.01)
    time.sleep(5)
    return "still here"
"""

    @in_loop
    async def check() -> None:
        async with bench(tmp_path) as made:
            greedy, other = await made.run(source), await made.run(source)
            with pytest.raises(EOFError, match="out of memory: the sandbox needed more than 128 MB"):
                await greedy.value(1)
            assert await other.value() == 0
            assert await (await made.run(source)).value() == 0  # what the dead one held is free again

    check()


@in_loop
async def test_memory_within_the_shape_is_left_alone(tmp_path: Path) -> None:
    source = """
import time
def handler(event, context):
    kept = bytearray(80 << 20)
    time.sleep(1.2)
    return len(kept)
"""
    async with bench(tmp_path) as made:
        assert await (await made.run(source)).value() == 80 << 20


@in_loop
async def test_memory_in_several_processes_counts_together(tmp_path: Path) -> None:
    source = """
import os, time
def handler(event, context):
    for _ in range(6):
        if os.fork() == 0:
            kept = bytearray(os.urandom(1 << 20) * 30)
            time.sleep(30)
            os._exit(0)
    time.sleep(5)
    alive = sum(1 for pid in os.listdir("/proc") if pid.isdigit() and "Z" not in open(f"/proc/{pid}/stat").read().split()[2])
    return alive
"""
    async with bench(tmp_path) as made:
        one = await made.run(source)
        try:
            alive = await one.value()
        except EOFError:
            assert "out of memory" in one.exits[0]  # the whole sandbox went
        else:
            assert alive < 7  # the kernel ended some of them


@in_loop
async def test_a_fork_bomb_fills_its_own_sandbox_only(tmp_path: Path) -> None:
    source = """
import os, time
def handler(event, context):
    made = 0
    if event == "bomb":
        try:
            while made < 5000:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                made += 1
        except OSError as error:
            return [made, error.errno]
    elif os.fork() == 0:
        os._exit(0)
    else:
        os.wait()
    return [made, 0]
"""
    async with bench(tmp_path) as made:
        bomb, other = await made.run(source, memory_mb=512), await made.run(source)
        count, errno = await bomb.value("bomb")
        assert 0 < count < PROCESSES
        assert errno == 11
        assert await other.value("once") == [0, 0]
        assert await (await made.run(ECHO)).value(1) == 1
        await bomb.clone.kill("enough")


@in_loop
async def test_threads_count_as_processes(tmp_path: Path) -> None:
    source = """
import threading, time
def handler(event, context):
    made = 0
    try:
        while made < 5000:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            made += 1
    except RuntimeError:
        return made
"""
    async with bench(tmp_path) as made:
        assert 0 < await (await made.run(source, memory_mb=512)).value() < PROCESSES


@in_loop
async def test_open_files_are_bounded(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    opened = []
    try:
        while len(opened) < 100_000:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        count = len(opened)
        for descriptor in opened:
            os.close(descriptor)
        return [count, error.errno]
"""
    async with bench(tmp_path) as made:
        count, errno = await (await made.run(source)).value()
        assert count < OPEN_FILES
        assert errno == 24


@in_loop
async def test_a_busy_loop_is_ended_by_kill_and_starves_nobody(tmp_path: Path) -> None:
    source = """
import threading
def spin():
    while True:
        pass
def handler(event, context):
    if event == "spin":
        for _ in range(8):
            threading.Thread(target=spin, daemon=True).start()
        spin()
    return event
"""
    async with bench(tmp_path) as made:
        busy, other = await made.run(source), await made.run(source)
        busy.begin("spin")
        await asyncio.sleep(0.2)
        assert await other.value(1) == 1
        await busy.clone.kill("its time is over")
        assert busy.exits == ["its time is over"]


@in_loop
async def test_nice_and_realtime_cannot_be_raised(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    refused = []
    for attempt in (lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))):
        try:
            attempt()
        except OSError:
            refused.append(True)
    return refused
"""
    async with bench(tmp_path) as made:
        assert await (await made.run(source)).value() == [True, True]


@in_loop
async def test_a_handler_error_is_no_limit(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        one = await made.run("def handler(event, context):\n    raise MemoryError('mine')\n")
        with pytest.raises(HandlerError, match="mine"):
            await one.value()
        assert one.exits == []

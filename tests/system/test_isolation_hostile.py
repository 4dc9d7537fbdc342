"""A guest that owns its end of the channel can lose its sandbox, and that is all it can do."""

import asyncio
import os
import struct
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from doubles.process_bench import ECHO, bench

from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import MAX_BODY, MAX_META, encode

pytestmark = pytest.mark.system

WRITER = """
import os
def handler(event, context):
    data = bytes.fromhex(event[0])
    for _ in range(event[1]):
        view = memoryview(data)
        while view:
            view = view[os.write(3, view):]
    return "written"
"""


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 16,
        os.urandom(4096),
        struct.pack("!BBHIII", FromGuest.RESULT, 0, 0, 1, MAX_META + 1, 0),
        struct.pack("!BBHIII", FromGuest.RESULT, 0, 0, 1, 0, MAX_BODY + 1),
        struct.pack("!BBHIII", FromGuest.RESULT, 0, 7, 1, 0, 0),
    ],
    ids=["ones", "noise", "meta", "body", "reserved"],
)
def test_broken_frames_end_their_sandbox_only(tmp_path: Path, data: bytes) -> None:
    if data[2:4] == b"\0\0" and data[0] not in (18, 255):
        data = b"\x01\x01\x01\x01" + data  # noise that happens to look like a header must not

    @in_loop
    async def check() -> None:
        async with bench(tmp_path) as made:
            hostile, other = await made.run(WRITER), await made.run(ECHO)
            hostile.begin([data.hex(), 1])
            await until(lambda: hostile.exits, "the sandbox was ended")
            assert hostile.exits[0].startswith("the guest broke the protocol")
            assert await other.value(1) == 1

    check()


@in_loop
async def test_a_second_ready_a_lie_about_it_and_unknown_kinds_are_harmless(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        one = await made.run(WRITER)
        frames = encode(FromGuest.READY, 0, b'{"error":{"type":"x"}}') + encode(FromGuest.READY, 0, b"not json") + encode(200, 9)
        assert await one.value([frames.hex(), 1]) == "written"
        assert [frame.kind for frame in one.others] == [200]


@in_loop
async def test_a_first_ready_that_is_no_json_ends_the_sandbox(tmp_path: Path) -> None:
    source = "import os, struct\nos.write(3, struct.pack('!BBHIII', 17, 0, 0, 0, 3, 0) + b'}}}')\n" + ECHO
    async with bench(tmp_path) as made:
        with pytest.raises(Exception, match="broke the protocol"):
            await made.run(source)
        assert await (await made.run(ECHO)).value(1) == 1


@in_loop
async def test_floods_are_slowed_and_others_are_served(tmp_path: Path) -> None:
    source = """
import os, struct, threading
def flood(descriptor, data):
    while True:
        os.write(descriptor, data)
def handler(event, context):
    small = struct.pack("!BBHIII", 21, 0, 0, 9, 16, 0) + b'{"stream":"out"}'
    for descriptor, data in ((3, small * 2000), (1, b"x" * 65536), (2, b"y" * 65536)):
        threading.Thread(target=flood, args=(descriptor, data), daemon=True).start()
    flood(3, small * 2000)
"""
    async with bench(tmp_path) as made:
        hostile, other = await made.run(source), await made.run(ECHO)
        received = 0

        def count(*_: object) -> None:
            nonlocal received
            received += 1

        hostile.clone.on_frame = count
        hostile.clone.on_output = count
        loop = asyncio.get_running_loop()
        began = loop.time()
        hostile.begin()
        for number in range(50):
            assert await other.value(number) == number
            await asyncio.sleep(0.02)
        assert 0 < received < 25_000 + 11_000 * (loop.time() - began), "a burst, then so many a second"
        await hostile.clone.kill("flood")
        assert not [task for task in asyncio.all_tasks() if task.done()]


@in_loop
async def test_a_guest_that_does_not_read_is_ended_before_it_costs_memory(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        deaf, other = await made.run("def handler(event, context):\n    while True: pass\n"), await made.run(ECHO)
        deaf.begin()
        for number in range(12):
            deaf.clone.send(ToGuest.INVOKE, 100 + number, b"{}", bytes(8 << 20))
        await until(lambda: deaf.exits, "the sandbox was ended")
        assert "does not read" in deaf.exits[0]
        assert await other.value(1) == 1


@in_loop
async def test_descriptors_sent_to_the_node_do_not_stay(tmp_path: Path) -> None:
    source = """
import os, socket, struct
def handler(event, context):
    frame = struct.pack("!BBHIII", 21, 0, 0, 9, 16, 0) + b'{"stream":"out"}'
    with socket.socket(fileno=os.dup(3)) as sock:
        for _ in range(50):
            socket.send_fds(sock, [frame], [0, 1, 2])
    return True
"""
    async with bench(tmp_path) as made:
        one = await made.run(source)
        await until(lambda: not made.driver._background, "the probe's control group is given back")
        before = len(os.listdir("/proc/self/fd"))
        assert await one.value()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors are closed")


@pytest.mark.parametrize("how", ["os.close(3)", "socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)"])
def test_a_guest_that_hangs_up_is_gone(tmp_path: Path, how: str) -> None:
    source = f"import os, socket, time\ndef handler(event, context):\n    {how}\n    time.sleep(60)\n"

    @in_loop
    async def check() -> None:
        async with bench(tmp_path) as made:
            one = await made.run(source)
            with pytest.raises(EOFError):
                await one.value()
            assert len(one.exits) == 1

    check()


@in_loop
async def test_output_without_a_reader_does_not_hold_the_node(tmp_path: Path) -> None:
    """What comes before anybody listens is kept within bounds, the rest is let go."""
    source = "import os\nfor _ in range(1200):\n    os.write(1, b'z' * 4096)\n" + ECHO
    async with bench(tmp_path) as made:
        clone = await made.driver.clone("acme", 128)
        await clone.specialise(made.work(source), 15)
        kept: list[bytes] = []
        clone.on_output = lambda _stream, text: kept.append(text)
        assert 0 < sum(map(len, kept)) <= 1200 * 4096
        await clone.kill("over")

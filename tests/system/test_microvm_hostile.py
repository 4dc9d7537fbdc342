"""A guest that owns all of its machine that a function can get at: it loses its own machine, and that is all it can do.

What only a guest's first process, or QEMU itself, could do is done by a stand-in for QEMU in test_microvm_standin.py.
"""

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.loop import until
from doubles.microvms import Shared, guest_image, shared
from doubles.process_bench import ECHO, Running, target_of

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


@pytest.fixture(scope="module")
def vms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(tmp_path_factory.mktemp("microvms"), guest_image()) as made:
        yield made


@contextlib.asynccontextmanager
async def beside(vms: Shared, source: str, **more: object):
    """(the hostile one, a neighbour of another tenant); both gone after, the neighbour answering to the end."""
    hostile, other = await asyncio.gather(vms.bench.run(source, **more), vms.bench.run(ECHO, tenant="other"))
    try:
        yield hostile, other
        assert await other.value("still here") == "still here"
    finally:
        await asyncio.gather(hostile.clone.kill("over"), other.clone.kill("over"))


@pytest.mark.parametrize(
    "data",
    [
        b"\x01" + b"\xff" * 15,
        b"\x01\x01\x01\x01" + os.urandom(4096),
        struct.pack("!BBHIII", FromGuest.RESULT, 0, 0, 1, MAX_META + 1, 0),
        struct.pack("!BBHIII", FromGuest.RESULT, 0, 0, 1, 0, MAX_BODY + 1),
        struct.pack("!BBHIII", FromGuest.RESULT, 0, 7, 1, 0, 0),
    ],
    ids=["ones", "noise", "meta", "body", "reserved"],
)
def test_broken_frames_end_their_own_machine(vms: Shared, data: bytes) -> None:
    async def check() -> None:
        async with beside(vms, WRITER) as (hostile, _):
            hostile.begin([data.hex(), 1])
            await until(lambda: hostile.exits, "the machine was ended")
            assert hostile.exits[0].startswith("the guest broke the protocol")

    vms.run(check())


def test_a_second_ready_lies_and_unknown_kinds_are_harmless(vms: Shared) -> None:
    async def check() -> None:
        frames = encode(FromGuest.READY, 0, b'{"error":{"type":"x"}}') + encode(FromGuest.READY, 0, b"not json") + encode(200, 9)
        frames += b"".join(encode(kind, 0, b'{"now_ns":1}') for kind in range(33, 60))  # the first process's, on the other port
        async with beside(vms, WRITER) as (one, _):
            assert await one.value([frames.hex(), 1]) == "written"

    vms.run(check())


def test_answers_to_what_was_not_asked_and_calls_for_others_stay_its_own(vms: Shared) -> None:
    async def check() -> None:
        forged = b"".join(
            encode(FromGuest.RESULT, ident, b'{"content_type":"text/plain"}', b"forged")
            + encode(FromGuest.CALL, ident, b'{"invocation":%d,"function":"x","content_type":"text/plain"}' % ident)
            for ident in (2, 3, 7, 2**32 - 1)
        )
        async with beside(vms, WRITER) as (one, other):
            asked = other.begin("mine")  # ids are the same in every machine
            assert await one.value([forged.hex(), 1]) == "written"
            assert b"".join((await other.end(asked))[1]) == b'"mine"'
            assert other.calls.empty()

    vms.run(check())


def test_floods_of_channel_and_output_are_slowed_and_others_are_served(vms: Shared) -> None:
    source = """
import os, struct, threading
def flood(descriptor, data):
    while True:
        os.write(descriptor, data)
def handler(event, context):
    small = struct.pack("!BBHIII", 21, 0, 0, 9, 16, 0) + b'{"stream":"out"}'
    for descriptor, data in ((1, b"x" * 65536), (2, b"y" * 65536)):
        threading.Thread(target=flood, args=(descriptor, data), daemon=True).start()
    flood(3, small * 2000)
"""

    async def check() -> None:
        async with beside(vms, source) as (hostile, other):
            frames, written = 0, 0

            def count(*_: object) -> None:
                nonlocal frames
                frames += 1

            def weigh(_: str, text: bytes) -> None:
                nonlocal written
                written += len(text)

            hostile.clone.on_frame, hostile.clone.on_output = count, weigh
            before = _rss()
            hostile.begin()
            for number in range(25):
                assert await other.value(number) == number
                await asyncio.sleep(0.04)
            assert frames + written > 0
            assert _rss() - before < 64 << 20
            await asyncio.wait_for(hostile.clone.kill("flood"), 8)
            assert hostile.exits == ["flood"]

    vms.run(check())


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_one_that_never_answers_nor_reads_is_ended_before_it_costs_memory(vms: Shared) -> None:
    async def check() -> None:
        async with beside(vms, "import signal, os\ndef handler(event, context):\n    while True: pass\n") as (deaf, _):
            before = _rss()
            deaf.begin()
            for number in range(12):
                deaf.clone.send(ToGuest.INVOKE, 100 + number, b"{}", bytes(8 << 20))
            await until(lambda: deaf.exits, "the machine was ended", 60)
            assert "does not read" in deaf.exits[0]
            assert _rss() - before < 160 << 20

    vms.run(check())


def test_one_that_never_answers_is_killed_at_once(vms: Shared) -> None:
    async def check() -> None:
        async with beside(vms, "import time\ndef handler(event, context):\n    time.sleep(3600)\n") as (silent, _):
            asked = silent.begin()
            await asyncio.sleep(0.1)
            await asyncio.wait_for(silent.clone.kill("its time is over"), 8)
            with pytest.raises(EOFError, match="its time is over"):
                await silent.end(asked)

    vms.run(check())


@pytest.mark.parametrize(
    "fill",
    ["b'x' * (1 << 20)", "os.memfd_create('x')) or os.write(kept[-1], b'x' * (1 << 20)"],
    ids=["heap", "files"],
)
def test_one_that_fills_its_memory_ends_with_that_reason(vms: Shared, fill: str) -> None:
    source = f"import os\nkept = []\ndef handler(event, context):\n    while True: kept.append({fill})\n"

    async def check() -> None:
        async with beside(vms, source) as (greedy, _):
            asked = greedy.begin()
            with pytest.raises((EOFError, Exception), match=r"out of memory: the sandbox needed more than 128 MB|MemoryError"):
                await greedy.end(asked, 30)

    vms.run(check())


def test_one_that_fills_its_disk_or_its_processes_harms_itself(vms: Shared) -> None:
    source = """
import errno, os
def handler(event, context):
    found = []
    try:
        with open("/tmp/full", "wb") as file:
            for _ in range(4096): file.write(bytes(1 << 20))
    except OSError as error:
        found.append(error.errno in (errno.ENOSPC, errno.EFBIG))
    os.unlink("/tmp/full")
    children = []
    try:
        while len(children) < 10000:
            pid = os.fork()
            if pid == 0:
                os.pause() if hasattr(os, "pause") else __import__("signal").pause()
            children.append(pid)
    except OSError as error:
        found.append(error.errno in (errno.EAGAIN, errno.ENOMEM))
    return [found, len(children) < 200]
"""

    async def check() -> None:
        async with beside(vms, source) as (one, _):
            assert await one.value(timeout_s=60) == [[True, True], True]

    vms.run(check())


@pytest.mark.parametrize(
    "how",
    [
        "os.close(3)",
        "os.kill(os.getpid(), 9)",
        "os._exit(3)",
        "os.kill(1, 9)",
        "open('/proc/sysrq-trigger', 'w').write('c')",
        "__import__('ctypes').CDLL(None).reboot(0x1234567)",
        "open('/dev/mem', 'rb').read(1)",
    ],
)
def test_whatever_it_does_to_its_machine_is_over_with_it(vms: Shared, how: str) -> None:
    """It has gone, or it could not do that."""
    source = f"""
import os
def handler(event, context):
    try:
        {how}
    except OSError as error:
        return type(error).__name__
    return "done"
"""

    async def check() -> None:
        async with beside(vms, source) as (one, _):
            with contextlib.suppress(EOFError, TimeoutError):
                assert await one.value(timeout_s=3) in ("PermissionError", "FileNotFoundError", "OSError", "done")

    vms.run(check())


def test_in_its_machine_it_is_nobody(vms: Shared) -> None:
    """What would make a function the owner of its machine's first process, and so of the port that is not its own."""
    source = """
import glob, os
def handler(event, context):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    opened = []
    for path in [*glob.glob("/dev/*"), "/dev/vport0p2", "/proc/1/mem", "/proc/1/environ", "/init", "/proc/kcore"]:
        for flags in (os.O_RDWR, os.O_RDONLY):
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK))
                opened.append(path)
            except OSError:
                pass
    try:
        os.kill(1, 0)
        signalled = True
    except OSError:
        signalled = False
    capabilities = [int(status[name], 16) for name in ("CapEff", "CapBnd")]
    return [os.getuid(), capabilities, int(status["NoNewPrivs"]), signalled, sorted(set(opened))]
"""

    async def check() -> None:
        async with beside(vms, source) as (one, _):
            user, capabilities, no_new, signalled, opened = await one.value()
            assert user != 0
            assert (capabilities, no_new, signalled) == ([0, 0], 1, False)
            harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr", "shm"}
            assert {os.path.basename(path) for path in opened} <= harmless | {"init"}, opened

    vms.run(check())


def test_a_killed_qemu_fails_its_own_invocation_with_a_reason(vms: Shared) -> None:
    async def check() -> None:
        async with beside(vms, "import time\ndef handler(event, context):\n    time.sleep(60)\n") as (one, _):
            asked = one.begin()
            os.kill(one.clone.pid, signal.SIGKILL)
            with pytest.raises(EOFError, match="signal 9"):
                await one.end(asked)

    vms.run(check())


def test_a_stopped_qemu_can_be_killed(vms: Shared) -> None:
    async def check() -> None:
        async with beside(vms, ECHO) as (one, _):
            os.kill(one.clone.pid, signal.SIGSTOP)
            await asyncio.wait_for(one.clone.kill("stuck"), 8)

    vms.run(check())


def test_the_report_says_what_is_not_in_force(vms: Shared) -> None:
    report = vms.bench.report
    said = {line.partition(":")[0] for line in report.missing}
    assert (report.driver, report.tier) == ("microvm", "tcg")
    if os.geteuid() == 0:
        assert not said & {"host user", "files", "network", "memory"}
    else:
        assert {"host user", "files", "network"} <= said


@pytest.mark.needs_root
def test_from_inside_nothing_is_reached(vms: Shared) -> None:
    source = """
import errno, socket
def handler(event, context):
    names = [name for _, name in socket.if_nameindex()]
    found = {}
    for address in event:
        try:
            with socket.create_connection((address, 80), 1):
                found[address] = "connected"
        except TimeoutError:
            found[address] = "silence"
        except OSError as error:
            found[address] = errno.errorcode.get(error.errno, str(error))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for address in event:
            try:
                sock.sendto(b"hello", (address, 53))
            except OSError:
                pass
        sock.settimeout(0.5)
        try:
            heard = sock.recv(100)
        except OSError:
            heard = None
    return [names, found, heard]
"""

    async def check() -> None:
        async with beside(vms, source) as (one, _):
            addresses = ["100.64.0.1", "169.254.169.254", "10.0.0.1", "192.0.2.1", "8.8.8.8"]
            names, found, heard = await one.value(addresses, 30)
            assert "eth0" in names
            assert set(found.values()) <= {"silence", "EHOSTUNREACH", "ENETUNREACH"}, found
            assert heard is None

    vms.run(check())


@pytest.mark.needs_root
def test_its_qemu_is_confined_and_no_two_share_a_user_or_a_namespace(vms: Shared) -> None:
    async def check() -> None:
        async with beside(vms, ECHO) as (one, other):
            users, networks = set(), set()
            for running in (one, other):
                lines = Path(f"/proc/{running.clone.pid}/status").read_text().splitlines()
                status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
                assert status["Seccomp"] == ["2"]
                assert status["NoNewPrivs"] == ["1"]
                assert int(status["CapEff"][0], 16) == int(status["CapBnd"][0], 16) == 0
                users.add(status["Uid"][0])
                networks.add(os.stat(f"/proc/{running.clone.pid}/ns/net").st_ino)
            assert len(users) == len(networks) == 2
            assert "0" not in users
            assert os.stat("/proc/self/ns/net").st_ino not in networks

    vms.run(check())


@pytest.mark.needs_root
def test_what_qemu_has_of_the_template_cannot_be_written_even_by_root(vms: Shared) -> None:
    async def check() -> None:
        async with beside(vms, ECHO) as (one, _):
            proc, memories = f"/proc/{one.clone.pid}/fd", 0
            for name in os.listdir(proc):
                if os.readlink(f"{proc}/{name}").startswith("/memfd:foreglow-"):
                    memories += 1
                    descriptor = os.open(f"{proc}/{name}", os.O_RDWR | os.O_CLOEXEC)
                    for attempt in (lambda fd=descriptor: os.pwrite(fd, b"evil", 0), lambda fd=descriptor: os.ftruncate(fd, 0)):
                        with pytest.raises(PermissionError):
                            attempt()
                    os.close(descriptor)
            assert memories

    vms.run(check())


async def _instance(vms: Shared) -> Running:
    return await vms.bench.run(ECHO)


def _descriptors() -> int:
    """Without those of control groups, which are kept for the next sandbox (workers.drivers.limits.MAX_SPARE)."""
    return sum(not target_of(one).startswith("/sys/fs/cgroup") for one in os.listdir("/proc/self/fd"))


def test_many_in_a_row_leave_nothing(vms: Shared) -> None:
    times = 1000 if os.environ.get("FULL") == "1" else 12

    async def check() -> None:
        (await _instance(vms)).clone  # noqa: B018
        for clone in list(vms.bench.driver._clones):
            await clone.kill("over")
        await until(lambda: vms.at_rest, "the pool is full")
        before = _descriptors()
        for number in range(times):
            one = await _instance(vms)
            assert await one.value(number) == number
            await one.clone.kill("over")
        await until(lambda: vms.at_rest and _descriptors() <= before + 2, "descriptors are closed")

    vms.run(check(), 60 + times * 2.0)

"""Inside a microVM: who it says it is, what user code may do there, how code arrives. One booted template for all tests here."""

import asyncio
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.microvms import Shared, guest_image, shared
from doubles.process_bench import Running

from workers.drivers.microvm import code as delivery
from workers.drivers.microvm import disk
from workers.guest import microvm
from workers.ports import DriverError, Specialisation

pytestmark = pytest.mark.system

TRY = """
import os, subprocess, sys
def tried(action):
    try:
        return repr(action())
    except BaseException as error:
        return type(error).__name__
"""


@pytest.fixture(scope="module")
def vms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(tmp_path_factory.mktemp("microvms"), guest_image()) as made:
        yield made


async def started(vms: Shared, work: Specialisation) -> Running:
    clone = await vms.bench.driver.clone("acme", work.memory_mb)
    try:
        return Running(clone, await clone.specialise(work, 30))
    except BaseException:
        await clone.kill("it did not start")
        raise


def test_both_ends_put_the_layers_in_the_same_places() -> None:
    assert delivery.LAYERS_AT == microvm.LAYERS_AT


def test_no_two_clones_are_the_same_and_all_know_the_time(vms: Shared) -> None:
    source = """
import os, random, secrets, ssl, socket, tempfile, time, uuid
first = os.urandom(8).hex()
unseeded = random.Random()
def handler(event, context):
    drawn = [first, os.urandom(8).hex(), random.random(), secrets.token_hex(8), ssl.RAND_bytes(8).hex(), str(uuid.uuid4()),
             str(uuid.uuid1()), next(tempfile._get_candidate_names()), unseeded.random()]
    return {"drawn": drawn, "now": time.time(), "host": socket.gethostname(), "uid": os.getuid()}
"""

    async def check() -> None:
        seen: list[list[object]] = []
        off = []
        await asyncio.sleep(1)  # a clock that nobody set is behind by more
        for _ in range(4):
            one = await vms.bench.run(source)
            await one.value()  # a call that still translates takes longer than a clock may be off
            before = time.time()
            answer = await one.value()
            assert isinstance(answer, dict)
            off.append(max(before - answer["now"], answer["now"] - time.time(), 0.0))
            assert answer["host"]
            assert answer["uid"] == microvm.UID
            seen.append(answer["drawn"])
            await one.clone.kill("seen")
        assert statistics.median(off) <= 0.25, off
        for column in zip(*seen, strict=True):
            assert len(set(column)) == len(seen)

    vms.run(check())


def test_nothing_of_its_exercise_is_left_in_a_standby(vms: Shared) -> None:
    source = """
import os, sys
def files(folder):
    return sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
def handler(event, context):
    return {"files": [files(one) for one in ("/var/task", "/opt/deps", "/tmp")], "cwd": os.getcwd(), "path": sys.path,
            "modules": sorted(sys.modules), "environment": sorted(os.environ), "host": os.uname().nodename}
"""

    async def seen(standby: bool) -> object:
        clone = await vms.bench.driver.clone("acme", 128)
        try:
            if standby:
                await clone.rest()
            report = await clone.specialise(vms.bench.work(source, environment={"ONE": "1"}), 30)
            return await Running(clone, report).value()
        finally:
            await clone.kill("seen")

    fresh, rested = vms.run(seen(False)), vms.run(seen(True))
    assert rested == fresh
    assert "/var/task/handler.py" in str(fresh)
    assert "exercise" not in str(rested)


def test_user_code_has_no_power_over_the_machine(vms: Shared) -> None:
    source = (
        TRY
        + """
import ctypes, time
libc = ctypes.CDLL(None)
def handler(event, context):
    ports = [name for name in os.listdir("/dev") if name.startswith("vport")]
    return {
        "init": tried(lambda: os.kill(1, 9)), "code": tried(lambda: open("/var/task/mine", "w")),
        "root": tried(lambda: open("/mine", "w")), "disk": tried(lambda: open("/dev/vda", "rb")),
        "ports": [tried(lambda: open("/dev/" + name, "rb")) for name in ports], "clock": tried(lambda: time.clock_settime(0, 0)),
        "limit": tried(lambda: open("/sys/fs/cgroup/function/memory.max", "w")), "user namespace": libc.unshare(0x10000000),
        "reset": libc.reboot(0x01234567), "ours": tried(lambda: __import__("workers")),
        "open": sorted(os.listdir("/proc/self/fd")),
        "mount": libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    }
"""
    )

    async def check() -> None:
        one = await vms.bench.run(source)
        answer = await one.value()
        assert isinstance(answer, dict)
        assert len(answer.pop("ports")) == 2
        assert len(answer.pop("open")) == 6  # 0 to 2, the channel, the gate, and the listing itself
        assert answer == {
            "init": "PermissionError",
            "code": "PermissionError",
            "root": "PermissionError",
            "disk": "PermissionError",
            "clock": "PermissionError",
            "limit": "PermissionError",
            "user namespace": -1,
            "reset": -1,
            "ours": "ModuleNotFoundError",
            "mount": -1,
        }
        assert await one.value() is not None
        await one.clone.kill("seen")

    vms.run(check())


def test_processes_and_tmp_are_bounded_and_a_shell_is_there(vms: Shared) -> None:
    source = (
        TRY
        + """
def fill():
    for number in range(64):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(4 << 20))
def start():
    started = []
    try:
        while len(started) < 1000:
            started.append(subprocess.Popen(["sleep", "60"]))
    except OSError:
        return len(started)
    finally:
        for one in started:
            one.kill()
            one.wait()
def handler(event, context):
    with open("/dev/stdout", "w") as out:
        out.write("by name")
    return [tried(fill), start(), subprocess.run("echo $HOME", shell=True, capture_output=True, text=True).stdout]
"""
    )

    async def check() -> None:
        one = await vms.bench.run(source)
        answer = await one.value(timeout_s=60)
        assert isinstance(answer, list)
        assert answer[0] == "OSError"
        assert 50 < answer[1] < 128
        assert answer[2] == "/tmp\n"
        assert one.output["out"] == b"by name"
        await one.clone.kill("seen")

    vms.run(check())


def test_a_function_gets_nearly_all_the_memory_of_its_shape_and_no_more(vms: Shared) -> None:
    source = "def handler(event, context):\n    return len(bytes(b'x') * (event << 20)) >> 20\n"

    async def check() -> None:
        one = await vms.bench.run(source)
        assert await one.value(112) == 112
        with pytest.raises(EOFError, match="out of memory: the sandbox needed more than 128 MB"):
            await one.value(130)

    vms.run(check())


def test_small_layers_arrive_as_they_are(vms: Shared, tmp_path: Path) -> None:
    source = """
import os, pkgutil, space.inner
def handler(event, context):
    here = os.path.dirname(__file__)
    text = open(here + "/data/table.csv").read()
    tool = os.popen(here + "/tool.sh").read()
    link = os.readlink(here + "/link")
    return [text, tool, link, space.inner.me, pkgutil.get_data(__name__, "data/table.csv").decode(), broken()]
def broken():
    import traceback
    try:
        1 / 0
    except ZeroDivisionError:
        return traceback.format_exc()
"""
    files = {"handler.py": source, "data/table.csv": "a,b", "space/inner.py": "me = __file__", "tool.sh": "#!/bin/sh\necho ran\n"}

    async def check() -> None:
        work = vms.bench.work(files)
        (work.layers[0] / "tool.sh").chmod(0o755)
        (work.layers[0] / "link").symlink_to("data/table.csv")
        one = await started(vms, work)
        answer = await one.value()
        assert isinstance(answer, list)
        assert answer[:5] == ["a,b", "ran\n", "data/table.csv", "/var/task/space/inner.py", "a,b"]
        assert 'File "/var/task/handler.py", line 12, in broken\n    1 / 0' in answer[5]
        await one.clone.kill("seen")

    vms.run(check())


LARGE = """
import hashlib, os, library
def handler(event, context):
    with open("/opt/deps/library/large.bin", "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    try:
        open("/opt/deps/library/mine", "w")
        refused = ""
    except OSError as error:
        refused = str(error)
    return [digest, library.__file__, refused, os.stat("/opt/deps/library/large.bin").st_mtime]
"""


def large(vms: Shared, size: int) -> tuple[Specialisation, str]:
    """A function with a small layer and one of `size` bytes; the digest of what is in that."""
    import hashlib

    work = vms.bench.work(LARGE, dependencies={"library/__init__.py": "me = 1"})
    content = os.urandom(1 << 20) * (size >> 20)
    (work.layers[1] / "library" / "large.bin").write_bytes(content)
    return work, hashlib.sha256(content).hexdigest()


def test_a_large_layer_is_a_disk_for_reading_and_the_next_clone_takes_the_same(vms: Shared) -> None:
    async def check() -> None:
        work, digest = large(vms, 20 << 20)
        first = await started(vms, work)
        assert await first.value() == [
            digest,
            "/opt/deps/library/__init__.py",
            "[Errno 30] Read-only file system: '/opt/deps/library/mine'",
            0.0,
        ]
        await first.clone.kill("seen")
        second = await started(vms, work)
        answer = await second.value()
        assert isinstance(answer, list)
        assert answer[0] == digest
        await second.clone.kill("seen")

    vms.run(check())


def test_without_mkfs_a_layer_comes_inline_up_to_a_size_and_is_refused_above(
    vms: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PROGRAM", "mkfs.nowhere")

    async def check() -> None:
        work, digest = large(vms, 2 << 20)
        one = await started(vms, work)
        answer = await one.value()
        assert isinstance(answer, list)
        assert answer[:2] == [digest, "/opt/deps/library/__init__.py"]
        await one.clone.kill("seen")
        work, _ = large(vms, 9 << 20)
        with pytest.raises(DriverError, match=r"mkfs\.nowhere is not installed"):
            await started(vms, work)

    vms.run(check())

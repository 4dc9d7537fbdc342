"""What a hostile init gains by being the original of a function template: nothing but the instances of its own version."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from doubles.process_bench import ECHO, HandlerError, bench

from workers.drivers import watch
from workers.drivers.cells import Cell
from workers.drivers.limits import Cgroups
from workers.drivers.process.driver import ProcessDriver
from workers.ports import DriverError, TemplateRefused

pytestmark = pytest.mark.system

CALLS = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]) >= 0:
        return "allowed"
    return errno.errorcode[ctypes.get_errno()]
NEW = 0x10000000, 0x20000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000
def attempts():
    found = {f"unshare {flag:#x}": call(272, flag) for flag in NEW}
    found |= {f"clone {flag:#x}": call(56, flag | 17, 0, 0, 0, 0) for flag in NEW}
    found["clone3"] = call(435, 0, 0)
    found["mount tmpfs"] = call(165, b"x", b"/tmp", b"tmpfs", 6, b"")
    found["mount proc"] = call(165, b"x", b"/proc", b"proc", 14, b"")
    found["umount"] = call(166, b"/proc", 2)
    found["pivot_root"] = call(155, b".", b".")
    found["chroot"] = call(161, b"/tmp")
    found["open_tree"] = call(428, -100, b"/", 1)
    found["fsopen"] = call(430, b"tmpfs", 0)
    found["move_mount"] = call(429, -1, b"", -100, b"/tmp", 4)
    found["mount_setattr"] = call(442, -100, b"/", 0, b"0" * 32, 32)
    found["ptrace keeper"] = call(101, 16, 1, 0, 0)
    found["read keeper"] = call(310, 1, 0, 0, 0, 0, 0)
    found["bpf"] = call(321, 0, 0, 0)
    found["keyctl"] = call(250, 0, 0)
    found["sethostname"] = call(170, b"mine", 4)
    found["mknod"] = call(133, b"/tmp/disk", 0o60666, 0x800)
    found["vsock"] = call(41, 40, 1, 0)
    found["setuid"] = call(105, 0)
    return found
"""


@in_loop
async def test_it_can_make_no_namespace_no_mount_and_reach_no_kernel_door(tmp_path: Path) -> None:
    """The source runs in the original, and what it found there is told by its clone."""
    source = CALLS + "found = attempts()\ndef handler(event, context):\n    return found, attempts()\n"
    async with bench(tmp_path) as made:
        in_original, in_instance = await (await made.run_templated(source)).value()
        assert [name for name, answer in in_original.items() if answer == "allowed"] == []
        assert [name for name, answer in in_instance.items() if answer == "allowed"] == []


@in_loop
async def test_what_it_keeps_is_one_capability_over_its_own_version(tmp_path: Path) -> None:
    source = """
import os, socket, fcntl, struct
SYSRQ = "/proc/sysrq-trigger"
def status():
    return {line.split(":")[0]: line.split(":")[1].strip() for line in open("/proc/self/status")}
def tries():
    found = {}
    for name, path in (("root", "/root"), ("host", "/proc/1/root/etc/shadow"), ("memory", "/proc/1/mem"), ("sysrq", SYSRQ)):
        try:
            os.stat(path) if name == "root" else open(path, "rb").read(1)
            found[name] = "read"
        except OSError as error:
            found[name] = type(error).__name__
    try:
        with socket.socket() as sock:
            fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0))
        found["loopback"] = "changed"
    except OSError:
        pass
    for path in ("/x", "/var/task/x", "/etc/x", "/dev/x"):
        try:
            open(path, "w")
            found[path] = "written"
        except OSError:
            pass
    return found
before, could = status(), tries()
def handler(event, context):
    return before, could, status(), tries()
"""
    async with bench(tmp_path) as made:
        before, could, after, can = await (await made.run_templated(source)).value()
        assert int(before["CapEff"], 16) == int(before["CapPrm"], 16) == 1 << 21  # CAP_SYS_ADMIN in its own namespace
        assert int(before["CapBnd"], 16) == int(before["CapInh"], 16) == int(before["CapAmb"], 16) == 0
        assert [int(after[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")] == [0] * 5
        assert before["NoNewPrivs"] == after["NoNewPrivs"] == "1"
        assert (before["Seccomp_filters"], after["Seccomp_filters"]) == ("1", "2")
        assert set(could.values()) | set(can.values()) <= {"FileNotFoundError", "PermissionError", "NotADirectoryError"}


@in_loop
async def test_instances_of_one_version_share_nothing_they_can_write(tmp_path: Path) -> None:
    source = """
import os, socket
def handler(event, context):
    if event == "put":
        open("/tmp/mine", "w").write("x")
        open("/dev/shm/mine", "w").write("x")
        global kept
        kept = [socket.socket(socket.AF_UNIX), socket.socket()]
        kept[0].bind("\\0mine")
        kept[1].bind(("127.0.0.1", 4000))
        for one in kept:
            one.listen()
    found = {}
    for name, make, address in (("abstract", socket.AF_UNIX, "\\0mine"), ("port", socket.AF_INET, ("127.0.0.1", 4000))):
        with socket.socket(make) as sock:
            found[name] = sock.connect_ex(address) == 0
    kinds = "net", "mnt", "pid", "ipc", "uts", "user", "cgroup"
    return [sorted(os.listdir("/tmp")), found, [os.readlink(f"/proc/self/ns/{one}") for one in kinds]]
"""
    async with bench(tmp_path) as made:
        one = await made.template(source)
        first, second = await one.run(), await one.run()
        files, found, mine = await first.value("put")
        assert files == ["mine"]
        assert found == {"abstract": True, "port": True}
        files, found, theirs = await second.value("look")
        assert files == []
        assert found == {"abstract": False, "port": False}
        assert not set(mine) & set(theirs)


@in_loop
async def test_the_original_is_killed_by_its_memory_limit_and_nobody_else(tmp_path: Path) -> None:
    source = "kept = []\nwhile True:\n    kept.append(b'x' * (8 << 20))\n" + ECHO
    async with bench(tmp_path) as made:
        other = await made.run(ECHO)
        with pytest.raises(DriverError):
            await made.template(source)
        assert await other.value(1) == 1


HOSTILE = [
    # the modules the platform's own code in there relies on
    "import os, ctypes, json, socket\nos.close = os.dup2 = os.read = ctypes.CDLL = json.loads = lambda *a, **k: 1 / 0\n",
    # fork is what clones it: hooks that raise, end or hang it are its own end
    "import os\nos.register_at_fork(before=lambda: os._exit(7))\n",
    # it plays the keeper's partner itself, and lies
    'import os\nos.write(4, b\'{"id": 1, "pid": 1}\')\n',
    "import os\nos.write(4, b'no json')\n",
    "import os\nos.close(4)\n",
    # it answers the node itself
    "import os, struct\n"
    "body = b'{\"init_ms\": 1, \"asked\": []}'\nos.write(3, struct.pack('!BBHIII', 17, 0, 0, 0, len(body), 0) + body)\n",
]


@pytest.mark.parametrize("source", HOSTILE, ids=["patches", "fork-hook", "lies", "noise", "deaf", "ready"])
def test_a_hostile_original_loses_its_own_version_only(tmp_path: Path, source: str) -> None:
    @in_loop
    async def check() -> None:
        async with bench(tmp_path) as made:
            other, neighbour = await made.template(ECHO), await made.run(ECHO, tenant="other")
            try:
                hostile = await made.template(source + ECHO)
                async with asyncio.timeout(30):
                    await (await hostile.run()).value(1)
            except (DriverError, EOFError, HandlerError, TimeoutError):
                pass
            assert await (await other.run()).value(2) == 2
            assert await neighbour.value(3) == 3
            assert await (await made.run(ECHO)).value(4) == 4

    check()


@in_loop
async def test_it_sees_its_own_instances_processes_and_no_other(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    return [name for name in os.listdir("/proc") if name.isdigit()]
seen = [name for name in os.listdir("/proc") if name.isdigit()]
"""
    async with bench(tmp_path) as made:
        await made.run(ECHO)
        one = await made.template(source.replace("def handler", "def unused") + "def handler(event, context):\n    return seen\n")
        first, _ = await one.run(), await one.run()
        assert len(await first.value()) == 2  # the keeper and itself
        assert await (await made.run_templated(source)).value() == ["1", "2"]


@in_loop
async def test_what_a_hostile_original_starts_later_ends_with_it(tmp_path: Path) -> None:
    """It passes the inspection and forks when it is asked for a clone: nothing of that outlives the template."""
    source = (
        """
import os, time
def strays():
    for _ in range(3):
        if fork() == 0:
            time.sleep(600)
fork = os.fork
os.register_at_fork(after_in_parent=lambda: done or (done.append(1), strays()))
done = []
"""
        + ECHO
    )
    async with bench(tmp_path) as made:
        one = await made.template(source)
        try:
            async with asyncio.timeout(20):
                await one.run()
        except (DriverError, TimeoutError):
            pass
        keeper = one.template.keeper_pid
        await one.template.end("over")
        for clone in list(made.driver._clones):
            await clone.kill("over")
        await until(lambda: not os.path.exists(f"/proc/{keeper}"), "the keeper has gone")


KEEPS_GROUPS = """
import os, socket, time
receive, fork, kept = socket.recv_fds, os.fork, []
def keeping(sock, *more):
    message, descriptors, *rest = receive(sock, *more)
    if sock.fileno() == 4 and len(descriptors) > 5:
        if kept and fork() == 0:
            for one in kept:
                try:
                    os.write(one, b"0")
                except OSError:
                    pass
            time.sleep(600)
        kept.extend(os.dup(one) for one in descriptors[5:])
    return message, descriptors, *rest
socket.recv_fds = keeping
"""


@pytest.mark.needs_root
@in_loop
async def test_control_groups_it_was_lent_are_nobody_elses_later(tmp_path: Path) -> None:
    """It keeps the descriptors of its first instance's groups, and puts a process in when they might be another tenant's."""
    async with bench(tmp_path) as made:
        if not _has_groups(made.report.limits):
            pytest.skip("no control groups here")
        hostile = await made.template(KEEPS_GROUPS + ECHO, tenant="hostile")
        await (await hostile.run()).clone.kill("over")
        await _given_back(made.driver)
        victims = [await made.run(ECHO, tenant="victim") for _ in range(3)]
        await (await hostile.run()).value(1)
        for victim in victims:
            assert victim.clone.cell is not None
            assert victim.clone.cell.members() == [victim.clone.pid]


@pytest.mark.needs_root
@in_loop
async def test_one_that_does_not_let_go_of_its_groups_ends(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        if not _has_groups(made.report.limits):
            pytest.skip("no control groups here")
        one = await made.template(ECHO)
        keeper, cgroups = one.template.keeper_pid, made.driver._cgroups
        assert cgroups is not None
        instance, give_back = await one.run(), cgroups.give_back
        asked: list[Cell] = []

        def in_use_at_first(cell: Cell) -> bool:
            asked.append(cell)
            return len(asked) > 1 and give_back(cell)

        cgroups.give_back = in_use_at_first  # type: ignore[method-assign]
        held = instance.clone.cell
        await instance.clone.kill("over")
        await until(lambda: not os.path.exists(f"/proc/{keeper}"), "the keeper has gone")
        await until(lambda: asked.count(held) == 2 if held else False, "the groups are removed after that")


@in_loop
async def test_what_it_leaves_behind_ends_with_it_while_instances_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without control groups nobody would count it any more."""
    monkeypatch.setattr(Cgroups, "open", lambda _: ["none here"])
    source = """
import os, socket, time
receive, fork, asked = socket.recv_fds, os.fork, []
def leaving(sock, *more):
    told = receive(sock, *more)
    if sock.fileno() == 4 and len(told[1]) > 4:
        asked.append(1)
        if len(asked) == 2:
            for _ in range(6):
                if fork() == 0:
                    time.sleep(600)
            os._exit(0)
    return told
socket.recv_fds = leaving
"""
    async with bench(tmp_path) as made:
        hostile = await made.template(source + ECHO)
        keeper = hostile.template.keeper_pid
        first = await hostile.run()
        with pytest.raises(DriverError):
            await hostile.run()
        await until(lambda: len(watch.members(keeper)) <= 3, "only the keeper, a shell and its instance are left")
        assert await first.value(1) == 1


def _has_groups(limits: Mapping[str, str]) -> bool:
    return any(kind.startswith("cgroup") for kind in limits.values())


async def _given_back(driver: ProcessDriver) -> None:
    while driver._background:
        await asyncio.wait(driver._background)


def test_refusals_have_the_kinds_that_metrics_name() -> None:
    assert TemplateRefused("thread", "why").kind == "thread"

"""What a function can see and change of files: its own code, its own /tmp, an interpreter. Nothing of the host or of others."""

import asyncio
from pathlib import Path

import pytest
from doubles.loop import in_loop
from doubles.process_bench import bench

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("made_either_way")]

WALK = """
import os
SKIPPED = ("kmsg", "kpagecount", "kpageflags", "kpagecgroup", "kcore", "mem", "clear_refs", "random", "urandom", "zero", "stdout",
           "stderr")

def handler(event, context):
    secret, found, seen = event.encode(), [], 0
    for top in ("/var", "/opt", "/tmp", "/etc", "/proc", "/dev"):
        for folder, folders, names in os.walk(top, onerror=lambda error: None):
            folders[:] = [name for name in folders if name not in ("task", "fd", "map_files") or folder == "/var"]
            for name in names:
                path = os.path.join(folder, name)
                if name in SKIPPED:
                    continue
                try:
                    with open(path, "rb") as file:
                        seen += 1
                        if secret in file.read(1 << 20):
                            found.append(path)
                except OSError:
                    pass
    return [seen, found]
"""


@in_loop
async def test_the_root_holds_an_interpreter_and_nothing_of_the_host(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    return {"root": sorted(os.listdir("/")), "etc": sorted(os.listdir("/etc")), "dev": sorted(os.listdir("/dev")),
            "packages": [d for d, _, _ in os.walk("/usr") if d.endswith("-packages") and os.listdir(d)],
            "host": [p for p in event if os.path.lexists(p)]}
"""
    async with bench(tmp_path) as made:
        one = await made.run(source)
        host = [str(tmp_path), str(Path(__file__)), "/etc/shadow", "/root", "/home", "/sys", "/run", "/boot", "/bin/sh"]
        seen = await one.value(host)
        assert set(seen["root"]) <= {"bin", "dev", "etc", "lib", "lib64", "opt", "proc", "tmp", "usr", "var"}
        assert set(seen["etc"]) <= {"group", "hosts", "localtime", "nsswitch.conf", "passwd", "resolv.conf", "ssl"}
        assert set(seen["dev"]) == {"fd", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"}
        assert seen["packages"] == []
        assert seen["host"] == []


@in_loop
async def test_only_tmp_can_be_written(tmp_path: Path) -> None:
    source = """
import os
def attempt(path):
    try:
        with open(path, "wb") as file:
            file.write(b"x")
        return "written"
    except OSError as error:
        return type(error).__name__
def handler(event, context):
    try:
        os.chmod("/var/task", 0o777)
        changed = True
    except OSError:
        changed = False
    return [attempt(path) for path in event] + [changed]
"""
    async with bench(tmp_path) as made:
        one = await made.run(source)
        paths = ["/x", "/var/task/x", "/var/task/handler.py", "/opt/deps/x", "/etc/passwd", "/usr/x", "/var/x", "/proc/sys/net/x"]
        *refused, changed = await one.value(paths)
        assert "written" not in refused
        assert not changed
        assert await one.value(["/tmp/x", "/dev/null", "/dev/shm/x"]) == ["written"] * 3 + [False]


@in_loop
async def test_two_functions_see_nothing_of_each_other(tmp_path: Path) -> None:
    """Same tenant, same template: the strictest case. Code, environment, memory of processes, temporary files."""
    secret = "orange-" + "marmalade-1759"  # never a whole word in a source that is not the owner's
    keeper = f"""
import os
KEPT = "{secret}"
def handler(event, context):
    open("/tmp/kept", "w").write(KEPT)
    return os.environ["KEY"]
"""
    async with bench(tmp_path) as made:
        owner = await made.run(keeper, environment={"KEY": secret}, dependencies={"dep.py": f"x = '{secret}'"})
        other = await made.run(WALK, dependencies={"dep.py": "x = 1"})
        assert await owner.value() == secret
        seen, found = await other.value(secret)
        assert seen > 50
        assert found == []
        seen, found = await (await made.run(WALK.replace("import os\n", f"import os\nMINE = '{secret}'\n", 1))).value(secret)
        assert found == ["/var/task/handler.py"]  # the search does find what is there


@in_loop
async def test_a_layer_of_another_function_is_not_even_named(tmp_path: Path) -> None:
    source = "def handler(event, context):\n    return open('/proc/self/mountinfo').read()\n"
    async with bench(tmp_path) as made:
        await made.run("handler = print")
        one = await made.run(source)
        mounts = await one.value()
        assert "layer2" in mounts or "/var/task" in mounts
        assert "layer1" not in mounts
        options = {line.split()[4]: line.split()[5].split(",") for line in mounts.splitlines()}
        assert {"ro", "nosuid", "nodev"} <= set(options["/var/task"])
        assert all({"ro", "nosuid"} <= set(those) for place, those in options.items() if not place.startswith(("/tmp", "/proc")))
        assert all("nosuid" in those for place, those in options.items() if place != "/proc")
        assert "/etc/shadow" not in mounts


@in_loop
async def test_mounts_cannot_be_made_undone_or_left(tmp_path: Path) -> None:
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    return 0 if result >= 0 else ctypes.get_errno()
def handler(event, context):
    return {"mount": call(165, b"none", b"/tmp", b"tmpfs", 0, None), "umount": call(166, b"/proc", 2),
            "chroot": call(161, b"/tmp"), "pivot_root": call(155, b"/tmp", b"/tmp"), "open_tree": call(428, -100, b"/", 1),
            "move_mount": call(429, 3, b"", -100, b"/tmp", 4), "fsopen": call(430, b"tmpfs", 0),
            "mknod": call(133, b"/tmp/n", 8192, 261), "open_by_handle_at": call(304, 3, None, 0)}
"""
    async with bench(tmp_path) as made:
        refused = await (await made.run(source)).value()
        assert set(refused.values()) == {1}, refused


@in_loop
async def test_tmp_is_bounded_and_ends_with_the_sandbox(tmp_path: Path) -> None:
    source = """
def handler(event, context):
    written = 0
    with open("/tmp/file%d" % event, "wb") as file:
        try:
            while written < 512:
                file.write(bytes(1 << 20)); file.flush()
                written += 1
        except OSError as error:
            return [written, error.errno]
    return [written, 0]
"""
    async with bench(tmp_path) as made:
        one = await made.run(source, memory_mb=256)
        written, errno = await one.value(1)
        assert written <= 128
        assert errno in (27, 28)  # file too large, no space left
        _, errno = await one.value(2)
        assert errno == 28


@in_loop
async def test_files_of_one_tenant_never_reach_another_through_tmp(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    before = os.listdir("/tmp")
    open("/tmp/mark", "w").write("x")
    return before
"""
    async with bench(tmp_path) as made:
        first, second = await asyncio.gather(made.run(source, tenant="a"), made.run(source, tenant="b"))
        assert await first.value() == []
        assert await second.value() == []
        assert await first.value() == ["mark"]

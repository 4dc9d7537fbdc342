"""What a function can do to processes: only its own exist, and no call widens that."""

import os
from pathlib import Path

import pytest
from doubles.loop import in_loop
from doubles.process_bench import bench

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("made_either_way")]


@in_loop
async def test_only_its_own_processes_exist(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    try:
        os.kill(event, 0)
        alive = True
    except OSError:
        alive = False
    return [[int(p) for p in os.listdir("/proc") if p.isdigit()], os.getpid(), os.getppid(), alive]
"""
    async with bench(tmp_path) as made:
        one, other = await made.run(source), await made.run(source)
        processes, pid, parent, alive = await one.value(other.clone.pid)
        assert processes in ([1], [1, 2])  # of a function template: the one that holds its namespaces is the first
        assert (pid, parent) == (len(processes), 0)
        assert not alive


@in_loop
async def test_no_right_is_left_and_none_can_be_won(tmp_path: Path) -> None:
    source = """
import os
def handler(event, context):
    status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
    try:
        os.setuid(0)
        root = True
    except OSError:
        root = False
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Threads")
    return {"root": root, "uids": os.getresuid(), "gids": os.getresgid(), "groups": len(os.getgroups()),
            **{name: status[name].strip() for name in wanted}, "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1]}
"""
    async with bench(tmp_path) as made:
        seen = await (await made.run(source)).value()
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(seen[name], 16) == 0, name
        assert seen["NoNewPrivs"] == "1"
        assert seen["Seccomp"] == "2"
        assert seen["Threads"] == "1"
        assert not seen["root"]
        assert seen["uids"] == [1000] * 3
        assert set(seen["descriptors"]) <= {"0", "1", "2", "3"}  # /dev/null, the two pipes, the channel
        if os.geteuid() == 0:
            assert seen["groups"] == 0


@in_loop
async def test_calls_that_reach_beyond_are_refused(tmp_path: Path) -> None:
    source = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *map(ctypes.c_long, arguments))
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def handler(event, context):
    return {name: call(number, *arguments) for name, (number, *arguments) in event.items()}
"""
    calls = {
        "ptrace": (101, 16, 1),
        "unshare user": (272, 0x10000000),
        "unshare mnt": (272, 0x20000),
        "setns": (308, 3, 0),
        "clone user": (56, 0x10000000 | 17, 0, 0, 0, 0),
        "clone net": (56, 0x40000000 | 17, 0, 0, 0, 0),
        "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
        "bpf": (321, 0, 0, 0),
        "perf_event_open": (298, 0, 0, -1, -1, 0),
        "io_uring_setup": (425, 8, 0),
        "userfaultfd": (323, 0),
        "keyctl": (250, 0, 0, 0),
        "kexec_load": (246, 0, 0, 0, 0),
        "init_module": (175, 0, 0, 0),
        "sethostname": (170, 0, 0),
        "personality": (135, 0x40000),
        "reboot": (169, 0, 0, 0),
        "syslog": (103, 2, 0, 0),
    }
    async with bench(tmp_path) as made:
        one = await made.run(source)
        assert set((await one.value(calls)).values()) == {"EPERM"}
        assert await one.value({"clone3": (435, 0, 0)}) == {"clone3": "ENOSYS"}
        assert await one.value({"x32 getpid": (0x40000000 + 39,)}) == {"x32 getpid": "ENOSYS"}


@in_loop
async def test_ordinary_programs_still_run(tmp_path: Path) -> None:
    source = """
import concurrent.futures, multiprocessing, os, subprocess, sys, threading
def square(number):
    return number * number
def handler(event, context):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(square, range(8)))
    done = subprocess.run([sys.executable, "-c", "import ssl, sqlite3; print(6 * 7)"], capture_output=True, text=True)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        processes = pool.map(square, range(4))
    return [threads, done.stdout, done.stderr, processes]
"""
    async with bench(tmp_path) as made:
        threads, output, error, processes = await (await made.run(source, memory_mb=512)).value()
        assert error == ""
        assert output == "42\n"
        assert threads == [number * number for number in range(8)]
        assert processes == [0, 1, 4, 9]


@in_loop
async def test_what_it_leaves_running_ends_with_it(tmp_path: Path) -> None:
    source = """
import os, subprocess, sys
def handler(event, context):
    for session in (False, True):
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], start_new_session=session)
    if os.fork() == 0:
        if os.fork() == 0:
            while True: pass
        os._exit(0)
    os.wait()
    return True
"""
    async with bench(tmp_path) as made:
        one = await made.run(source)
        assert await one.value()
        usage = one.clone.usage()
        assert usage is not None
        assert usage.processes == 4
        await one.clone.kill("over")
        # bench() fails when a process is left


@in_loop
async def test_the_platform_is_not_importable_and_user_names_are_free(tmp_path: Path) -> None:
    source = """
import importlib, sys
def handler(event, context):
    found = []
    for name in event:
        try:
            importlib.import_module(name)
            found.append(name)
        except ImportError:
            pass
    return [found, [name for name in sys.modules if name.partition(".")[0] in event], sys.path, sys.argv]
"""
    names = ["workers", "graph", "tracing", "orchestrator", "msgspec", "pip", "template", "syscalls", "isolation", "runtime"]
    async with bench(tmp_path) as made:
        found, loaded, path, argv = await (await made.run(source)).value(names)
        assert found == []
        assert loaded == []
        assert path[0] == "/var/task"
        assert not [entry for entry in path if "packages" in entry]
        assert argv == [""]
        one = await made.run({f"{name}.py": "me = 1\n" for name in names} | {"handler.py": source})
        assert (await one.value(names))[0] == names

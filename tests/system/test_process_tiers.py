"""The tiers an ordinary user gets: with and without a user namespace of the node's own, and with no isolation at all."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.needs_user]

PRELUDE = """
import asyncio, os, sys
from pathlib import Path
from workers.drivers import syscalls
from workers.drivers.process import isolation
folder = Path(sys.argv[1])
"""
NO_NAMESPACES = """
uid, gid = os.getuid(), os.getgid()
syscalls.unshare(syscalls.NEWUSER)
isolation.map_ids(os.open("/proc", os.O_PATH), 0, uid, 0, gid)
Path("/proc/sys/user/max_user_namespaces").write_text("0")
syscalls.drop_bounding_set()
syscalls.drop_capabilities()
"""
IMPORTS = """
sys.path.insert(0, sys.argv[2])
from doubles.process_bench import ECHO, bench
from workers.ports import DriverError
"""
SECRET_SEARCH = """
import os
def handler(event, context):
    found = []
    for folder, _, names in os.walk("/"):
        if folder.startswith(("/proc", "/usr", "/dev")):
            continue
        for name in names:
            try:
                if event in open(os.path.join(folder, name), errors="replace").read():
                    found.append(os.path.join(folder, name))
            except OSError:
                pass
    return found
"""


def run(script: str, folder: Path) -> str:
    """The script's output, in a process of its own, single-threaded when it begins."""
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + script, str(folder), tests],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BODY = (
    IMPORTS
    + f"""
SEARCH = {SECRET_SEARCH!r}
async def main():
    async with bench(folder) as made:
        assert made.report.tier == "userns", made.report
        owner = await made.run("KEPT = 'plum-4711'\\n" + ECHO)
        other = await made.run(SEARCH)
        assert await owner.value(1) == 1
        assert await other.value("plum-4711") == []
        print(made.report.tier, made.driver._layers._process is None, os.geteuid())
asyncio.run(main())
"""
)


def test_a_node_in_its_own_user_namespace_hands_code_in_itself(tmp_path: Path) -> None:
    tier, itself, uid = run(
        "assert isolation.enter_user_namespace()\nassert not isolation.enter_user_namespace()\n" + BODY, tmp_path
    ).split()
    assert (tier, itself) == ("userns", "True")
    assert uid != "0"


def test_a_node_outside_of_one_has_a_process_that_does(tmp_path: Path) -> None:
    tier, itself, _ = run(BODY, tmp_path).split()
    assert (tier, itself) == ("userns", "False")


def test_a_process_with_threads_stays_where_it_is(tmp_path: Path) -> None:
    script = """
import threading
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
before = os.readlink("/proc/self/ns/user")
assert not isolation.enter_user_namespace()
assert os.readlink("/proc/self/ns/user") == before
stop.set()
thread.join()
"""
    run(script, tmp_path)


def test_without_any_isolation_it_refuses_or_serves_one_tenant(tmp_path: Path) -> None:
    script = (
        NO_NAMESPACES
        + IMPORTS
        + """
assert not isolation.enter_user_namespace()
async def main():
    try:
        async with bench(folder / "a"):
            raise AssertionError("it started")
    except DriverError as error:
        assert "--allow-no-isolation" in str(error), error
    async with bench(folder / "b", allow_no_isolation=True) as made:
        assert made.report.tier == "none" and not made.report.isolated
        assert any(line.startswith("namespaces:") for line in made.report.missing)
        source = '''
import os, subprocess, sys
def handler(event, context):
    for session in (False, True)[: event]:
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], start_new_session=session)
    status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
    return [status["NoNewPrivs"].strip(), status["Seccomp"].strip(), sorted(os.listdir("/proc/self/fd"))[:-1], os.getcwd()]
'''
        one = await made.run(source)
        privileges, filtered, descriptors, cwd = await one.value(1)
        assert (privileges, filtered) == ("1", "2")
        assert set(descriptors) <= {"0", "1", "2", "3"}, descriptors
        assert Path(cwd).parent == folder / "b"
        try:
            await made.run(ECHO, tenant="second")
            raise AssertionError("a second tenant was served")
        except DriverError as error:
            assert "one tenant" in str(error)
        await one.clone.kill("over")
    print("done")
asyncio.run(main())
"""
    )
    assert run(script, tmp_path) == "done\n"

"""A node's mounts are its own, and end with it however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

PROGRAM = """
import os, sys, time
from workers import mounts
assert mounts.enter_private_mounts()
mounts.mount("tmpfs", sys.argv[1], "tmpfs", mounts.NO_DEVICES, "size=1m")
open(sys.argv[1] + "/inside", "w").close()
print("mounted", flush=True)
time.sleep(60)
"""


def test_a_killed_node_leaves_no_mount(tmp_path: Path) -> None:
    own = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert own.stdout is not None
        assert own.stdout.readline() == b"mounted\n"
        assert str(tmp_path) in Path(f"/proc/{own.pid}/mountinfo").read_text()
        assert list(tmp_path.iterdir()) == []
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    finally:
        own.send_signal(signal.SIGKILL)
        own.wait(10)
        own.stdout.close()  # type: ignore[union-attr]
    os.rmdir(tmp_path)  # nothing keeps it busy


def test_what_the_host_unmounts_is_not_kept_busy(tmp_path: Path) -> None:
    """The other direction stays open, or an operator could not take a disk away while a node runs."""
    script = '''
import subprocess, sys
from workers import mounts
assert mounts.enter_private_mounts()
mounts.mount("none", "/", None, 16384 | 1 << 20)  # this process plays the host: shared, as systemd leaves it
mounts.mount("tmpfs", sys.argv[1], "tmpfs")
inside = """
import sys
from workers import mounts
assert mounts.enter_private_mounts()
print("in", flush=True)
sys.stdin.readline()
print(sys.argv[1] in open("/proc/self/mountinfo").read(), flush=True)
"""
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
node = subprocess.Popen([sys.executable, "-c", inside, sys.argv[1]], **pipes)
assert node.stdout.readline() == b"in\\n"
mounts.unmount(sys.argv[1])
node.stdin.write(b"\\n")
node.stdin.close()
assert node.stdout.readline() == b"False\\n"
assert node.wait(10) == 0
'''
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()

"""A node's own control group for the CPU: it is in it while its driver runs, and nothing is left of it after."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.drivers import limits
from workers.drivers.limits import detect, name_of, sweep

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

NODE = """
import pathlib, os, subprocess, sys
from workers.drivers.limits import Cgroups, detect, name_of
def found():
    return detect(pathlib.Path("/proc/self/mountinfo").read_text(), pathlib.Path("/proc/self/cgroup").read_text())
def own(pid="self"):
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.split(":", 2)[2] for line in lines if "cpu" in line.split(":")[1].split(","))
layout, before = found(), own()
one, other = (Cgroups(layout, name_of(pathlib.Path(name), os.getpid())) for name in ("/one", "/other"))
for groups in (one, other):
    groups.open()
    groups.own_weight()
inside = own()
child = subprocess.Popen(["sleep", "60"])
assert found() == layout, (found(), layout)
assert own(child.pid) == inside
print(inside, flush=True)
sys.stdin.readline()
other.close()
assert own() == inside
one.close()
assert [own(), own(child.pid)] == [before, before]
child.kill()
child.wait()
print("back", flush=True)
"""


@pytest.fixture
def node() -> "Iterator[subprocess.Popen[str]]":
    layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if "cpu" not in layout.v1:
        pytest.skip("the CPU controller of this machine is not of cgroup v1: a node steps into a leaf of its own there")
    with subprocess.Popen([sys.executable, "-c", NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def folder_of(group: str) -> Path:
    layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    return Path(layout.v1["cpu"]) / group.rpartition("/")[2]


def test_it_weighs_more_than_all_sandboxes_and_steps_back(node: "subprocess.Popen[str]") -> None:
    assert node.stdout is not None
    group = folder_of(node.stdout.readline().strip())
    assert group.name == f"{name_of(Path('/one'), node.pid)}-node"
    sandboxes = group.with_name(group.name.removesuffix("-node"))
    assert int((group / "cpu.shares").read_text()) > int((sandboxes / "cpu.shares").read_text())
    out, _ = node.communicate("on\n", timeout=30)
    assert out == "back\n"
    assert not [path for path in group.parent.iterdir() if path.name.split("-")[2:3] == [str(node.pid)]]


def test_of_a_node_that_was_killed_the_next_one_removes_it(
    node: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOST_PIDS", os.readlink("/proc/self/ns/pid"))
    assert node.stdout is not None
    group = folder_of(node.stdout.readline().strip())
    os.kill(node.pid, signal.SIGKILL)
    node.wait(10)
    layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    sweep(layout, name_of(Path("/one"), os.getpid()))
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group.exists()

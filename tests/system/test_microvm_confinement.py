"""What a QEMU process can do to the host, looked at from outside and tried from inside. No guest runs in it here."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from workers.drivers.cells import Cell
from workers.drivers.limits import Cgroups, Layout, detect
from workers.drivers.microvm import confinement
from workers.drivers.microvm.confinement import ENVIRONMENT, SYSTEM_CALLS, Confinement
from workers.drivers.microvm.taps import Tap, make_tap

pytestmark = pytest.mark.system
needs_root = pytest.mark.needs_root

QEMU = "/usr/bin/qemu-system-x86_64"
MEMORY_MB = 64
BARE = ["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", str(MEMORY_MB)]


@contextlib.contextmanager
def confining(*folders: Path) -> Iterator[Confinement]:
    made = Confinement(folders)
    made.open()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def groups(name: str) -> Iterator[Cgroups]:
    layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    made = Cgroups(layout, f"foreglow-test{name}-{os.getpid()}")
    made.open()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def network() -> Iterator[Tap]:
    found: list[Tap] = []
    thread = threading.Thread(target=lambda: found.append(make_tap()))
    thread.start()
    thread.join()
    with found[0] as tap:
        yield tap


@dataclass
class Qemu:
    process: "subprocess.Popen[bytes]"
    status: dict[str, str]

    @property
    def proc(self) -> Path:
        return Path(f"/proc/{self.process.pid}")


@contextlib.contextmanager
def running(
    confined: Confinement,
    *more: str,
    user: int = 0,
    cell: Cell | None = None,
    namespace: int = -1,
    descriptors: tuple[int, ...] = (),
) -> Iterator[Qemu]:
    """A real QEMU that has come up and answers on its monitor."""
    ours, theirs = socket.socketpair()
    monitor = ["-chardev", f"socket,id=mon,fd={theirs.fileno()}", "-mon", "chardev=mon,mode=control"]
    command = confined.command([QEMU, *BARE, "-machine", "microvm", *monitor, *SYSTEM_CALLS, *more], user, cell, namespace)
    process = subprocess.Popen(
        command, pass_fds=(theirs.fileno(), *descriptors), env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    theirs.close()
    ours.settimeout(20)
    try:
        greeting = ours.recv(4096)
        if not greeting:
            raise AssertionError(process.communicate(timeout=10)[1].decode())
        assert "QMP" in json.loads(greeting)
        lines = (Path(f"/proc/{process.pid}/status")).read_text().splitlines()
        yield Qemu(process, {name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    finally:
        process.kill()
        process.communicate(timeout=10)
        ours.close()


@needs_root
def test_it_has_a_user_of_its_own_no_capability_and_a_filter_of_system_calls() -> None:
    with confining() as confined:
        user = confined.take_user()
        with running(confined, user=user) as qemu:
            assert qemu.status["Uid"].split() == qemu.status["Gid"].split() == [str(user)] * 4
            assert qemu.status["Groups"] == ""
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(qemu.status[name], 16) == 0, name
            assert qemu.status["NoNewPrivs"] == "1"
            assert qemu.status["Seccomp"] == "2"
            assert (qemu.proc / "oom_score_adj").read_text().strip() == confinement.OOM_SCORE
            limits = (qemu.proc / "limits").read_text()
            for name, most in (("Max core file size", 0), ("Max open files", 256), ("Max processes", confinement.THREADS)):
                assert re.search(rf"^{name} +{most} +{most} ", limits, re.MULTILINE), limits
            told = {pair.partition(b"=")[0] for pair in (qemu.proc / "environ").read_bytes().split(b"\0") if pair}
            assert told <= {b"PATH", b"LANG", b"PWD", b"OLDPWD"}
        confined.give_back_user(user)


@needs_root
def test_it_sees_its_program_and_what_it_is_given_and_can_write_nothing(tmp_path: Path) -> None:
    given, secret = tmp_path / "given", tmp_path / "secret"
    given.mkdir()
    secret.write_text("secret")
    with confining(given) as confined:
        (given / "later").write_text("seen")  # what comes after the jail was made
        with running(confined, user=confined.take_user()) as qemu:
            root = qemu.proc / "root"
            assert sorted(os.listdir(root)) == sorted({"dev", "etc", "proc", "usr", given.parts[1], *_links()})
            assert os.listdir(root / "etc") == ["ld.so.cache"]
            assert sorted(os.listdir(root / "dev")) == ["null", "random", "urandom", "zero"]
            assert (root / str(given)[1:] / "later").read_text() == "seen"
            assert not (root / str(secret)[1:]).exists()
            points = [line.split() for line in (qemu.proc / "mountinfo").read_text().splitlines()]
            assert all("ro" in fields[5].split(",") for fields in points if fields[4] != "/proc"), points
            assert os.readlink(qemu.proc / "ns" / "mnt") != os.readlink("/proc/self/ns/mnt")


def _links() -> set[str]:
    return {name for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin") if os.path.islink(f"/{name}")}


@needs_root
def test_who_gets_into_it_reads_no_file_of_the_host_and_sees_no_other_process(tmp_path: Path) -> None:
    script = (
        "id -u; for what in /etc/passwd /root /proc/1/environ /proc/%d/status /dev/net/tun /dev/kvm; do "
        '[ -e "$what" ] && echo "there: $what"; done; '
        "for where in / /tmp /usr /dev %s; do echo x 2>/dev/null >$where/x && echo wrote $where; done; "
        "mount -t tmpfs none /usr 2>/dev/null && echo mounted; kill -0 %d 2>/dev/null && echo signalled; "
        "nsenter --net=/proc/1/ns/net true 2>/dev/null && echo entered; true"
    )
    with confining(tmp_path) as confined, network() as tap:
        user = confined.take_user()
        program = ["/bin/sh", "-c", script % (os.getpid(), tmp_path, os.getpid())]
        done = subprocess.run(
            confined.command(program, user, None, tap.namespace),
            check=False,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=20,
        )
        assert (done.stdout.split(), done.returncode) == ([str(user)], 0)


@needs_root
def test_its_network_is_its_guests_alone_and_the_tap_goes_with_it() -> None:
    with confining() as confined, network() as tap:
        card = ["-netdev", f"tap,id=n0,fd={tap.tap}", "-device", "virtio-net-device,netdev=n0"]
        where = tap.namespace
        with running(confined, *card, user=confined.take_user(), namespace=where, descriptors=(tap.tap,)) as qemu:
            assert os.stat(qemu.proc / "ns" / "net").st_ino == os.fstat(tap.namespace).st_ino
            tap.handed_over()
            assert "tap0" in _links_in(tap)
        assert "tap0" not in _links_in(tap)


def _links_in(tap: Tap) -> str:
    entered = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{tap.namespace}", "ip", "-br", "link"]
    return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


@needs_root
def test_its_memory_and_processes_are_held_by_its_cell() -> None:
    with confining() as confined, groups("cell") as cgroups:
        cell = cgroups.take(256, 0)
        with running(confined, user=confined.take_user(), cell=cell) as qemu:
            assert cell.members() == [qemu.process.pid]
            assert (cell.memory_bytes() or 0) > 1 << 20
            assert (cell.processes() or 0) >= 2
        assert cell.remove()


@needs_root
def test_in_a_group_of_cgroup_v2_it_lives_and_ends_the_same_way() -> None:
    """Machines of development have v2 without controllers: what is tested is how QEMU gets in, and how all of it is ended."""
    found = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if not found.v2:
        pytest.skip("no cgroup v2 is mounted here")
    made = Cgroups(Layout({}, found.v2), f"foreglow-testv2-{os.getpid()}")
    if refused := made.open():
        pytest.skip(refused[0])
    if not made.usable:
        made.open_v2(())
    try:
        with confining() as confined:
            cell = made.take(256, 0)
            with running(confined, user=confined.take_user(), cell=cell) as qemu:
                assert cell.members() == [qemu.process.pid]
                own = (qemu.proc / "cgroup").read_text().splitlines()
                assert any(line.startswith("0::") and line.endswith(cell.folders[0].removeprefix(found.v2)) for line in own)
                cell.kill()
                assert qemu.process.wait(10) == -9
            assert cell.remove()
            gone = made.take(256, 0)
            command = confined.command(["/bin/echo", "started"], confined.take_user(), gone)
            assert gone.remove()
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
            assert (done.returncode, done.stdout) == (126, "")
    finally:
        made.close()


@needs_root
def test_it_is_not_started_where_its_cell_is_gone() -> None:
    with confining() as confined, groups("gone") as cgroups:
        cell = cgroups.take(256, 0)
        command = confined.command(["/bin/echo", "started"], confined.take_user(), cell)
        assert cell.remove()
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
        assert (done.returncode, done.stdout) == (126, "")


@pytest.mark.parametrize("privileged", [pytest.param(True, marks=needs_root), False], ids=["root", "own user"])
def test_it_ends_with_the_node(privileged: bool) -> None:
    program = f"""
import subprocess, time
from workers.drivers.microvm.confinement import Confinement
one = Confinement()
one.open()
user = one.take_user() if {privileged} else 0
print(subprocess.Popen(one.command(["/bin/sleep", "60"], user)).pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        _until(lambda: _name(pid) == "sleep")
        node.send_signal(signal.SIGKILL)
        node.wait(10)
    _until(lambda: _name(pid) != "sleep")


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text()
        return "" if fields.rpartition(")")[2].split()[0] in "ZX" else fields.partition("(")[2].rpartition(")")[0]
    return ""


def _until(holds: object) -> None:
    end = time.monotonic() + 10
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_without_privilege_it_says_what_is_missing_and_still_runs() -> None:
    if os.geteuid() == 0:
        program = "from workers.drivers.microvm.confinement import Confinement\nprint(*Confinement().open(), sep='\\n')"
        command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--", sys.executable, "-c", program]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    else:
        said = Confinement().open()
    assert [line.split(":")[0] for line in said] == ["host user", "files"]
    with running(Confinement()) as qemu:
        assert qemu.status["NoNewPrivs"] == "1"
        assert qemu.status["Seccomp"] == "2"


@pytest.mark.parametrize("privileged", [pytest.param(True, marks=needs_root), False], ids=["root", "own user"])
def test_it_is_not_started_for_a_node_that_is_gone_already(privileged: bool) -> None:
    """A node that dies while its command line is at work sends no signal: whoever is the parent then is not the node."""
    confined = Confinement()
    confined.open()
    try:
        command = confined.command(["/bin/echo", "started"], confined.take_user() if privileged else 0)
        orphan = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]
        done = subprocess.run(orphan, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
        assert (done.returncode, done.stdout) == (126, "")
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
        assert (done.returncode, done.stdout) == (0, "started\n")
    finally:
        confined.close()

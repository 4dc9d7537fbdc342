"""The accelerator probe against stand-ins for a guest that boots, hangs, dies: what hardware really does here is not asked."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from workers.drivers.frames import FromInit
from workers.drivers.microvm.accel import AccelError, Choice, choose
from workers.framing import encode

STANDIN = """
import os, sys, time
accel, how, init = sys.argv[1], sys.argv[2], int(sys.argv[3])
assert accel == "kvm"
if how == "boots":
    os.write(init, bytes.fromhex(sys.argv[4]))
    time.sleep(60)
elif how == "boots in pieces":
    for byte in bytes.fromhex(sys.argv[4]):
        os.write(init, bytes([byte]))
    time.sleep(60)
elif how == "hangs":
    time.sleep(60)
elif how == "nonsense":
    os.write(init, b"\\xff" * 64)
    time.sleep(60)
elif how == "closes":
    for descriptor in range(3, 64):
        try:
            os.close(descriptor)
        except OSError:
            pass
    time.sleep(60)
elif how == "dies":
    sys.stderr.write("KVM internal error. Suberror: 1\\n")
    os.abort()
elif how == "refuses":
    sys.exit("Could not access KVM kernel module")
"""
STANDING = encode(FromInit.STANDING, 0, b"{}")


class Standin:
    def __init__(self, folder: Path, how: str) -> None:
        self.program = folder / "standin.py"
        self.program.write_text(STANDIN)
        self.how = how
        self.asked = 0

    def line(self, accel: str, ends: Sequence[int]) -> list[str]:
        self.asked += 1
        return [sys.executable, "-I", "-S", str(self.program), accel, self.how, str(ends[2]), STANDING.hex()]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


@pytest.mark.parametrize("how", ["boots", "boots in pieces"])
def test_a_guest_that_boots_decides_for_kvm(tmp_path: Path, device: Path, how: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    assert choose("auto", Standin(tmp_path, how).line, 20, device).accel == "kvm"
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("how", "timeout_s", "why"),
    [
        ("hangs", 0.5, "did not boot within 0.5 s"),
        ("dies", 20, "ended with signal 6: KVM internal error"),
        ("refuses", 20, "ended with exit 1: Could not access KVM kernel module"),
        ("nonsense", 20, "broke off"),
        ("closes", 5, "closed its ports and did not end"),
    ],
)
def test_a_guest_that_does_not_boot_decides_for_tcg_and_says_why(
    tmp_path: Path, device: Path, how: str, timeout_s: float, why: str
) -> None:
    before, running = set(os.listdir("/proc/self/fd")), children()
    choice = choose("auto", Standin(tmp_path, how).line, timeout_s, device)
    assert choice.accel == "tcg"
    assert why in choice.why
    assert set(os.listdir("/proc/self/fd")) == before
    assert children() == running


def children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


def test_without_a_device_nothing_is_started(tmp_path: Path) -> None:
    standin = Standin(tmp_path, "boots")
    choice = choose("auto", standin.line, 20, tmp_path / "nowhere")
    assert choice == Choice("tcg", f"no hardware virtualisation: {tmp_path}/nowhere: it is not there")
    assert standin.asked == 0


def test_a_program_that_does_not_start_is_a_guest_that_does_not_boot(tmp_path: Path, device: Path) -> None:
    choice = choose("auto", lambda _accel, _ends: ["/nowhere/qemu"], 20, device)
    assert choice.accel == "tcg"
    assert "/nowhere/qemu" in choice.why


@pytest.mark.parametrize("named", ["tcg", "kvm"])
def test_what_is_named_is_taken_at_its_word(tmp_path: Path, device: Path, named: str) -> None:
    standin = Standin(tmp_path, "hangs")
    assert choose(named, standin.line, 20, device).accel == named
    assert standin.asked == 0


def test_a_wrong_name_is_told_with_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(AccelError, match="'xen' is not one of auto, tcg, kvm"):
        choose("xen", Standin(tmp_path, "boots").line)


def test_another_users_device_is_not_tried(tmp_path: Path, device: Path) -> None:
    if os.geteuid() == 0:
        assert choose("auto", Standin(tmp_path, "boots").line, 20, device).accel == "kvm"
        return
    device.chmod(stat.S_IWUSR)
    assert "may not open it" in choose("auto", Standin(tmp_path, "boots").line, 20, device).why

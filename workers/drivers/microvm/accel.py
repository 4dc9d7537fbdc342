"""Hardware virtualisation or emulation: found by booting a guest, since a device that opens promises nothing.

Nested and partial virtualisation is common: /dev/kvm can be opened, and a guest then hangs, dies, or is emulated after all.
"""

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from workers.drivers.frames import FromInit
from workers.framing import FrameError, FrameParser

ACCELS = ("auto", "tcg", "kvm")
DEVICE = Path("/dev/kvm")
PROBE_TIMEOUT_S = 15.0
"""A guest under KVM says within two seconds that it stands."""
MAX_WORDS = 300

Line = Callable[[str, Sequence[int]], list[str]]
"""(accel, descriptors of monitor, channel, init) -> the command line of a guest that boots."""


class AccelError(Exception):
    """The setting names none that there is; the message says which there are."""


class Choice(msgspec.Struct, frozen=True):
    """`accel`: tcg | kvm. `why`: in words, for the log and the isolation report."""

    accel: str
    why: str


def choose(setting: str, line: Line, timeout_s: float = PROBE_TIMEOUT_S, device: Path = DEVICE) -> Choice:
    """`auto`: kvm when a guest boots with it within the time, else tcg. Others are taken at their word, without a try. Blocks.
    Raises AccelError."""
    if setting not in ACCELS:
        raise AccelError(f"accel: {setting!r} is not one of {', '.join(ACCELS)}")
    if setting != "auto":
        return Choice(setting, "the setting says so")
    if not os.access(device, os.R_OK | os.W_OK):
        there = "this user may not open it" if device.exists() else "it is not there"
        return Choice("tcg", f"no hardware virtualisation: {device}: {there}")
    why = failure(lambda ends: line("kvm", ends), timeout_s)
    if why:
        return Choice("tcg", f"no usable hardware virtualisation: a guest {why}")
    return Choice("kvm", "a guest booted with it")


def failure(line: Callable[[Sequence[int]], list[str]], timeout_s: float) -> str:
    """Why the guest did not boot, continuing "a guest ..."; empty when it did. Nothing of it is left. Blocks."""
    pairs = [socket.socketpair() for _ in range(3)]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    try:
        command = ["setpriv", "--pdeathsig", "KILL", *line([end.fileno() for end in theirs])]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[end.fileno() for end in theirs],
        )
    except OSError as error:
        return f"could not be started: {error.strerror}"
    else:
        for end in theirs:
            end.close()
        try:
            return _until_standing(ours[2], process, time.monotonic() + timeout_s, timeout_s)
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    finally:
        for end in (*ours, *theirs):
            end.close()


def _until_standing(init: socket.socket, process: "subprocess.Popen[bytes]", until: float, timeout_s: float) -> str:
    parser = FrameParser(max_body=1 << 16)
    while True:
        ready = select.select([init], [], [], max(0.0, until - time.monotonic()))[0]
        if not ready:
            return f"did not boot within {timeout_s:g} s"
        try:
            chunk = init.recv(65536)
            if any(frame.kind == FromInit.STANDING for frame in parser.feed(chunk)):
                return ""
        except (ConnectionError, FrameError) as error:
            return f"broke off: {error}"
        if not chunk:
            return _ended(process, until)


def _ended(process: "subprocess.Popen[bytes]", until: float) -> str:
    try:
        code = process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "closed its ports and did not end"
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    words = b""
    with contextlib.suppress(OSError):
        words = process.stderr.read() or b""
    said = " ".join(words.decode(errors="replace").split())[-MAX_WORDS:]
    how = f"signal {-code}" if code < 0 else f"exit {code}"
    return f"ended with {how}{': ' + said if said else ''}"

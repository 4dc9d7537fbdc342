"""A QEMU process: its command line, and how it is started, confined, talked to and ended."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from workers.drivers.microvm.confinement import ENVIRONMENT, SYSTEM_CALLS
from workers.drivers.microvm.image import GuestImage, machine_mb
from workers.drivers.microvm.qmp import GONE, Qmp
from workers.drivers.microvm.taps import GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX
from workers.drivers.wire import OutputPipe
from workers.ports import DriverError

BINARY = "qemu-system-x86_64"
"""Debian's qemu-system-x86_64-microvm is smaller and starts faster, and has no seccomp sandbox."""
CHANNEL, INIT = "foreglow.channel", "foreglow.init"
DISKS = 2
DISK_BYTES = 4 << 30
"""What the guest is told each disk holds: images are padded to it, sparse."""
SERIAL_PORTS = 3  # port 0 is for consoles
TB_MB = 64
"""Translated code (tcg): the default would be an eighth of the guest's memory, at least 32 MB, up to 1 GB."""
PROCESS_MB = 96
"""What a QEMU needs beside its guest's memory and translated code."""
MAX_WORDS = 2000  # bytes kept of what a QEMU says
KILLED_S = 10.0
KERNEL_WORDS = (
    "console=ttyS0 quiet loglevel=1 reboot=t panic=-1 mitigations=off audit=0 apparmor=0 nowatchdog init_on_alloc=0 "
    "tsc=reliable no_timer_check psi=0 lsm=capability transparent_hugepage=madvise"
)
"""What a guest's kernel need not do is not translated in every clone: no pressure figures, no security module (none has a policy
here), no huge pages that a fork copies whole (docs/decisions/0041)."""
CPUS = {"tcg": "Nehalem-v1,arat=on", "kvm": "host,migratable=on"}
"""arat: without it a clone's timer ticks 250 times a second for ever."""


class Shape(msgspec.Struct, frozen=True):
    """What all clones of one template have in common: the machine. `accel`: tcg | kvm."""

    binary: str
    accel: str
    memory_mb: int  # of the function
    tsc_khz: int
    network: bool = False

    @property
    def machine_mb(self) -> int:
        return machine_mb(self.memory_mb)

    @property
    def limit_mb(self) -> int:
        """For the control group of its QEMU."""
        return self.machine_mb + PROCESS_MB + (TB_MB if self.accel == "tcg" else 0)

    def kernel_words(self) -> str:
        words = [KERNEL_WORDS, f"tsc_early_khz={self.tsc_khz}", f"foreglow.memory_mb={self.memory_mb}"]
        words.append(f"foreglow.tmp_mb={max(64, self.memory_mb // 2)}")
        if self.network:
            words.append(f"foreglow.address={GUEST_ADDRESS}/{GUEST_PREFIX} foreglow.gateway={GUEST_GATEWAY}")
        return " ".join(words)


@dataclass(slots=True)
class Ends:
    """Socket pairs of one QEMU: `ours` stay here, `theirs` are handed over by number. The same order everywhere."""

    ours: list[socket.socket] = field(default_factory=list)
    theirs: list[socket.socket] = field(default_factory=list)

    @classmethod
    def open(cls) -> "Ends":
        """Monitor, channel, init. Raises OSError, with nothing left open."""
        ends = cls()
        try:
            for _ in range(3):
                ours, theirs = socket.socketpair()
                ends.ours.append(ours)
                ends.theirs.append(theirs)
        except OSError:
            ends.close()
            raise
        return ends

    def close_theirs(self) -> None:
        while self.theirs:
            self.theirs.pop().close()

    def close(self) -> None:
        self.close_theirs()
        while self.ours:
            self.ours.pop().close()


def arguments(
    shape: Shape,
    ends: Sequence[int],
    memory: str,
    *,
    shared: bool,
    tap: int | None = None,
    boot: GuestImage | None = None,
    images: Sequence[int] = (),
) -> list[str]:
    """QEMU's command line. `ends`: descriptors of monitor, channel, init. `memory`: path of the memory's file (empty: memory like
    any other's); `shared`: what the guest writes goes into it (the template), else it is a clone's own. `boot`: the image of a
    machine that starts; without one it waits for a state to come in. `images`: descriptors of the first disks' images."""
    monitor, channel, init = ends
    accel = f"tcg,tb-size={TB_MB}" if shape.accel == "tcg" else shape.accel
    line = [shape.binary, "-name", "foreglow", "-accel", accel, "-cpu", CPUS[shape.accel], "-smp", "1"]
    line += ["-m", str(shape.machine_mb), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    machine = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,usb=off"
    if memory:
        sharing = "on" if shared else "off"
        line += ["-object", f"memory-backend-file,id=mem,mem-path={memory},size={shape.machine_mb}M,share={sharing}"]
        machine += ",memory-backend=mem"
    line += ["-machine", machine]
    if boot is not None:  # what the kernel says when it fails is kept for the error
        line += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    else:
        line += ["-serial", "null"]
    line += SYSTEM_CALLS
    line += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]
    line += ["-device", f"virtio-serial-device,max_ports={SERIAL_PORTS}"]
    for number, (name, end) in enumerate(((CHANNEL, channel), (INIT, init)), 1):
        line += ["-chardev", f"socket,id=port{number},fd={end}"]
        line += ["-device", f"virtserialport,chardev=port{number},name={name},nr={number}"]
    line += ["-device", "virtio-rng-device"]
    for number in range(DISKS):
        if number < len(images):
            what = f"driver=file,filename=/proc/self/fd/{images[number]},locking=off"
        else:
            what = f"driver=null-co,size={DISK_BYTES},read-zeroes=on"
        line += ["-blockdev", f"{what},node-name=held{number},read-only=on"]
        line += ["-blockdev", f"driver=raw,node-name=disk{number},file=held{number},read-only=on"]
        line += ["-device", f"virtio-blk-device,drive=disk{number}"]
    if tap is not None:
        line += ["-netdev", f"tap,id=net,fd={tap}", "-device", f"virtio-net-device,netdev=net,mac={GUEST_MAC},guest_announce=off"]
    if boot is not None:
        line += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs), "-append", shape.kernel_words()]
    else:
        line += ["-incoming", "defer"]
    return line


class Qemu:
    """One QEMU that runs. `on_gone(how)` is called once, when its process has ended and been reaped."""

    def __init__(self, process: "subprocess.Popen[bytes]", monitor: socket.socket, on_gone: Callable[[str], None]) -> None:
        """Raises OSError, with nothing opened."""
        self._process = process
        self.pid = process.pid
        assert process.stdout is not None
        words = os.dup(process.stdout.fileno())
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            os.close(words)
            raise
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._words = bytearray()
        self.gone = asyncio.Event()
        self._why = ""
        self.qmp = Qmp(monitor, self._lost)
        self._loop.add_reader(self._pidfd, self._exited)
        self._said = OutputPipe(words, self._complains)
        process.stdout.close()

    def kill(self) -> None:
        """SIGKILL; `gone` is set when it has gone."""
        if not self.gone.is_set():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _lost(self, why: str) -> None:
        self._why = "" if why == GONE else why
        self.kill()

    def _complains(self, text: bytes) -> None:
        self._words = (self._words + text)[-MAX_WORDS:]

    def words(self) -> str:
        """The last it has said, and while it booted its guest's console."""
        lines = [line.strip() for line in self._words.decode(errors="replace").splitlines()]
        return "; ".join(line for line in lines if line.isprintable() and line)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = self._process.wait()
        self._said.close()
        os.close(self._pidfd)
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        words = self.words()
        self.gone.set()
        self.qmp.close(f"QEMU has ended ({how})")
        self._on_gone(self._why or f"QEMU ended with {how}{': ' + words if words else ''}")


def spawn(line: Sequence[str], descriptors: Sequence[int], monitor: socket.socket, on_gone: Callable[[str], None]) -> Qemu:
    """Starts QEMU by a command line that confines it (confinement.py), to die with this thread. Takes `monitor` over. Raises
    DriverError."""
    try:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            cwd="/",
            env=ENVIRONMENT,
        )
    except OSError as error:
        monitor.close()
        raise DriverError(f"QEMU does not start: {error}") from error
    try:
        return Qemu(process, monitor, on_gone)
    except OSError as error:  # no descriptor is left: nobody would see it end
        process.kill()
        process.wait(KILLED_S)
        assert process.stdout is not None
        process.stdout.close()
        monitor.close()
        raise DriverError(f"QEMU cannot be watched: {error.strerror}") from error

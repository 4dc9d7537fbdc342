"""What the first process of a microVM does to the machine: file systems, modules, limits, ports, entropy, code. Standard library
only; needs the privileges of the first process."""

import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
import time
from typing import Any

READ_SIZE = 8192  # a port gives at most a page at a time
ALONE_S = 0.002  # between two looks whether the host is at the other end of a port
PORTS_TIMEOUT_S = 30.0
FREEZE_S = 5.0
CGROUP = "/sys/fs/cgroup/function"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "shm": "/tmp"}  # noqa: S108

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
RNDADDENTROPY, RNDRESEEDCRNG, BLKFLSBUF = 0x40085203, 0x5207, 0x1261
RB_AUTOBOOT = 0x01234567
SYSCTLS = {
    "user/max_user_namespaces": "0",
    "vm/stat_interval": "3600",  # timers that are due in every clone as it resumes, for nothing
    "vm/compaction_proactiveness": "0",
    "kernel/sched_rt_runtime_us": "-1",  # the first process alone is of real time
}
MADV_POPULATE_READ = 22
_NR_FINIT_MODULE = 313
_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    words = [word.encode() for word in (source, target, kind)]
    check(_libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {kind} on {target}")


def put(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def privileges_gone(uid: int) -> None:
    """This process and its children are that user for good."""
    capability = 0
    while _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0:
        capability += 1  # until past the last one this kernel knows
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # else /dev/stdout could not be opened
    check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def map_programs() -> None:
    """Maps what is executed at once, not fault by fault: a fork leaves that out, and faults are dear where they are emulated."""
    for line in reading("/proc/self/maps").splitlines():
        place, rights, _ = line.split(" ", 2)
        if rights == "r-xp":
            begin, end = (int(number, 16) for number in place.split("-"))
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_POPULATE_READ)  # refused: as it was


def reset() -> None:
    _libc.reboot(RB_AUTOBOOT)


def flush(device: str) -> None:
    """What was read there before was another disk."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, BLKFLSBUF)
    finally:
        os.close(descriptor)


def reading(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


class Port:
    """A virtio-serial port as the stream socket that runtime.Channel works over. It has no end: without a host it waits."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def recv(self, _size: int) -> bytes:
        while not (chunk := os.read(self._descriptor, READ_SIZE)):
            time.sleep(ALONE_S)
        return chunk

    def recvmsg(self, size: int, _ancillary: int = 0) -> tuple[bytes, list[Any], int, None]:
        return self.recv(size), [], 0, None

    def sendall(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(self._descriptor, left) :]


class Settings:
    """The kernel's command line, what of it is ours."""

    def __init__(self, line: str) -> None:
        pairs = [word.removeprefix("foreglow.").partition("=") for word in line.split() if word.startswith("foreglow.")]
        values = {name: value for name, _, value in pairs}
        self.memory_mb, self.processes = int(values.get("memory_mb", 0)), int(values.get("processes", 128))
        self.tmp_mb = int(values.get("tmp_mb", 64))
        self.address, self.gateway = values.get("address", ""), values.get("gateway", "")


def add_entropy(urandom: int, entropy: bytes) -> None:
    """Into the kernel's pool, and at once to whoever draws from it: clones of one template would all draw the same. `urandom`: a
    descriptor of it."""
    fcntl.ioctl(urandom, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
    fcntl.ioctl(urandom, RNDRESEEDCRNG)


def unpack(files: Any, body: bytes, made: str) -> None:
    """Writes files that came inline. `files`: [path, mode with its type, bytes in `body`] of each, a folder before what is in it;
    what a link's bytes say is where it points. `made`: a folder that is there; it goes when code beside it has none."""
    at, beside, comes, alone = 0, os.path.dirname(made) + "/", False, True
    for path, mode, size in files:
        alone = alone and not path.startswith(beside)
        comes = comes or path == made
        content = body[at : at + size]
        at += size
        if mode & 0o170000 == 0o040000:
            if path != made:
                os.mkdir(path, mode & 0o7777)
        elif mode & 0o170000 == 0o120000:
            os.symlink(content, path)
        else:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o7777)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
    if not (comes or alone):
        os.rmdir(made)


def remove(files: Any, made: str) -> None:
    """What `unpack` wrote."""
    for path, mode, _ in reversed(files):
        if mode & 0o170000 == 0o040000:
            if path != made:
                os.rmdir(path)
        else:
            os.unlink(path)


def prepare_kernel() -> None:
    """File systems, modules, settings."""
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755")
    os.umask(0o022)
    os.chmod("/", 0o755)  # noqa: S103  (the kernel's first root lets everybody write)
    for name, points_to in DEVICE_LINKS.items():
        with contextlib.suppress(FileExistsError):
            os.symlink(points_to, f"/dev/{name}")
    for module in reading("/lib/modules/list").split():
        descriptor = os.open(f"/lib/modules/{module}.ko", os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(_libc.syscall(_NR_FINIT_MODULE, descriptor, b"", 0), f"module {module}")
        finally:
            os.close(descriptor)
        os.unlink(f"/lib/modules/{module}.ko")
    for name, value in SYSCTLS.items():
        put(f"/proc/sys/{name}", value)


def make_group(settings: Settings) -> None:
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    put("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids")
    os.mkdir(CGROUP)
    put(f"{CGROUP}/pids.max", str(settings.processes))
    if settings.memory_mb:
        put(f"{CGROUP}/memory.max", str(settings.memory_mb << 20))


def freeze() -> bool:
    """Stops every thread of the function; False when one does not stop."""
    put(f"{CGROUP}/cgroup.freeze", "1")
    until = time.monotonic() + FREEZE_S
    while "frozen 1" not in reading(f"{CGROUP}/cgroup.events"):
        if time.monotonic() > until:
            thaw()
            return False
        time.sleep(0.002)
    return True


def thaw() -> None:
    put(f"{CGROUP}/cgroup.freeze", "0")


def bring_up(settings: Settings) -> None:
    commands = [["link", "set", "lo", "up"]]
    if os.path.isdir("/sys/class/net/eth0") and settings.address:
        put("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")  # nobody speaks it there, and a clone would look for who does
        commands += [["address", "add", settings.address, "dev", "eth0"], ["link", "set", "eth0", "up"]]
        if settings.gateway:
            commands.append(["route", "add", "default", "via", settings.gateway])
    for command in commands:
        subprocess.run(["/bin/ip", *command], check=True)


def find_ports(*names: str) -> list[int]:
    """Descriptors of the ports with these names: the host tells of them some time after the module was loaded."""
    found: dict[str, int] = {}
    until, folder = time.monotonic() + PORTS_TIMEOUT_S, "/sys/class/virtio-ports"
    while len(found) < len(names):
        if time.monotonic() > until:
            raise OSError(f"the machine lacks a virtio-serial port: {names}")
        for device in os.listdir(folder) if os.path.isdir(folder) else ():
            with contextlib.suppress(OSError):
                name = reading(f"{folder}/{device}/name").strip()
                if name in names and name not in found:
                    found[name] = os.open(f"/dev/{device}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.005)
    return [found[name] for name in names]


def kills() -> int:
    """How often the kernel has killed for want of memory."""
    return next(int(line.split()[1]) for line in reading("/proc/vmstat").splitlines() if line.startswith("oom_kill "))

"""The system calls a sandbox is made of, over ctypes. x86_64 Linux, standard library only.

This module also runs inside a template process, which loads it by path: it imports nothing of ours. Every function
raises OSError with the call and its subject named.
"""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct

NEWTIME, NEWNS, NEWCGROUP, NEWUTS = 0x80, 0x20000, 0x0200_0000, 0x0400_0000
NEWIPC, NEWUSER, NEWPID, NEWNET = 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000
CLONE_PIDFD, CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID = 0x1000, 0x20_0000, 0x100_0000
CLONE_INTO_CGROUP = 0x2_0000_0000
SIGCHLD = 17

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MS_SLAVE = 16384, 1 << 18, 1 << 19
MNT_DETACH = 2
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_RECURSIVE, AT_EMPTY_PATH = 1, 0x80000, 0x8000, 0x1000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD = -100

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP = 1, 4, 15, 24
PR_SET_NO_NEW_PRIVS, PR_GET_TID_ADDRESS, PR_CAP_AMBIENT = 38, 40, 47
SIGKILL = 9
CAP_SYS_ADMIN = 21
LAST_CAPABILITY = 63

_NR_CAPSET, _NR_PIVOT_ROOT, _NR_SECCOMP, _NR_OPEN_TREE, _NR_MOVE_MOUNT = 126, 155, 317, 428, 429
_NR_CLONE3, _NR_CLOSE_RANGE, _NR_MOUNT_SETATTR = 435, 436, 442
_NR_LANDLOCK_CREATE, _NR_LANDLOCK_ADD, _NR_LANDLOCK_RESTRICT = 444, 445, 446
_NR_PIDFD_SEND_SIGNAL = 424
_NR_SETNS = 308

SUPPORTED = platform.machine() == "x86_64" and os.sys.platform == "linux"  # type: ignore[attr-defined]

_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter lock: a clone comes back in two processes at once
_long, _bytes = ctypes.c_long, ctypes.c_char_p
_syscall, _unshare, _mount, _umount, _sethostname = _libc.syscall, _libc.unshare, _libc.mount, _libc.umount2, _libc.sethostname
_prctl, _clone = _libc.prctl, _held.syscall
_syscall.restype = _clone.restype = _long
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_mount.argtypes = (_bytes, _bytes, _bytes, ctypes.c_ulong, _bytes)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    _check(_unshare(flags), f"unshare {flags:#x}")


def setns(descriptor: int, kind: int) -> None:
    """Enters the namespace that `descriptor` stands for, of the kind `kind`; NEWPID counts for children."""
    _check(_syscall(_long(_NR_SETNS), _long(descriptor), _long(kind)), f"setns {kind:#x}")


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    encoded = options.encode() if options else None
    result = _mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, encoded)
    _check(result, f"mount {kind or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    _check(_umount(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    _check(_syscall(_long(_NR_PIVOT_ROOT), _bytes(os.fsencode(new)), _bytes(os.fsencode(old))), f"pivot_root {new}")


def open_tree(path: str | os.PathLike[str], recursive: bool = False) -> int:
    """A detached copy of the mount tree at `path`, as a descriptor. Needs CAP_SYS_ADMIN in the mount namespace."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _check(_syscall(_long(_NR_OPEN_TREE), _long(AT_FDCWD), _bytes(os.fsencode(path)), _long(flags)), f"open_tree {path}")


def move_mount(tree: int, target: str) -> None:
    """Attaches a detached mount tree at `target`."""
    result = _syscall(_long(_NR_MOVE_MOUNT), _long(tree), _bytes(b""), _long(AT_FDCWD), _bytes(os.fsencode(target)), _long(4))
    _check(result, f"move_mount {target}")


def mount_setattr(tree: int, attributes: int, recursive: bool = False) -> None:
    """Adds mount attributes (ATTR_*) to a detached tree."""
    packed = ctypes.create_string_buffer(struct.pack("4Q", attributes, 0, 0, 0), 32)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(_syscall(_long(_NR_MOUNT_SETATTR), _long(tree), _bytes(b""), _long(flags), packed, _long(32)), "mount_setattr")


def bind(source: str, target: str, attributes: int, recursive: bool = True) -> None:
    """Bind mount with attributes added, never taken away: works where the host locked some of them."""
    tree = open_tree(source, recursive)
    try:
        mount_setattr(tree, attributes, recursive)
        move_mount(tree, target)
    finally:
        os.close(tree)


def thread_id_address() -> int:
    """Where glibc keeps the thread id of this (single) thread; 0 when it cannot be told."""
    address = ctypes.c_void_p()
    if _prctl(PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0) < 0 or not address.value:
        return 0
    return address.value if ctypes.c_int.from_address(address.value).value == os.getpid() else 0


def clone3(flags: int, tid_address: int = 0, cgroup: int = -1) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child.

    Like os.fork it runs Python's fork hooks, which a bare system call skips: without them `random` and OpenSSL repeat in
    every child. `tid_address` lets the kernel correct glibc's own note of the thread id. `cgroup`: a cgroup v2 folder.
    """
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD
    if tid_address:
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    packed = struct.pack(
        "11Q", flags, ctypes.addressof(pidfd), tid_address, 0, SIGCHLD, 0, 0, 0, 0, 0, cgroup if cgroup >= 0 else 0
    )
    arguments = ctypes.create_string_buffer(packed, len(packed))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _clone(_long(_NR_CLONE3), arguments, _long(len(packed)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, f"clone3: {os.strerror(code)}")
    return int(pid), pidfd.value


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    _check(
        _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)), f"prctl {option}"
    )


def die_with_parent() -> None:
    """SIGKILL when the thread that made this process ends. Changing user clears it: ask again after that."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)


def drop_bounding_set() -> None:
    """No exec can gain a capability any more. Needs CAP_SETPCAP."""
    for capability in range(LAST_CAPABILITY + 1):
        if _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                return  # past the last one this kernel knows
            raise OSError(ctypes.get_errno(), f"PR_CAPBSET_DROP {capability}")


def drop_capabilities(but: int = -1) -> None:
    """Effective, permitted, inheritable and ambient sets become empty, or hold `but` only (the first two; below 32)."""
    prctl(PR_CAP_AMBIENT, 4)
    kept = 1 << but if but >= 0 else 0
    header = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0), 8)
    sets = ctypes.create_string_buffer(struct.pack("6I", kept, kept, 0, 0, 0, 0), 24)
    _check(_syscall(_long(_NR_CAPSET), header, sets), "capset")


def close_range(first: int, last: int) -> None:
    _check(_syscall(_long(_NR_CLOSE_RANGE), _long(first), _long(last), _long(0)), "close_range")


def pidfd_send_signal(pidfd: int, number: int) -> None:
    _check(_syscall(_long(_NR_PIDFD_SEND_SIGNAL), _long(pidfd), _long(number), None, _long(0)), "pidfd_send_signal")


def set_hostname(name: str) -> None:
    _check(_sethostname(name.encode(), len(name)), "sethostname")


def loopback_up() -> None:
    """Brings `lo` up in the network namespace of this process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def seccomp(program: bytes) -> None:
    """Installs a BPF filter for good. Needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    packed = _FilterProgram(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _check(_syscall(_long(_NR_SECCOMP), _long(1), _long(0), ctypes.byref(packed)), "seccomp")


def landlock_version() -> int:
    """The Landlock ABI of this kernel; 0 when it has none."""
    return max(0, int(_syscall(_long(_NR_LANDLOCK_CREATE), None, _long(0), _long(1))))


def landlock_create(attributes: bytes) -> int:
    return _check(
        _syscall(_long(_NR_LANDLOCK_CREATE), _bytes(attributes), _long(len(attributes)), _long(0)), "landlock_create_ruleset"
    )


def landlock_allow(ruleset: int, access: int, folder: int) -> None:
    rule = _bytes(struct.pack("=Qi", access, folder))
    _check(_syscall(_long(_NR_LANDLOCK_ADD), _long(ruleset), _long(1), rule, _long(0)), "landlock_add_rule")


def landlock_restrict(ruleset: int) -> None:
    _check(_syscall(_long(_NR_LANDLOCK_RESTRICT), _long(ruleset), _long(0)), "landlock_restrict_self")

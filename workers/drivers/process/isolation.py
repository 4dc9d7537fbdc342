"""The steps that make a sandbox out of a process, in order. Standard library and syscalls only: runs in the template.

A template assembles the read-only root once (`enter_template`); a clone of it lives in namespaces of its own
(`enter_sandbox`), waits as a standby, and is locked for good (`Lockdown.apply`) before a tenant's byte runs.
"""

import contextlib
import os
import resource
import stat
import threading

from workers.drivers import syscalls
from workers.drivers.syscalls import (
    ATTR_NODEV,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
)

RESOLVER = "100.64.0.53"  # as in workers.networks, which a template cannot import
CODE_AT, DEPENDENCIES_AT = "/var/task", "/opt/deps"
LAYERS_AT = (CODE_AT, DEPENDENCIES_AT)
INSIDE_UID = 1000
DEVICES = ("null", "zero", "urandom", "random")
FOLDERS = ("/dev", "/etc", "/etc/ssl", "/etc/ssl/certs", "/opt", CODE_AT, DEPENDENCIES_AT, "/proc", "/tmp", "/var/empty")  # noqa: S108
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "shm": "/tmp"}  # noqa: S108
ETC = {
    "passwd": "root:x:0:0::/:/bin/false\nfunction:x:1000:1000::/tmp:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": f"nameserver {RESOLVER}\noptions timeout:2 attempts:2\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
NAMESPACES = NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID
"""Of a clone. Its network namespace is inherited (see fresh_network), its cgroup namespace made after it joined its group."""

REHEARSAL = "foreglow_rehearsal"  # a module in the template's empty code folder; a clone's code covers it
REHEARSAL_SOURCE = b"def handler(event, context):\n    print(event)\n    return event\n"
PROCESSES = 128
OPEN_FILES = 1024


def enter_user_namespace() -> bool:
    """Moves an ordinary user's process into a user and mount namespace of its own, its uid unchanged.

    There it may hand folders into sandboxes itself; without it the driver asks a small process to. Call it first thing,
    with one thread. Returns False, and changes nothing, where it is not needed (root), with more threads, or where the
    host refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    if not syscalls.SUPPORTED or threading.active_count() > 1 or _may_mount() or not _namespaces_allowed():
        return False
    try:
        syscalls.unshare(NEWUSER)
    except OSError:
        return False
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        map_ids(proc, uid, uid, gid, gid)
        syscalls.unshare(NEWNS)
        syscalls.mount("none", "/", None, MS_REC | syscalls.MS_SLAVE)
    except OSError:
        return False
    finally:
        os.close(proc)
    return True


def _may_mount() -> bool:
    try:
        os.close(syscalls.open_tree("/", recursive=True))
    except OSError:
        return False
    return True


def _namespaces_allowed() -> bool:
    """Tries in a child first: a user namespace without rights in it would be worse than none."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            syscalls.unshare(NEWUSER)
            syscalls.unshare(NEWNS)
            syscalls.mount("none", "/", None, MS_REC | syscalls.MS_SLAVE)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def map_ids(proc: int, uid: int, outside_uid: int, gid: int, outside_gid: int) -> None:
    """Maps one user and one group into the user namespace of this process. `proc`: a descriptor of /proc."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {outside_uid} 1"), ("gid_map", f"{gid} {outside_gid} 1")):
        descriptor = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def become(uid: int) -> None:
    """Root drops to a host user that owns nothing; gid is the same number."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root and the id map cannot be written
    syscalls.die_with_parent()


def enter_template(binds: list[tuple[str, str]], links: list[tuple[str, str]], masks: list[str], proc: int) -> None:
    """A user and mount namespace with a root that holds `binds` read-only, devices, a minimal /etc, and nothing else.

    `links`: (path, where it points); `masks`: folders in the root that appear empty; `proc`: a descriptor of /proc.
    """
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(NEWUSER)
    map_ids(proc, INSIDE_UID, uid, INSIDE_UID, gid)
    syscalls.unshare(NEWNS)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    trees = [_tree(source, target, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV) for source, target in binds]
    trees += [_tree(f"/dev/{name}", f"/dev/{name}", ATTR_RDONLY | ATTR_NOSUID) for name in DEVICES]
    trees.append(_tree("/proc", "/proc", 0))
    localtime = _read("/etc/localtime")
    root = "/tmp"  # any folder: it is covered, in this namespace only  # noqa: S108
    syscalls.mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    for folder in FOLDERS:
        os.makedirs(root + folder, exist_ok=True)
    for tree, target, is_folder in trees:
        _place(root + target, is_folder)
        syscalls.move_mount(tree, root + target)
        os.close(tree)
    for mask in masks:
        if os.path.isdir(root + mask):
            syscalls.bind(root + "/var/empty", root + mask, ATTR_RDONLY)
    for path, points_to in links:
        with contextlib.suppress(OSError):  # inside what is bound, where it is as on the host
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(points_to, root + path)
    for name, points_to in DEVICE_LINKS.items():
        os.symlink(points_to, f"{root}/dev/{name}")
    for name, text in ETC.items():
        _write(f"{root}/etc/{name}", text.encode())
    _write(f"{root}{CODE_AT}/{REHEARSAL}.py", REHEARSAL_SOURCE)
    if localtime:
        _write(f"{root}/etc/localtime", localtime)
    syscalls.mount("none", root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", MNT_DETACH)
    os.chdir("/")


def _tree(source: str, target: str, attributes: int) -> tuple[int, str, bool]:
    tree = syscalls.open_tree(source, recursive=True)
    if attributes:
        syscalls.mount_setattr(tree, attributes, recursive=True)
    return tree, target, stat.S_ISDIR(os.stat(source).st_mode)


def _place(path: str, is_folder: bool) -> None:
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder and not os.path.lexists(path):
        _write(path, b"")


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return b""


def enter_sandbox(proc: int, tmp_mb: int) -> None:
    """First steps of a clone in its new namespaces: identity, its own /tmp and /proc."""
    map_ids(proc, INSIDE_UID, INSIDE_UID, INSIDE_UID, INSIDE_UID)
    syscalls.set_hostname("function")
    own_tmp(tmp_mb)
    syscalls.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def own_tmp(tmp_mb: int) -> None:
    syscalls.mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={tmp_mb}m,nr_inodes=64k,mode=1777")  # noqa: S108


def fresh_network() -> None:
    """A network namespace with nothing but loopback, for the next clone to inherit. Made ahead, because the kernel takes
    half a millisecond; it belongs to the template's user namespace, so no clone has a say in it."""
    syscalls.unshare(NEWNET)
    syscalls.loopback_up()


def set_limits(tmp_mb: int, address_space_mb: int, processes: int = PROCESSES) -> None:
    """Resource limits of every process of the sandbox. `address_space_mb` 0: a cgroup holds the memory."""
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, tmp_mb << 20),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, processes),
    ):
        resource.setrlimit(what, (value, value))
    if address_space_mb:
        resource.setrlimit(resource.RLIMIT_AS, (address_space_mb << 20, address_space_mb << 20))


def attach_layers(trees: list[int]) -> None:
    """Mounts the detached trees of code and dependencies (read-only already) at their places."""
    for tree, target in zip(trees, LAYERS_AT, strict=False):
        syscalls.move_mount(tree, target)
        os.close(tree)

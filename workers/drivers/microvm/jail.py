"""The files a confined QEMU sees: its program and libraries, a few devices, its own /proc, and folders it is given to read.

A mount namespace made once a node, entered by every QEMU. Nothing in it can be written.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

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
)

DEVICES = ("null", "zero", "urandom", "random")
PROGRAMS = "/usr"
LINKS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
LIBRARY_CACHE = "/etc/ld.so.cache"
START_TIMEOUT_S = 10.0


class NoJail(Exception):
    """The namespace could not be made; the message names the step."""


def make_jail(folders: Sequence[Path], devices: Sequence[str] = DEVICES) -> int:
    """A descriptor of the mount namespace; it is gone with that and the last process in it. `folders`: absolute, there at the
    same place, read-only; what comes into them later is seen. Needs CAP_SYS_ADMIN. Raises NoJail."""
    found: list[int | OSError] = []

    def work() -> None:
        try:
            found.append(_make([str(folder) for folder in folders], devices))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=work, name="foreglow-jail", daemon=True)  # the namespace it enters ends with it
    thread.start()
    thread.join(START_TIMEOUT_S)
    if not found:
        raise NoJail(f"not made within {START_TIMEOUT_S:g} s")
    if isinstance(found[0], OSError):
        raise NoJail(str(found[0])) from found[0]
    return found[0]


def _make(folders: list[str], devices: Sequence[str]) -> int:
    syscalls.unshare(syscalls.NEWNS)  # of this thread only
    namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
        readonly = ATTR_RDONLY | ATTR_NOSUID
        trees = [_tree(PROGRAMS, readonly | ATTR_NODEV), *(_tree(folder, readonly | ATTR_NODEV) for folder in folders)]
        trees += [_tree(f"/dev/{name}", readonly) for name in devices]
        if os.path.exists(LIBRARY_CACHE):
            trees.append(_tree(LIBRARY_CACHE, readonly | ATTR_NODEV))
        root = "/tmp"  # any folder: it is covered, in this namespace only  # noqa: S108
        syscalls.mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
        for tree, path, is_folder in trees:
            os.makedirs(root + (path if is_folder else os.path.dirname(path)), exist_ok=True)
            if not is_folder:
                Path(root + path).touch()
            syscalls.move_mount(tree, root + path)
            os.close(tree)
        for name in LINKS:
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        os.makedirs(f"{root}/proc")
        syscalls.mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid,hidepid=invisible")
        syscalls.mount("none", root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        os.chdir(root)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", MNT_DETACH)
    except OSError:
        os.close(namespace)
        raise
    return namespace


def _tree(path: str, attributes: int) -> tuple[int, str, bool]:
    tree = syscalls.open_tree(path, recursive=True)
    syscalls.mount_setattr(tree, attributes, recursive=True)
    return tree, path, os.path.isdir(path)

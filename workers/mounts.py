"""Mounts of a node: they live in a namespace that ends with the node's processes. Linux, standard library only.

The drivers have system calls of their own: they run inside templates, which import nothing of ours, and code tiers do not know
them.
"""

import ctypes
import os

_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 16384, 1 << 19
_MNT_DETACH = 2

READ_ONLY, NO_SETUID, NO_DEVICES = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def enter_private_mounts() -> bool:
    """A mount namespace of this process's own: what it and its children mount is seen by nobody else, and is gone with the last
    of them, also after kill -9. Call it first thing.

    Mounts of the host still come and go in it (propagation slave): else what an operator unmounts would stay busy here.
    Returns False, and changes nothing, where the host refuses (an ordinary user: see isolation.enter_user_namespace; a
    container without CAP_SYS_ADMIN).
    """
    if _libc.unshare(_NEWNS) < 0:
        return False
    mount("none", "/", None, _MS_REC | _MS_SLAVE)
    return True


def mount(source: str, target: str | os.PathLike[str], kind: str | None, flags: int = 0, options: str = "") -> None:
    """Raises OSError naming the target."""
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode() if kind else None, flags, options.encode() or None)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {kind or source} on {os.fspath(target)}: {os.strerror(code)}")


def unmount(target: str | os.PathLike[str]) -> None:
    """Takes the mount from its place at once; who has it open, or a copy of it, goes on using it. Raises OSError."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"umount {os.fspath(target)}: {os.strerror(code)}")

"""Host users for sandboxes: numbers nobody else is likely to have, and no two nodes of a machine at the same time."""

import contextlib
import errno
import fcntl
import os
import struct
from collections import deque
from pathlib import Path

from workers.ports import DriverError

FIRST_USER, USERS = 200_000, 60_000
LOCKS = "foreglow-users"
_FLOCK = struct.Struct("hhqqi4x")  # of fcntl(2): type, whence, start, length, pid


def free_users(uid_map: str) -> tuple[int, int]:
    """(first, count) of users nobody else is likely to have, out of those mapped into this namespace."""
    best = (0, 0)
    for line in uid_map.splitlines():
        start, _, length = map(int, line.split())
        if start <= FIRST_USER and start + length >= FIRST_USER + USERS:
            return FIRST_USER, USERS
        count = length // 4
        if count > best[1]:
            best = (start + length - count, count)
    return best


def locks_folder() -> Path | None:
    """Where nodes of this machine tell each other which users they have: the same for all that could meet. None: nowhere."""
    for base in ("/run", os.environ.get("XDG_RUNTIME_DIR", "")):
        if base and os.access(base, os.W_OK | os.X_OK):
            return Path(base) / LOCKS
    return None


class HostUsers:
    """`count` users from `first` on, each of one holder at a time, over all processes that name the same `locks` folder: a taken
    user is a locked byte of a file there, and the kernel lets go of it however its holder ends. Methods take microseconds and
    run on any one thread. Without `locks` only this process's own do not meet."""

    def __init__(self, first: int, count: int, locks: Path | None = None) -> None:
        """Raises OSError when there can be no such file, or it is somebody else's."""
        self._free: deque[int] = deque(range(first, first + count))
        self._lock = -1
        if count:
            self._free.rotate(-(os.getpid() * 64 % count))  # so that two nodes hardly try the same
        if locks is not None and count:
            self._lock = _open(locks)

    def take(self) -> int:
        """Raises DriverError when all are in use."""
        for _ in range(len(self._free)):
            user = self._free.popleft()
            if self._locked(user, fcntl.F_WRLCK):
                return user
            self._free.append(user)
        raise DriverError("every host user for sandboxes is in use")

    def give_back(self, user: int) -> None:
        """Nothing runs as it any more. It is the last to be taken again."""
        self._locked(user, fcntl.F_UNLCK)
        self._free.append(user)

    def close(self) -> None:
        """Gives all back. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _locked(self, user: int, kind: int) -> bool:
        if self._lock < 0:
            return True
        try:
            fcntl.fcntl(self._lock, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, user, 1, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise DriverError(f"host users cannot be locked: {error.strerror}") from error
            return False
        return True


def host_users(first: int, count: int) -> tuple[HostUsers, list[str]]:
    """With locks where that can be, and one line when it cannot."""
    locks = locks_folder()
    why = "no folder for locks: /run is not ours to write, XDG_RUNTIME_DIR is not set"
    if locks is not None:
        try:
            return HostUsers(first, count, locks), []
        except OSError as error:
            why = f"{error.filename or locks}: {error.strerror or error}"
    return HostUsers(first, count), [f"host user: another node of this machine may take the same ones ({why})"]


def _open(locks: Path) -> int:
    with contextlib.suppress(FileExistsError):
        locks.mkdir(mode=0o700)
    state = locks.lstat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o077 or not locks.is_dir():
        raise PermissionError(errno.EPERM, "the folder is somebody else's, or others may write there", str(locks))
    return os.open(locks / "taken", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

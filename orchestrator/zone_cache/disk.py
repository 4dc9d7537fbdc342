"""The disk of a zone cache: objects in files, bounded, the least recently used go first.

A file is written aside and renamed, so that a kill leaves it whole or not there; nothing is synced, because every read is
checked by whoever asks. All objects are of one kind of size and price: order of use is all there is to weigh.
"""

import contextlib
import errno
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from pathlib import Path

import structlog

ASIDE = ".aside"
KINDS = ("chunks", "manifests")
TOUCH_EVERY_S = 60.0
"""How exactly the order of use survives a restart: it is read from the files' times."""

FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM_TRIES = 3

Key = tuple[str, str, str]
"""Tenant, kind, name."""

log = structlog.get_logger(__name__)


class ZoneDisk:
    """`max_bytes` bounds the sum of the files' sizes. Blocking and thread-safe. Names become paths: they must have been
    checked."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._touched: dict[Key, float] = {}
        self._lock = threading.Lock()
        self.bytes_held = self.evictions = self.not_kept = 0
        self._start()

    def __len__(self) -> int:
        return len(self._sizes)

    def holds(self, key: Key) -> bool:
        with self._lock:
            return key in self._sizes

    def read(self, key: Key) -> bytes | None:
        """The file's bytes, whatever became of them on the disk; None when it is not here or cannot be read."""
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
            now = time.monotonic()
            touch = now - self._touched.get(key, -TOUCH_EVERY_S) >= TOUCH_EVERY_S
            if touch:
                self._touched[key] = now
        path = self._path(key)
        try:
            if touch:
                os.utime(path)
            return path.read_bytes()
        except OSError as error:
            log.warning("zone.unreadable", object=key[2][:12], tenant=key[0], reason=error.strerror)
            self.drop(key)
            return None

    def keep(self, key: Key, stored: bytes) -> bool:
        """False when there is no room for it, or the disk does not take it."""
        if len(stored) > self._max_bytes:
            return self._not_kept()
        self._make_room(len(stored))
        for _ in range(MAKE_ROOM_TRIES):
            try:
                self._write(key, stored)
            except OSError as error:
                if error.errno not in FULL or not self._evict(4 * len(stored)):
                    log.warning("zone.not_kept", reason=error.strerror)
                    return self._not_kept()
            else:
                return True
        return self._not_kept()

    def drop(self, key: Key) -> None:
        """It is damaged, or gone."""
        with self._lock:
            self._forget(key)
        self._path(key).unlink(missing_ok=True)

    def forget(self, tenant: str) -> None:
        """Everything of the tenant goes."""
        with self._lock:
            for key in [key for key in self._sizes if key[0] == tenant]:
                self._forget(key)
        shutil.rmtree(self._folder / tenant, ignore_errors=True)

    def tenants(self) -> set[str]:
        with self._lock:
            return {key[0] for key in self._sizes}

    # -- room

    def _make_room(self, needed: int) -> None:
        over = self.bytes_held + needed - self._max_bytes
        if over > 0:
            self._evict(over)

    def _evict(self, at_least: int) -> int:
        """Bytes freed; the oldest go."""
        freed = 0
        while freed < at_least:
            with self._lock:
                if not self._sizes:
                    break
                key, size = next(iter(self._sizes.items()))
                self._forget(key)
                self.evictions += 1
            self._path(key).unlink(missing_ok=True)
            freed += size
        return freed

    def _forget(self, key: Key) -> None:
        self.bytes_held -= self._sizes.pop(key, 0)
        self._touched.pop(key, None)

    def _not_kept(self) -> bool:
        self.not_kept += 1
        return False

    # -- files

    def _write(self, key: Key, stored: bytes) -> None:
        aside, path = self._folder / ASIDE / secrets.token_hex(8), self._path(key)
        try:
            aside.write_bytes(stored)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock:
                aside.replace(path)
                self._forget(key)
                self._sizes[key] = len(stored)
                self.bytes_held += len(stored)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def _path(self, key: Key) -> Path:
        tenant, kind, name = key
        return self._folder / tenant / kind / name[:2] / name

    def _start(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._folder / ASIDE, ignore_errors=True)
        (self._folder / ASIDE).mkdir(mode=0o700)
        found: list[tuple[float, Key, int]] = []
        for kind in KINDS:
            for path in self._folder.glob(f"*/{kind}/*/*"):
                status = path.lstat()
                found.append((status.st_mtime, (path.parents[2].name, kind, path.name), status.st_size))
        for _, key, size in sorted(found):
            self._sizes[key] = size
            self.bytes_held += size
        self._make_room(0)  # the bound may be a lower one than before

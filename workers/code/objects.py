"""Objects under names: a folder, or a bucket by its URL, behind obstore. Every wait is bounded, every retry counted.

What a bucket needs beside its URL (region, endpoint, credentials, path style, plain HTTP) is in the environment, under the names
that docs/operating.md lists.
"""

import ctypes
import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

import msgspec
import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

TIMEOUTS: "ClientConfig" = {"timeout": "30s", "connect_timeout": "5s"}
ENVIRONMENT = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE", "azure": "AZURE"}
"""How the environment names what concerns a bucket of a scheme."""

RETRIES: "RetryConfig" = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=45),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
LONGEST_S = 90.0
"""How long one request may take at most: retries begin within their 45 s, the last of them takes its 30."""

STAGED = "#"
"""What obstore's folder calls a file it is still writing: NAME#NUMBER. A kill leaves it behind, and it is never listed."""

Trouble = (BaseError, OSError)
"""What any of these methods may raise; FileNotFoundError when there is no such object."""


class Stored(msgspec.Struct, frozen=True):
    """`size` in bytes; `modified`: seconds since the epoch, by the clock of where it is stored."""

    name: str
    size: int
    modified: float


class Objects:
    """Blocking; call it from a thread. Raises ValueError for a URL that is none, else see Trouble."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder: Path | None = None
        self._store: ObjectStore
        if parts.scheme == "file":
            self._folder = Path(unquote(parts.path))
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store = LocalStore(self._folder)
        else:
            self._store = from_url(url, client_options=_client(parts.scheme), retry_config=RETRIES)

    def get(self, name: str) -> bytes:
        return bytes(obstore.get(self._store, name).bytes())

    def stream(self, name: str) -> BinaryIO:
        """The content as it comes."""
        return io.BufferedReader(_Download(bytes(part) for part in obstore.get(self._store, name).stream()), 1 << 18)

    def put(self, name: str, content: bytes | BinaryIO | Path) -> None:
        """Whole or not at all."""
        if isinstance(content, bytes):
            obstore.put(self._store, name, content, use_multipart=False)
        else:
            obstore.put(self._store, name, content)

    def look(self, name: str) -> Stored | None:
        """None: there is no such object."""
        try:
            return _stored(obstore.head(self._store, name))
        except FileNotFoundError:
            return None

    def delete(self, *names: str) -> None:
        """What is not there is deleted."""
        for name in names:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, name)

    def delete_many(self, names: Sequence[str]) -> None:
        """At most 1000, in as few requests as the store can."""
        try:
            obstore.delete(self._store, list(names))
        except FileNotFoundError:  # of a folder: one was deleted meanwhile, and those behind it were left
            self.delete(*names)

    def list(self, prefix: str) -> Iterator[Sequence[Stored]]:
        """Everything below the folder `prefix`, up to 1000 at a time."""
        try:
            for found in obstore.list(self._store, prefix=prefix, chunk_size=1000):
                yield [_stored(one) for one in found]
        except FileNotFoundError:
            return

    def folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders in the folder `prefix`."""
        found = obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def settle(self) -> None:
        """Returns when what was put is on the disk: a folder's writes are in memory until then, a bucket's never are."""
        if self._folder is None:
            return
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self._folder))
        finally:
            os.close(descriptor)

    def delete_staged(self, prefix: str, older_than_s: float) -> int:
        """Deletes what killed writers left below the folder `prefix`; returns its bytes. Buckets forget it by themselves."""
        freed = 0
        if self._folder is None:
            return freed
        for parent, _, names in os.walk(self._folder / prefix):
            for name in names:
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    if STAGED in name and status.st_mtime < time.time() - older_than_s:
                        path.unlink()
                        freed += status.st_size
        return freed


def reach(url: str, timeout_s: float) -> None:
    """Asks the bucket for its first objects, once again at most. Raises ValueError, or Trouble when it does not answer."""
    options = _client(urlsplit(url).scheme)
    options["timeout"] = f"{timeout_s}s"
    store = from_url(url, client_options=options, retry_config={"max_retries": 1})
    next(iter(obstore.list(store, "layers/", chunk_size=1)), None)


def _client(scheme: str) -> "ClientConfig":
    """Naming any option of the client keeps obstore from reading those of the environment: the ones that matter are read here."""
    options: ClientConfig = {**TIMEOUTS}
    prefix = ENVIRONMENT.get(scheme, "")
    if os.environ.get(f"{prefix}_ALLOW_HTTP", "").lower() in ("1", "true", "yes"):
        options["allow_http"] = True
    if os.environ.get(f"{prefix}_PROXY_URL"):
        options["proxy_url"] = os.environ[f"{prefix}_PROXY_URL"]
    return options


class _Download(io.RawIOBase):
    """The parts of a download as a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            try:
                part = next(self._parts, None)
            except BaseError as error:
                raise OSError(f"reading the origin: {error}") from error
            if part is None:
                return 0
            self._rest = memoryview(part)
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


def _stored(meta: "ObjectMeta") -> Stored:
    return Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())

"""The origin: where layers live for good. A folder on one machine, an object store by its URL on many."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from graph.ids import TENANT_PATTERN
from workers.code.manifest import LayerError, Manifest, decode_manifest, encode_manifest, hex_of


class OriginError(Exception):
    """The origin could not be reached, or does not hold what was asked for."""


class _ChunkReader(io.RawIOBase):
    """The chunks of a download as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            while not self._rest:
                self._rest = memoryview(next(self._chunks))
        except StopIteration:
            return 0
        except (BaseError, OSError) as error:
            raise OriginError(f"reading the origin: {error}") from error
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


class Origin:
    """`url`: file:///folder, s3://bucket/prefix, gs://, az://. Credentials come from the environment, never from the URL.

    Blocking; call it from a thread. Objects: `layers/<tenant>/<hex>` (tar.zst) and the same name + `.manifest`. Raises
    OriginError.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            if parts.scheme == "file":
                folder = Path(unquote(parts.path))
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._store: obstore.store.ObjectStore = LocalStore(folder)
            else:
                self._store = from_url(url)
        except (BaseError, ValueError, OSError) as error:
            raise OriginError(f"origin_url {parts.scheme}://...: {error}") from error

    def put_layer(self, tenant: str, manifest: Manifest, archive: BinaryIO | Path) -> None:
        """Stores a layer under its digest; the manifest last, so that one with a manifest is whole."""
        name = _name(tenant, manifest.digest)
        try:
            obstore.put(self._store, name, archive)
            obstore.put(self._store, f"{name}.manifest", encode_manifest(manifest))
        except (BaseError, OSError) as error:
            raise OriginError(f"writing layer {manifest.digest[:19]} to the origin: {error}") from error

    def get_layer(self, tenant: str, digest: str) -> BinaryIO:
        """The layer's tar.zst, streamed."""
        try:
            result = obstore.get(self._store, _name(tenant, digest))
            return io.BufferedReader(_ChunkReader(bytes(chunk) for chunk in result.stream()), 1 << 18)
        except (BaseError, OSError) as error:
            raise OriginError(f"layer {digest[:19]} of tenant {tenant}: {_first_line(error)}") from error

    def manifest(self, tenant: str, digest: str) -> Manifest:
        try:
            return decode_manifest(bytes(obstore.get(self._store, f"{_name(tenant, digest)}.manifest").bytes()))
        except (BaseError, OSError, ValueError) as error:
            raise OriginError(f"layer {digest[:19]} of tenant {tenant}: {_first_line(error)}") from error

    def holds(self, tenant: str, digest: str) -> bool:
        """True when the whole layer is there."""
        try:
            obstore.head(self._store, f"{_name(tenant, digest)}.manifest")
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise OriginError(f"layer {digest[:19]} of tenant {tenant}: {_first_line(error)}") from error
        return True

    def remove_layer(self, tenant: str, digest: str) -> None:
        """The manifest first, so that one with a manifest is whole. Once more does no harm."""
        name = _name(tenant, digest)
        for part in (f"{name}.manifest", name):
            try:
                obstore.delete(self._store, part)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise OriginError(f"deleting layer {digest[:19]} of tenant {tenant}: {_first_line(error)}") from error

    def forget_tenant(self, tenant: str) -> None:
        """Deletes every layer of the tenant. Once more does no harm."""
        if not TENANT_PATTERN.match(tenant):
            raise OriginError(f"not a tenant: {tenant[:80]!r}")
        try:
            for found in obstore.list(self._store, prefix=f"layers/{tenant}"):
                obstore.delete(self._store, [one["path"] for one in found])
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise OriginError(f"deleting the layers of tenant {tenant}: {_first_line(error)}") from error


def _name(tenant: str, digest: str) -> str:
    if not TENANT_PATTERN.match(tenant):
        raise OriginError(f"not a tenant: {tenant[:80]!r}")
    try:
        return f"layers/{tenant}/{hex_of(digest)}"
    except LayerError as error:
        raise OriginError(str(error)) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "not in the origin"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

"""The origin: where code lives for good. A folder on one machine, an object store by its URL on many.

chunks/<tenant>/<first two digits>/<name>    a chunk, as workers.code.chunks packs it
layers/<tenant>/<hex>.manifest               a layer; written last, so that one with a manifest is whole
packages/<tenant>/<hex>                      what a user uploaded (tar.zst)
packages/<tenant>/<hex>.listing              what it holds; written last
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from graph.ids import TENANT_PATTERN
from workers.code.archive import Listing, decode_listing, encode_listing
from workers.code.manifest import LayerError, Manifest, check_name, decode_manifest, encode_manifest, hex_of


class OriginError(Exception):
    """The origin could not be reached, or does not hold what was asked for."""


class OldLayer(OriginError):
    """The layer is there in the form of an earlier release: `old_layer` gives it."""


class _DownloadReader(io.RawIOBase):
    """The parts of a download as a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            while not self._rest:
                self._rest = memoryview(next(self._parts))
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

    Blocking; call it from a thread. Holds no key: it stores chunks and does not know what is in them. Every method raises
    OriginError.
    """

    name = "origin"

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

    # -- layers

    def manifest(self, tenant: str, digest: str) -> Manifest:
        """The layer's manifest, checked against its digest. Raises OldLayer too."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            try:
                stored = bytes(obstore.get(self._store, _manifest(tenant, digest)).bytes())
                return decode_manifest(stored, digest)
            except LayerError:
                if self._holds(_old(tenant, digest)):
                    raise OldLayer(f"layer {digest[:19]} of tenant {tenant} is in the form of an earlier release") from None
                raise

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        """One chunk of the layer `digest` as it is stored; not checked."""
        with _told(f"chunk {name[:12]} of layer {digest[:19]} of tenant {tenant}"):
            return bytes(obstore.get(self._store, _chunk(tenant, name)).bytes())

    def holds_chunk(self, tenant: str, name: str) -> bool:
        with _told(f"chunk {name[:12]} of tenant {tenant}"):
            return self._holds(_chunk(tenant, name))

    def put_chunk(self, tenant: str, name: str, stored: bytes) -> None:
        with _told(f"writing chunk {name[:12]} of tenant {tenant}"):
            obstore.put(self._store, _chunk(tenant, name), stored, use_multipart=False)

    def put_manifest(self, tenant: str, manifest: Manifest) -> None:
        """The layer is whole from here on: its chunks must be."""
        with _told(f"writing layer {manifest.digest[:19]} of tenant {tenant}"):
            obstore.put(self._store, _manifest(tenant, manifest.digest), encode_manifest(manifest), use_multipart=False)

    def holds(self, tenant: str, digest: str) -> bool:
        """True when the whole layer is there, in whatever form."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            return self._holds(_manifest(tenant, digest))

    def remove_layer(self, tenant: str, digest: str) -> None:
        """Its chunks stay: others may share them. Once more does no harm."""
        with _told(f"deleting layer {digest[:19]} of tenant {tenant}"):
            self._delete(_manifest(tenant, digest), _old(tenant, digest))

    def old_layer(self, tenant: str, digest: str) -> BinaryIO:
        """The tar.zst of a layer that an earlier release built, streamed."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            return self._stream(_old(tenant, digest))

    # -- packages

    def put_package(self, tenant: str, listing: Listing, archive: BinaryIO | Path) -> None:
        """Stores an uploaded package under its digest."""
        name = _package(tenant, listing.digest)
        with _told(f"writing package {listing.digest[:19]} of tenant {tenant}"):
            obstore.put(self._store, name, archive)
            obstore.put(self._store, f"{name}.listing", encode_listing(listing))

    def holds_package(self, tenant: str, digest: str) -> bool:
        """True when the whole package is there."""
        with _told(f"package {digest[:19]} of tenant {tenant}"):
            return self._holds(f"{_package(tenant, digest)}.listing") or self._holds(_old(tenant, digest))

    def listing(self, tenant: str, digest: str) -> Listing:
        """What the package holds."""
        with _told(f"package {digest[:19]} of tenant {tenant}"):
            try:
                found = obstore.get(self._store, f"{_package(tenant, digest)}.listing")
            except FileNotFoundError:  # uploaded to an earlier release
                found = obstore.get(self._store, _manifest(tenant, digest))
            return decode_listing(bytes(found.bytes()))

    def package(self, tenant: str, digest: str) -> BinaryIO:
        """The package's tar.zst, streamed."""
        with _told(f"package {digest[:19]} of tenant {tenant}"):
            try:
                return self._stream(_package(tenant, digest))
            except FileNotFoundError:  # uploaded to an earlier release
                return self._stream(_old(tenant, digest))

    def remove_package(self, tenant: str, digest: str) -> None:
        """The listing first, so that one with a listing is whole. Once more does no harm."""
        name = _package(tenant, digest)
        with _told(f"deleting package {digest[:19]} of tenant {tenant}"):
            self._delete(f"{name}.listing", name)

    # -- all of a tenant's

    def forget_tenant(self, tenant: str) -> None:
        """Deletes all code of the tenant. Once more does no harm."""
        _check_tenant(tenant)
        with _told(f"deleting the code of tenant {tenant}"):
            for kind in ("layers", "packages", "chunks"):
                try:
                    for found in obstore.list(self._store, prefix=f"{kind}/{tenant}"):
                        obstore.delete(self._store, [one["path"] for one in found])
                except FileNotFoundError:
                    continue

    # -- objects

    def _holds(self, name: str) -> bool:
        try:
            obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def _delete(self, *names: str) -> None:
        for name in names:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                continue

    def _stream(self, name: str) -> BinaryIO:
        result = obstore.get(self._store, name)
        return io.BufferedReader(_DownloadReader(bytes(part) for part in result.stream()), 1 << 18)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever goes wrong becomes an OriginError that says with what."""
    try:
        yield
    except FileNotFoundError as error:
        raise OriginError(f"{what}: not in the origin") from error
    except (BaseError, OSError, ValueError) as error:
        raise OriginError(f"{what}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from error


def _manifest(tenant: str, digest: str) -> str:
    return f"layers/{_check_tenant(tenant)}/{hex_of(digest)}.manifest"


def _old(tenant: str, digest: str) -> str:
    return f"layers/{_check_tenant(tenant)}/{hex_of(digest)}"


def _package(tenant: str, digest: str) -> str:
    return f"packages/{_check_tenant(tenant)}/{hex_of(digest)}"


def _chunk(tenant: str, name: str) -> str:
    return f"chunks/{_check_tenant(tenant)}/{check_name(name)[:2]}/{name}"


def _check_tenant(tenant: str) -> str:
    if not TENANT_PATTERN.match(tenant):
        raise OriginError(f"not a tenant: {tenant[:80]!r}")
    return tenant

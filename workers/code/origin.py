"""The origin: where code lives for good. A folder on one machine, an object store by its URL on many.

chunks/<tenant>/<first two digits>/<name>    a chunk, as workers.code.chunks packs it
layers/<tenant>/<hex>.manifest               a layer; written last, so that one with a manifest is whole
layers/<tenant>/<hex>.order                  in which order its first start touched its chunks; a hint, by a node
packages/<tenant>/<hex>                      what a user uploaded (tar.zst)
packages/<tenant>/<hex>.listing              what it holds; written last
turns/<tenant>/<kind>-<random>               somebody publishes, or sweeps
owner                                        the installation that may sweep it
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import msgspec

from graph.ids import TENANT_PATTERN
from workers.code.archive import Listing, decode_listing, encode_listing
from workers.code.manifest import LayerError, Manifest, check_name, decode_manifest, encode_manifest, hex_of
from workers.code.objects import Objects, Stored, Trouble

OWNER = "owner"
KINDS = ("layers", "packages", "chunks", "turns")

MAX_ORDER_BYTES = 1 << 20
encode_order = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(list[int]).decode


class OriginError(Exception):
    """The origin could not be reached, or does not hold what was asked for."""


class OldLayer(OriginError):
    """The layer is there in the form of an earlier release: `old_layer` gives it."""


class Origin:
    """`url`: file:///folder, s3://bucket/prefix, gs://, az://. Credentials come from the environment, never from the URL.

    Blocking; call it from a thread. Holds no key: it stores chunks and does not know what is in them. Every method raises
    OriginError.
    """

    name = "origin"
    there = True

    def __init__(self, url: str) -> None:
        try:
            self._objects = Objects(url)
        except (*Trouble, ValueError) as error:
            raise OriginError(f"origin_url {urlsplit(url).scheme}://...: {error}") from error

    # -- layers

    def manifest(self, tenant: str, digest: str) -> Manifest:
        """The layer's manifest, checked against its digest. Raises OldLayer too."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            try:
                stored = self._objects.get(_manifest(tenant, digest))
                return decode_manifest(stored, digest)
            except LayerError:
                if self.holds_old(tenant, digest):
                    raise OldLayer(f"layer {digest[:19]} of tenant {tenant} is in the form of an earlier release") from None
                raise

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        """One chunk of the layer `digest` as it is stored; not checked."""
        with _told(f"chunk {name[:12]} of layer {digest[:19]} of tenant {tenant}"):
            return self._objects.get(_chunk(tenant, name))

    def holds_chunk(self, tenant: str, name: str) -> bool:
        with _told(f"chunk {name[:12]} of tenant {tenant}"):
            return self._objects.look(_chunk(tenant, name)) is not None

    def put_chunk(self, tenant: str, name: str, stored: bytes) -> None:
        with _told(f"writing chunk {name[:12]} of tenant {tenant}"):
            self._objects.put(_chunk(tenant, name), stored)

    def put_manifest(self, tenant: str, manifest: Manifest) -> None:
        """The layer is whole from here on: its chunks must be. When this returns it is on the disk, and so are they."""
        with _told(f"writing layer {manifest.digest[:19]} of tenant {tenant}"):
            self._objects.settle()
            self._objects.put(_manifest(tenant, manifest.digest), encode_manifest(manifest))
            self._objects.settle()

    def holds(self, tenant: str, digest: str) -> bool:
        """True when the whole layer is there, in whatever form."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            return self._objects.look(_manifest(tenant, digest)) is not None

    def written(self, tenant: str, digest: str) -> float:
        """When the layer's manifest was written, by the clock of the origin."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            stored = self._objects.look(_manifest(tenant, digest))
            if stored is None:
                raise FileNotFoundError(digest)
            return stored.modified

    def order(self, tenant: str, digest: str) -> Sequence[int]:
        """Numbers of the layer's chunks as a start touched them: whatever a node wrote, unchecked. Empty when none is kept."""
        with _told(f"order of layer {digest[:19]} of tenant {tenant}"):
            try:
                stored = self._objects.get(_order(tenant, digest))
            except FileNotFoundError:
                return ()
            if len(stored) > MAX_ORDER_BYTES:
                raise ValueError(f"over {MAX_ORDER_BYTES} bytes")
            return decode_order(stored)

    def put_order(self, tenant: str, digest: str, order: Sequence[int]) -> None:
        """Of a layer that is there."""
        with _told(f"writing the order of layer {digest[:19]} of tenant {tenant}"):
            if self._objects.look(_manifest(tenant, digest)) is not None:
                self._objects.put(_order(tenant, digest), encode_order(order))

    def holds_old(self, tenant: str, digest: str) -> bool:
        """True when the layer is there in the form of an earlier release."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            return self._objects.look(_old(tenant, digest)) is not None

    def old_layer(self, tenant: str, digest: str) -> BinaryIO:
        """The tar.zst of a layer that an earlier release built, streamed."""
        with _told(f"layer {digest[:19]} of tenant {tenant}"):
            return self._objects.stream(_old(tenant, digest))

    # -- packages

    def put_package(self, tenant: str, listing: Listing, archive: BinaryIO | Path) -> None:
        """Stores an uploaded package under its digest."""
        name = _package(tenant, listing.digest)
        with _told(f"writing package {listing.digest[:19]} of tenant {tenant}"):
            self._objects.put(name, archive)
            self._objects.put(f"{name}.listing", encode_listing(listing))
            self._objects.settle()

    def holds_package(self, tenant: str, digest: str) -> bool:
        """True when the whole package is there."""
        with _told(f"package {digest[:19]} of tenant {tenant}"):
            names = (f"{_package(tenant, digest)}.listing", _old(tenant, digest))
            return any(self._objects.look(name) is not None for name in names)

    def listing(self, tenant: str, digest: str) -> Listing:
        """What the package holds."""
        with _told(f"package {digest[:19]} of tenant {tenant}"):
            try:
                return decode_listing(self._objects.get(f"{_package(tenant, digest)}.listing"))
            except FileNotFoundError:  # uploaded to an earlier release
                return decode_listing(self._objects.get(_manifest(tenant, digest)))

    def package(self, tenant: str, digest: str) -> BinaryIO:
        """The package's tar.zst, streamed."""
        with _told(f"package {digest[:19]} of tenant {tenant}"):
            try:
                return self._objects.stream(_package(tenant, digest))
            except FileNotFoundError:  # uploaded to an earlier release
                return self._objects.stream(_old(tenant, digest))

    # -- all of it

    def owner(self, installation: str) -> str:
        """Whose origin this is: the first that asked."""
        with _told("asking whose origin this is"):
            try:
                return self._objects.get(OWNER).decode()
            except FileNotFoundError:
                self._objects.put(OWNER, installation.encode())
                return installation

    # -- all of a tenant's

    def tenants(self) -> set[str]:
        """Who has anything here."""
        with _told("listing the tenants"):
            return {name for kind in KINDS for name in self._objects.folders(kind)}

    def list(self, kind: str, tenant: str) -> Iterator[Sequence[Stored]]:
        """All objects of the tenant of one of KINDS, up to 1000 at a time."""
        with _told(f"listing the {kind} of tenant {tenant}"):
            yield from self._objects.list(f"{kind}/{_check_tenant(tenant)}")

    def delete(self, tenant: str, names: Sequence[str]) -> None:
        """Deletes objects that `list` named, at most 1000."""
        with _told(f"deleting code of tenant {tenant}"):
            self._objects.delete_many(names)

    def delete_staged(self, tenant: str, older_than_s: float) -> int:
        """What killed writers left; returns the bytes."""
        with _told(f"deleting what was left unfinished of tenant {tenant}"):
            return sum(self._objects.delete_staged(f"{kind}/{_check_tenant(tenant)}", older_than_s) for kind in KINDS)

    def forget_tenant(self, tenant: str) -> None:
        """Deletes all code of the tenant. Once more does no harm."""
        for kind in KINDS:
            for found in self.list(kind, tenant):
                self.delete(tenant, [one.name for one in found])

    # -- whose turn it is, see workers.code.turns

    def mark(self, tenant: str, kind: str) -> Stored:
        """Says that something of this kind goes on, until `unmark`; when by the clock of the origin."""
        name = f"turns/{_check_tenant(tenant)}/{kind}-{secrets.token_hex(8)}"
        with _told(f"marking a turn of tenant {tenant}"):
            self._objects.put(name, b"")
            stored = self._objects.look(name)
            if stored is None:
                raise FileNotFoundError(name)
            return stored

    def marks(self, tenant: str) -> Sequence[tuple[str, Stored]]:
        """What goes on of the tenant's, with the kind of each."""
        return [(one.name.rpartition("/")[2].partition("-")[0], one) for found in self.list("turns", tenant) for one in found]

    def unmark(self, mark: Stored) -> None:
        with _told("ending a turn"):
            self._objects.delete(mark.name)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever goes wrong becomes an OriginError that says with what."""
    try:
        yield
    except FileNotFoundError as error:
        raise OriginError(f"{what}: not in the origin") from error
    except (*Trouble, ValueError) as error:
        raise OriginError(f"{what}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from error


def _manifest(tenant: str, digest: str) -> str:
    return f"layers/{_check_tenant(tenant)}/{hex_of(digest)}.manifest"


def _order(tenant: str, digest: str) -> str:
    return f"layers/{_check_tenant(tenant)}/{hex_of(digest)}.order"


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

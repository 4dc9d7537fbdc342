"""Layers for tests: published into a real origin, and sources that fail the way a test wants."""

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from workers.code.chunks import chunk_key
from workers.code.layers import Source
from workers.code.manifest import PARCEL_CHUNKS, Manifest
from workers.code.origin import Origin, OriginError
from workers.code.publishing import publish_layer
from workers.versions import CodePackage, Kind, VersionSpec

CLUSTER_KEY = b"the cluster's key"


def publish(origin: Origin, files: Mapping[str, bytes], tenant: str = "acme") -> str:
    """The digest of a layer that holds these files."""
    sources = [Source(path, False, len(content), lambda content=content: io.BytesIO(content)) for path, content in files.items()]  # type: ignore[misc]
    return publish_layer(origin, tenant, chunk_key(CLUSTER_KEY, tenant), sources).digest


def version(*layers: str, tenant: str = "acme", name: str = "f", number: int = 1) -> VersionSpec:
    code, *dependencies = layers
    package = CodePackage(code, *dependencies)
    ident = f"{tenant}/{name}:{number}"
    return VersionSpec(ident, tenant, "handler:f", Kind.EVENT, "python3.11", 128, 30.0, 1, package)


class Faulty:
    """A source that answers as another one does, but for what the test sets. Counts what it was asked."""

    def __init__(self, behind: Origin, name: str) -> None:
        self.name = name
        self.asked: Counter[str] = Counter()  # manifest, chunk
        self.order: list[str] = []  # digests, chunk by chunk
        self.away = False
        self.there = True
        self.spoil: Callable[[int, bytes], bytes] = lambda number, stored: stored  # of the number-th chunk
        self.turn = threading.Event()  # closed: it does not answer
        self.turn.set()
        self.held: dict[str, threading.Event] = {}  # layers whose chunks wait
        self.on_chunk: Callable[[int], None] = lambda number: None
        self._behind = behind

    def manifest(self, tenant: str, digest: str) -> Manifest:
        self._came("manifest")
        return self._behind.manifest(tenant, digest)

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        self._came("chunk")
        self.order.append(digest)
        number = self.asked["chunk"]
        self.on_chunk(number)
        if digest in self.held and not self.held[digest].wait(20):
            raise OriginError("a test held it for ever")
        return self.spoil(number, self._behind.chunk(tenant, digest, name))

    def _came(self, what: str) -> None:
        self.asked[what] += 1
        if not self.turn.wait(20):
            raise OriginError("a test left it closed")
        if self.away:
            raise OriginError("connection refused")


class Parcels(Faulty):
    """The same, of a source that sends small layers as parcels. `holds` and `breaks` are asked with the number of a chunk."""

    def __init__(self, behind: Origin, name: str) -> None:
        super().__init__(behind, name)
        self.holds: Callable[[int], bool] = lambda number: True
        self.breaks: Callable[[int], bool] = lambda number: False
        self.opened = self.open = 0  # parcels

    def parcel(self, tenant: str, digest: str) -> "SentParcel":
        self._came("parcel")
        return SentParcel(self, tenant, self._behind.manifest(tenant, digest))


class SentParcel:
    def __init__(self, source: Parcels, tenant: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._source = source
        self._tenant = tenant
        self._closed = False
        source.opened += 1
        source.open += 1

    def __iter__(self) -> Iterator[bytes]:
        if len(self.manifest.chunks) > PARCEL_CHUNKS:
            return
        for number, chunk in enumerate(self.manifest.chunks, 1):
            if self._source.breaks(number):
                raise OriginError("a test broke it off")
            stored = self._source._behind.chunk(self._tenant, self.manifest.digest, chunk.name)
            yield self._source.spoil(number, stored) if self._source.holds(number) else b""

    def close(self) -> None:
        self._source.open -= not self._closed
        self._closed = True

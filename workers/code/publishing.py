"""Writing a layer into the origin, chunk by chunk: what is there already is not sent again, the manifest comes last. And an
uploaded package, whole."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from workers.code.archive import Listing
from workers.code.chunks import chunk_name, pack
from workers.code.layers import Source, lay_out, read_chunks
from workers.code.manifest import Chunk, Manifest, check_manifest
from workers.code.origin import Origin, OriginError
from workers.code.turns import publishing

THREADS = 4
AHEAD = 2 * THREADS
"""Chunks read and not stored yet: this bounds the memory of a publish."""


def publish_layer(origin: Origin, tenant: str, key: bytes, sources: Iterable[Source]) -> Manifest:
    """Stores the sources as a layer of the tenant; `key` is its chunk_key. However often, whoever else: the outcome is the same.

    Killed at any step it leaves chunks that nothing refers to, and no manifest. Raises LayerError, OriginError and what opening
    or reading a source raises.
    """
    ordered, files, cuts = lay_out(sources)
    with publishing(origin, tenant) as turn:
        manifest = Manifest(files, _store_all(origin, tenant, key, read_chunks(ordered, cuts)))
        check_manifest(manifest)
        if turn.over:
            raise OriginError(f"writing a layer of tenant {tenant}: it took too long, chunks may have been swept")
        # also when there is one: the layer is young again, and not swept before the catalog refers to it
        origin.put_manifest(tenant, manifest)
        if not turn.covers(origin.written(tenant, manifest.digest)):  # to be published again, before anything refers to it
            raise OriginError(f"writing a layer of tenant {tenant}: it took too long by the origin's clock")
    return manifest


def publish_package(origin: Origin, tenant: str, listing: Listing, archive: BinaryIO) -> None:
    """Stores an uploaded package, also over one that is there: it is young again. In a turn: a sweep may have seen that the old
    one is nobody's, and would delete this one in its place. Raises OriginError."""
    with publishing(origin, tenant):
        origin.put_package(tenant, listing, archive)


def _store_all(origin: Origin, tenant: str, key: bytes, contents: Iterable[bytes]) -> tuple[Chunk, ...]:
    def store(plain: bytes) -> Chunk:
        name = chunk_name(key, plain)
        if not origin.holds_chunk(tenant, name):
            origin.put_chunk(tenant, name, pack(plain))
        return Chunk(name, len(plain))

    chunks: list[Chunk] = []
    storing: deque[Future[Chunk]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="publish") as threads:
        try:
            for plain in contents:
                if len(storing) >= AHEAD:
                    chunks.append(storing.popleft().result())
                storing.append(threads.submit(store, plain))
            chunks.extend(future.result() for future in storing)
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return tuple(chunks)

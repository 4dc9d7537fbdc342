"""A package from each tier to the point where a function may start: every file on this node's disk, and detached as a mount
that a sandbox can be given. In this process, with the node's own tier 1; the others answer from processes and folders of their
own."""

import asyncio
import os
import shutil
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report
from benchmarks.tiers import wheels
from benchmarks.tiers.cluster import Cluster, Farther, FartherZone
from benchmarks.tiers.packages import SHAPES, WHEELS, Shape, Words, write
from workers.code.bytecode import compile_tree
from workers.code.chunks import chunk_key, unpack
from workers.code.eviction import AT_ONCE
from workers.code.layers import LARGEST, assemble, tree
from workers.code.manifest import Manifest
from workers.code.publishing import publish_layer
from workers.code.room import Bounds
from workers.code.shelf import spread
from workers.code.tier1 import Tier1
from workers.drivers.process.layers import detach
from workers.ports import ChunkSource
from workers.versions import CodePackage, Kind, VersionSpec

TENANT = "bench"
KEY = b"of a benchmark"
SEED = 20260402
ADDED_MS = (1.0, 2.0)
"""What a round trip costs more in a zone than on a loopback."""

LARGE = 10 << 20
TOO_LARGE_FOR_BUCKET = 30 << 20
"""A server for tests takes a second for 50 chunks."""

FILL_S = 120.0
Way = tuple[str, float]
"""tier1, tier2, origin, s3, unzip or copy; ms added to every question."""


@dataclass(frozen=True)
class Package:
    """One package of a shape: its files, its zip, and the layer that was made of it."""

    files: Path
    zipped: Path
    layer: Manifest

    @property
    def spec(self) -> VersionSpec:
        package = CodePackage(self.layer.digest, size=self.layer.size)
        return VersionSpec(f"{TENANT}/f:1", TENANT, "entry:handler", Kind.EVENT, "python3.11", 128, 10.0, 1, package)


@dataclass
class Brought:
    """ms of each way, in the order of the rounds, and of what tier 2's is made of; `layer`: one of the shape's layers."""

    shape: Shape
    layer: Manifest
    ms: dict[Way, list[float]]
    parts: dict[str, list[float]]


def measure(report: Report, cluster: Cluster, rounds: dict[str, int]) -> list[Brought]:
    """Every shape `rounds[its name]` times, each time another package, the ways in turns."""
    words = Words(SEED)
    found = []
    for shape in (*SHAPES, WHEELS):
        folder = Path(tempfile.mkdtemp(prefix="fb-"))
        try:
            report.progress(f"{rounds[shape.name] + 1} packages of {shape.name}")
            packages = [
                _publish(cluster, folder / f"p{number}", shape, number, words) for number in range(rounds[shape.name] + 1)
            ]
            report.progress(f"bringing packages of {shape.name}")
            ms = asyncio.run(_bring(cluster, folder, packages, () if shape is WHEELS else ADDED_MS))
            found.append(Brought(shape, packages[-1].layer, ms, _parts(cluster, folder, packages)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _publish(cluster: Cluster, folder: Path, shape: Shape, number: int, words: Words) -> Package:
    if shape is WHEELS:
        wheels.write(folder / "files", number)
    else:
        write(folder / "files", shape, SEED + number, words)
    zipped = folder / "package.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=1 if shape.size > LARGE else 6) as archive:
        for path in sorted((folder / "files").rglob("*")):
            archive.write(path, path.relative_to(folder / "files").as_posix())
    built = folder / "built"
    shutil.copytree(folder / "files", built)
    compile_tree(str(built))
    layer = publish_layer(cluster.origin, TENANT, chunk_key(KEY, TENANT), tree(built, LARGEST))
    if cluster.bucket is not None and layer.size < TOO_LARGE_FOR_BUCKET:
        publish_layer(cluster.bucket, TENANT, chunk_key(KEY, TENANT), tree(built, LARGEST))
    shutil.rmtree(built)
    why = cluster.filling.fill(TENANT, layer.digest, [chunk.name for chunk in layer.chunks], FILL_S)
    if why:
        raise RuntimeError(f"the zone cache was not filled: {why}")
    return Package(folder / "files", zipped, layer)


async def _bring(cluster: Cluster, folder: Path, packages: list[Package], farther_ms: Sequence[float]) -> dict[Way, list[float]]:
    ms: dict[Way, list[float]] = defaultdict(list)
    tiers: dict[Way, Tier1] = {}
    bounds = Bounds(1 << 40, 1 << 40)
    sources: dict[Way, ChunkSource] = {("origin", 0.0): cluster.origin}
    if cluster.bucket is not None and packages[0].layer.size < TOO_LARGE_FOR_BUCKET:
        sources["s3", 0.0] = cluster.bucket
    sources |= {("tier2", added): FartherZone(cluster.zone, added) for added in (0.0, *farther_ms)}
    sources |= {("origin", added): Farther(cluster.origin, added) for added in farther_ms}
    for way, source in sources.items():
        tiers[way] = Tier1(folder / f"{way[0]}-{way[1]:g}", [source], KEY, bounds)
    ways: dict[Way, Callable[[Package], Awaitable[None]]] = {
        way: _fetching(tier, sources[way].name) for way, tier in tiers.items()
    }
    ways["tier1", 0.0] = _fetching(tiers["origin", 0.0], "tier1")
    ways["unzip", 0.0] = _in_place(
        folder / "unzipped", lambda package, target: zipfile.ZipFile(package.zipped).extractall(target)
    )
    ways["copy", 0.0] = _in_place(folder / "copied", lambda package, target: shutil.copytree(package.files, target))
    try:
        for number, package in enumerate(packages):
            for way, bring in ways.items():
                began = time.perf_counter()
                await bring(package)
                took = (time.perf_counter() - began) * 1000
                if number:  # the first one fills caches, connects, and starts threads
                    ms[way].append(took)
    finally:
        for tier in tiers.values():
            await asyncio.to_thread(tier.close)
    return ms


def _parts(cluster: Cluster, folder: Path, packages: list[Package]) -> dict[str, list[float]]:
    """The same work one step after another: what each costs alone."""
    ms: dict[str, list[float]] = defaultdict(list)
    key = chunk_key(KEY, TENANT)
    (folder / "parts").mkdir()
    spread(folder / "parts")
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for package in packages:
            digest = package.layer.digest
            target = folder / "parts" / digest[-16:]
            target.mkdir()
            began = [time.perf_counter()]
            parcel = cluster.zone.parcel(TENANT, digest)
            manifest = parcel.manifest
            began.append(time.perf_counter())
            stored = list(parcel) or list(
                threads.map(lambda chunk, digest=digest: cluster.zone.chunk(TENANT, digest, chunk.name), manifest.chunks)
            )
            parcel.close()
            began.append(time.perf_counter())
            plain = {chunk.name: unpack(key, chunk.name, one) for chunk, one in zip(manifest.chunks, stored, strict=True)}
            began.append(time.perf_counter())
            assemble(manifest, lambda chunk, plain=plain: plain[chunk.name], target)
            began.append(time.perf_counter())
            for name, start, end in zip(("manifest", "chunks", "unpack", "files"), began, began[1:], strict=False):
                ms[name].append((end - start) * 1000)
    return ms


def _fetching(tier: Tier1, expected: str) -> Callable[[Package], Awaitable[None]]:
    async def fetch(package: Package) -> None:
        brought = await tier.fetch(package.spec)
        for folder in brought.folders:
            os.close(detach(str(folder)))
        if brought.source != expected:
            raise RuntimeError(f"it came from {brought.source}, not from {expected}: this run measures something else")

    return fetch


def _in_place(folder: Path, write_files: Callable[[Package, Path], object]) -> Callable[[Package], Awaitable[None]]:
    folder.mkdir()
    spread(folder)  # as tier 1's: else an aged disk would slow the peers alone

    async def bring(package: Package) -> None:
        write_files(package, folder / package.layer.digest[-16:])

    return bring

"""The recorded load's starts made for real: the node's tier 1 on a real zone cache and origin, packages a thousandth of their
size.

What a start finds where is then no model's word: tier 1 evicts, asks tier 2, and would turn to the origin as on a node.
"""

import asyncio
import heapq
import io
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replay.starts import Use
from benchmarks.tiers.bringing import FILL_S, KEY, TENANT
from benchmarks.tiers.cluster import Cluster
from workers.code.chunks import chunk_key
from workers.code.layers import Source
from workers.code.manifest import Manifest
from workers.code.publishing import publish_layer
from workers.code.room import Bounds
from workers.code.shelf import footprint
from workers.code.tier1 import Tier1
from workers.versions import CodePackage, Kind, VersionSpec

SCALE = 1000


def measure(cluster: Cluster, uses: Sequence[Use], sizes: Sequence[int], share: float, seed: int) -> Counter[str]:
    """Starts by the farthest tier that something of their code came from. Tier 1 may hold `share` of all code."""
    source = random.Random(seed)
    layers = [_publish(cluster, source.randbytes(max(1024, size // SCALE))) for size in sizes]
    bound = round(share * sum(footprint(file.size for file in layer.files) for layer in layers))
    folder = Path(tempfile.mkdtemp(prefix="fb-"))
    try:
        return asyncio.run(_replay(cluster, folder, uses, [_spec(number, layer) for number, layer in enumerate(layers)], bound))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(cluster: Cluster, content: bytes) -> Manifest:
    files = [Source("entry.py", False, len(content), lambda: io.BytesIO(content))]
    layer = publish_layer(cluster.origin, TENANT, chunk_key(KEY, TENANT), files)
    why = cluster.filling.fill(TENANT, layer.digest, [chunk.name for chunk in layer.chunks], FILL_S)
    if why:
        raise RuntimeError(f"the zone cache was not filled: {why}")
    return layer


def _spec(number: int, layer: Manifest) -> VersionSpec:
    package = CodePackage(layer.digest, size=layer.size)
    return VersionSpec(f"{TENANT}/f{number}:1", TENANT, "entry:handler", Kind.EVENT, "python3.11", 128, 10.0, 1, package)


async def _replay(cluster: Cluster, folder: Path, uses: Sequence[Use], specs: Sequence[VersionSpec], bound: int) -> Counter[str]:
    found: Counter[str] = Counter()
    ends: list[tuple[float, int]] = []
    tier = Tier1(folder, [cluster.zone, cluster.origin], KEY, Bounds(bound, 1 << 40))
    try:
        for use in uses:
            while ends and ends[0][0] <= use.begins:
                tier.unpin(specs[heapq.heappop(ends)[1]])
            tier.pin(specs[use.function])
            heapq.heappush(ends, (use.ends, use.function))
            found[(await tier.fetch(specs[use.function])).source] += 1
    finally:
        await asyncio.to_thread(tier.close)
    return found

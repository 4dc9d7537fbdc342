"""Tier 1: layers of code on the node's own disk, fetched from the origin once, verified, kept within a bound.

    FOLDER/<tenant>/<hex>/          a whole, verified layer: it appears by a rename and is never written again
    FOLDER/<tenant>/<hex>.tmp-*     being unpacked; swept at the next start
    FOLDER/<tenant>/<hex>.gone-*    being removed; swept too

Layers are readable by every user, because each sandbox runs as a user of its own. The folders above them are 0711: they can be
passed through by who knows a digest and listed by nobody else, so one tenant's sandbox user learns no names of another's.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog

from workers.code.archive import unpack_old_layer, verify_old_layer
from workers.code.chunks import chunk_key, unpack
from workers.code.layers import LARGEST, assemble, verify
from workers.code.manifest import LayerError, hex_of
from workers.code.origin import OldLayer, Origin, OriginError
from workers.ports import CodeUnavailable
from workers.versions import VersionSpec

DEFAULT_BYTES = 10 << 30
THREADS = 2
"""Unpacking at once: it holds a CPU each, and the node has requests to serve."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOT_FILE = ".boot"

log = structlog.get_logger(__name__)


class Tally:
    """Since the process started: layers asked for that were here, fetched and not to be had, and the bytes fetched."""

    held = fetched = failed = fetched_bytes = 0


Key = tuple[str, str]
"""Tenant and digest."""


class Tier1:
    """`max_bytes` bounds what lies on disk when layers that are not pinned can go. Lives in one event loop.

    Nothing is synced to disk: a kill loses nothing that was renamed, and after a crash of the machine (another boot) each
    layer is verified before its first use.
    """

    def __init__(self, folder: Path, origin: Origin, cluster_key: bytes, max_bytes: int = DEFAULT_BYTES) -> None:
        self._folder = folder
        self._origin = origin
        self._cluster_key = cluster_key
        self._max_bytes = max_bytes
        self._ready: OrderedDict[Key, tuple[Path, int]] = OrderedDict()  # least recently used first; path and bytes
        self._doubtful: set[Key] = set()
        self._pins: Counter[Key] = Counter()
        self._fetching: dict[Key, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tier1")
        self._lock = threading.Lock()  # of the folder's contents: renames and removals
        self._bytes = 0
        self.tally = Tally()
        self._start()

    # -- asked by the node

    async def fetch(self, spec: VersionSpec) -> Sequence[Path]:
        """The folders of the version's layers, code first. At once when they are here; else each is fetched by one task,
        however many ask. Raises CodeUnavailable."""
        keys = _keys(spec)
        self.tally.held += sum(key in self._ready for key in keys)
        if not all(key in self._ready for key in keys):
            with self.pinned(spec):  # what is here must not make room for what is missing
                await asyncio.gather(*(self._bring(key) for key in keys if key not in self._ready))
                return self._paths(keys)
        return self._paths(keys)

    def held(self, spec: VersionSpec) -> bool:
        """True when all layers are here and verified."""
        return all(key in self._ready for key in _keys(spec))

    def pin(self, spec: VersionSpec) -> None:
        """Keeps the version's layers, here or yet to come, until as many `unpin`: pin a version while it may have instances."""
        self._pins.update(_keys(spec))

    def unpin(self, spec: VersionSpec) -> None:
        for key in _keys(spec):
            self._pins[key] -= 1
            if self._pins[key] <= 0:
                del self._pins[key]

    async def forget(self, tenant: str) -> None:
        """Every layer of the tenant goes, pinned or not, and its folder. What is being fetched for it is waited for first."""
        fetching = [task for key, task in self._fetching.items() if key[0] == tenant]
        await asyncio.gather(*fetching, return_exceptions=True)
        for key in [key for key in self._ready if key[0] == tenant]:
            self._bytes -= self._ready.pop(key)[1]
        self._doubtful = {key for key in self._doubtful if key[0] != tenant}
        folder = self._folder / tenant
        await asyncio.get_running_loop().run_in_executor(self._threads, partial(shutil.rmtree, folder, ignore_errors=True))

    @contextlib.contextmanager
    def pinned(self, spec: VersionSpec) -> Iterator[None]:
        self.pin(spec)
        try:
            yield
        finally:
            self.unpin(spec)

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def close(self) -> None:
        """Waits for what is being unpacked; what comes after it is refused."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    # -- bringing

    def _paths(self, keys: Iterable[Key]) -> list[Path]:
        paths = []
        for key in keys:
            self._ready.move_to_end(key)
            paths.append(self._ready[key][0])
        return paths

    async def _bring(self, key: Key) -> None:
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._bring_once(key))
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        await asyncio.shield(task)  # who gives up waiting does not end it for the others

    async def _bring_once(self, key: Key) -> None:
        loop = asyncio.get_running_loop()
        try:
            path, size = await loop.run_in_executor(self._threads, self._fetch, key, key in self._doubtful)
        except (OriginError, LayerError, OSError, RuntimeError) as error:
            self.tally.failed += 1
            raise CodeUnavailable(f"layer {key[1][:19]} of tenant {key[0]}: {error}") from error
        self._doubtful.discard(key)
        self._ready[key] = (path, size)
        self._bytes += size
        self.tally.fetched += 1
        self.tally.fetched_bytes += size
        self._make_room(keep=key)

    def _make_room(self, keep: Key) -> None:
        for key in list(self._ready):
            if self._bytes <= self._max_bytes:
                return
            if key == keep or self._pins[key]:
                continue
            path, size = self._ready.pop(key)
            self._bytes -= size
            self._threads.submit(self._remove, path)
        if self._bytes > self._max_bytes:
            log.warning("tier1.over_bound", held=self._bytes, bound=self._max_bytes)

    # -- in a thread

    def _fetch(self, key: Key, doubtful: bool) -> tuple[Path, int]:
        tenant, digest = key
        path = self._path(key)
        if doubtful:
            if verify(path, digest, chunk_key(self._cluster_key, tenant)) or verify_old_layer(path, digest, LARGEST):
                return path, _size(path)
            self._remove(path)
        temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        self._make_tenant(path.parent)
        temporary.mkdir(mode=0o700)
        try:
            size = self._bring_into(temporary, tenant, digest)
            temporary.chmod(0o755)
            with self._lock:
                temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return path, size

    def _bring_into(self, folder: Path, tenant: str, digest: str) -> int:
        key = chunk_key(self._cluster_key, tenant)
        try:
            manifest = self._origin.manifest(tenant, digest)
        except OldLayer:
            with self._origin.old_layer(tenant, digest) as archive:
                return unpack_old_layer(archive, folder, digest, LARGEST)
        assemble(manifest, lambda chunk: unpack(key, chunk.name, self._origin.chunk(tenant, digest, chunk.name)), folder)
        return manifest.size

    def _remove(self, path: Path) -> None:
        """Out of the way by a rename first: a layer is whole or not there."""
        gone = path.with_name(f"{path.name}.gone-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError), self._lock:
            path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _make_tenant(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)

    # -- at the start

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        same_boot = self._same_boot()
        found: list[tuple[float, Key, Path]] = []
        for tenant in self._folder.iterdir():
            if not tenant.is_dir():
                continue
            for layer in tenant.iterdir():
                if "." in layer.name:
                    shutil.rmtree(layer, ignore_errors=True)
                    continue
                found.append((layer.stat().st_mtime, (tenant.name, f"sha256:{layer.name}"), layer))
        for _, key, path in sorted(found):
            if same_boot:
                size = _size(path)
                self._ready[key] = (path, size)
                self._bytes += size
            else:
                self._doubtful.add(key)

    def _same_boot(self) -> bool:
        boot = BOOT_ID.read_text().strip()
        known = self._folder / BOOT_FILE
        same = known.exists() and known.read_text() == boot
        if not same:
            known.write_text(boot)
        return same

    def _path(self, key: Key) -> Path:
        return self._folder / key[0] / hex_of(key[1])


def _keys(spec: VersionSpec) -> list[Key]:
    return [(spec.tenant, layer) for layer in spec.package.layers]


def _size(folder: Path) -> int:
    return sum(os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(folder) for name in names)

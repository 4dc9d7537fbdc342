"""All lazily started layers of a node."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from workers.code.chunks import chunk_name
from workers.code.lazy.layer import LazyLayer, ReadChunk
from workers.code.lazy.link import DEVICE, LazyError
from workers.code.manifest import Chunk, LayerFile, Manifest

AT_MOST = 32
"""Mounts at a time, each with a process of about 12 MB; what is over that is fetched whole before it starts."""

OF_A_TENANT = 16
"""Of those: functions that go on running keep their mounts, and one tenant's must leave some to the others."""

HAND_OVER_S = 120.0
"""Longer than an instance is prepared after its code was fetched."""

PROBE_TIMEOUT_S = 15.0
PROBE = b"read through the mount"

log = structlog.get_logger(__name__)


class LazyMounts:
    """`folder`: where tier 1 keeps layers; mounts appear below it as `<tenant>/<hex>.lazy-*`. Use it on one event loop."""

    def __init__(self, folder: Path, device: Path = DEVICE, at_most: int = AT_MOST, of_a_tenant: int = OF_A_TENANT) -> None:
        self._folder = folder
        self._device = device
        self._at_most = at_most
        self._of_a_tenant = of_a_tenant
        self._layers: dict[tuple[str, str], LazyLayer] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._released: set[LazyLayer] = set()
        self._usable = False

    async def probe(self) -> str:
        """Empty when it works here, found by mounting and reading; else why not."""
        manifest = Manifest((LayerFile("probe/probe", 0o644, len(PROBE), 0),), (Chunk(chunk_name(b"probe", PROBE), len(PROBE)),))

        async def read(_: Chunk) -> bytes:
            return PROBE

        place = self._folder / f"probe.lazy-{secrets.token_hex(4)}"
        place.parent.mkdir(parents=True, exist_ok=True)
        layer = LazyLayer("the probe", place, manifest, read, lambda _: None)
        try:
            await layer.start(self._device)
            content = await asyncio.wait_for(asyncio.to_thread((place / "probe/probe").read_bytes), PROBE_TIMEOUT_S)
            if content != PROBE:
                return "what was read through the mount was not what was written"
        except (OSError, TimeoutError) as error:
            return str(error) or "the probe timed out"
        finally:
            await layer.end()
        self._usable = True
        return ""

    @property
    def usable(self) -> bool:
        """The probe has worked, and there is room for one more."""
        return self._usable and len(self._layers) + len(self._released) < self._at_most

    @property
    def mounted(self) -> int:
        return len(self._layers) + len(self._released)

    def _held_by(self, tenant: str) -> int:
        return sum(layer.path.parent.name == tenant for layer in (*self._layers.values(), *self._released))

    def get(self, tenant: str, digest: str) -> LazyLayer | None:
        """The layer when it can be handed out now."""
        layer = self._layers.get((tenant, digest))
        return layer if layer is not None and layer.up else None

    async def mount(
        self,
        tenant: str,
        digest: str,
        manifest: Manifest,
        read_chunk: ReadChunk,
        learned: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> LazyLayer:
        """The layer, mounted at its `path`; its chunks come as they are read, then the rest. One that is known is mounted again
        when its server has died, with what it held. Raises LazyError; OSError when the disk is full."""
        key = (tenant, digest)
        layer = self._layers.get(key)
        if layer is None:
            if not self.usable or self._held_by(tenant) >= self._of_a_tenant:
                raise LazyError("lazy starts are not possible here, or too many are going on")
            folder = self._folder / tenant
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)
            name = f"{digest[:19]} of tenant {tenant}"
            place = folder / f"{digest.rpartition(':')[2]}.lazy-{secrets.token_hex(4)}"
            layer = self._layers[key] = LazyLayer(name, place, manifest, read_chunk, learned)
        await self._start(key, layer)
        return layer

    async def again(self, tenant: str, digest: str) -> bool:
        """Starts the server again when it has died; False for a layer that is not mounted. Raises as `mount` does."""
        layer = self._layers.get((tenant, digest))
        if layer is None:
            return False
        await self._start((tenant, digest), layer)
        return True

    async def _start(self, key: tuple[str, str], layer: LazyLayer) -> None:
        try:
            await layer.start(self._device)
        except BaseException:
            if self._layers.get(key) is layer:
                del self._layers[key]
            await layer.end()
            raise

    def unmount(self, tenant: str, digest: str, after_s: float = HAND_OVER_S) -> None:
        """A plain tree has taken over: who uses the mount keeps it, nobody new gets it; who was told of its path before may still
        attach it for `after_s`. A layer that is not whole ends, whoever uses it. Does nothing for what is not mounted."""
        layer = self._layers.pop((tenant, digest), None)
        if layer is None:
            return
        self._released.add(layer)
        after_s = after_s if layer.is_whole else 0.0
        task = asyncio.create_task(self._see_off(layer, after_s))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def drop(self, tenant: str, digest: str) -> None:
        """It ends, whoever uses it."""
        layer = self._layers.pop((tenant, digest), None)
        if layer is not None:
            await layer.end()

    async def forget(self, tenant: str) -> None:
        """Every mount of the tenant ends, and its folder is empty of them."""
        gone = [key for key in self._layers if key[0] == tenant]
        of_tenant = [layer for layer in self._released if layer.path.parent.name == tenant]
        await asyncio.gather(*(layer.end() for layer in [*(self._layers.pop(key) for key in gone), *of_tenant]))

    async def close(self) -> None:
        """Every mount and every server is gone when it returns."""
        layers = [*self._layers.values(), *self._released]
        self._layers.clear()
        self._usable = False
        await asyncio.gather(*(layer.end() for layer in layers), return_exceptions=True)
        while self._leaving:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*self._leaving, return_exceptions=True), PROBE_TIMEOUT_S)

    async def _see_off(self, layer: LazyLayer, after_s: float) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(after_s):
                    await layer.gone()
            if layer.is_whole:
                await layer.release()
                await layer.gone()
            else:
                await layer.end()
        finally:
            self._released.discard(layer)

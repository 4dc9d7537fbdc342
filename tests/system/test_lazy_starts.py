"""Tier 1 starts large layers lazily: the mount at once, the plain tree later, and every way that can go wrong in between."""

import asyncio
import contextlib
import errno
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from doubles.lazy_layers import mounted_below
from doubles.loop import in_loop, until
from doubles.process_bench import descendants

from workers.code.chunks import chunk_key
from workers.code.layers import Source
from workers.code.lazy import layer, mounts
from workers.code.lazy.link import DEVICE
from workers.code.lazy.mounts import LazyMounts
from workers.code.lazy.starting import LazyStarts, lazy_starts
from workers.code.manifest import CHUNK_BYTES, Manifest, hex_of
from workers.code.origin import Origin, OriginError
from workers.code.publishing import publish_layer
from workers.code.tier1 import Tier1
from workers.ports import CodeUnavailable
from workers.versions import CodePackage, Kind, VersionSpec

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

CLUSTER_KEY = b"the cluster's key"
FILES = {f"f{number:02}.bin": random.Random(number).randbytes(CHUNK_BYTES) for number in range(24)} | {"handler.py": b"1"}


class SlowOrigin(Origin):
    """The real origin. While `open` is not set, only the chunks in `passed` come; while `gone`, nothing does."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.open = threading.Event()
        self.open.set()
        self.passed: set[str] = set()
        self.gone = False
        self.served: list[str] = []

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        if self.gone:
            raise OriginError("it is away")
        assert name in self.passed or self.open.wait(10)
        self.served.append(name)
        return super().chunk(tenant, digest, name)


def put(origin: Origin, files: dict[str, bytes], tenant: str = "acme") -> Manifest:
    sources = [Source(path, False, len(content), lambda content=content: io.BytesIO(content)) for path, content in files.items()]
    return publish_layer(origin, tenant, chunk_key(CLUSTER_KEY, tenant), sources)


def chunks_of(manifest: Manifest, path: str) -> list[str]:
    (file,) = (file for file in manifest.files if file.path == path)
    return [manifest.chunks[span.index].name for span in manifest.spans(file.offset, file.size)]


def spec(manifest: Manifest, tenant: str = "acme") -> VersionSpec:
    return VersionSpec(f"{tenant}/f:1", tenant, "handler:f", Kind.EVENT, "python3.11", 128, 30.0, 1, CodePackage(manifest.digest))


@contextlib.asynccontextmanager
async def tier_on(folder: Path, origin: Origin) -> AsyncIterator[Tier1]:
    """A node's tier 1 and its lazy starts; nothing is left of either."""
    processes = descendants()
    lazy = await lazy_starts(folder / "code", origin, 1 << 20)
    assert lazy is not None
    tier = Tier1(folder / "code", [origin], CLUSTER_KEY, lazy=lazy)
    try:
        yield tier
    finally:
        await tier.stop()
    assert not mounted_below(folder)
    assert descendants(processes) == set()
    assert list((folder / "code").glob("*/*.lazy-*")) == []


async def read(path: Path) -> bytes:
    return await asyncio.wait_for(asyncio.to_thread(path.read_bytes), 15)


@pytest.fixture
def origin(tmp_path: Path) -> SlowOrigin:
    return SlowOrigin((tmp_path / "origin").as_uri())


@in_loop
async def test_it_starts_from_the_mount_and_later_from_the_plain_tree(
    tmp_path: Path, origin: SlowOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts.LazyMounts.unmount, "__defaults__", (0.2,))
    manifest = put(origin, FILES)
    wanted = spec(manifest)
    origin.open.clear()
    origin.passed.update(chunks_of(manifest, "f07.bin"))
    async with tier_on(tmp_path, origin) as tier:
        with tier.pinned(wanted):
            (first,) = (code := await tier.fetch(wanted)).folders
            assert code.source == "origin"
            assert ".lazy-" in first.name
            assert await read(first / "f07.bin") == FILES["f07.bin"]
            assert not tier.held(wanted)
            assert (await tier.fetch(wanted)).folders == (first,)
            origin.open.set()
            await until(lambda: tier.held(wanted), "all of it is here", 15)
            (second,) = (code := await tier.fetch(wanted)).folders
            assert code.source == "tier1"
            assert second.name == hex_of(manifest.digest)
            assert {path.name: path.read_bytes() for path in second.iterdir()} == FILES
            await until(lambda: not mounted_below(tmp_path), "the mount was handed over")
        assert sorted(origin.served) == sorted({chunk.name for chunk in manifest.chunks})  # each once


@in_loop
async def test_a_small_layer_is_whole_before_it_starts(tmp_path: Path, origin: SlowOrigin) -> None:
    wanted = spec(put(origin, {"handler.py": b"1" * 1000}))
    async with tier_on(tmp_path, origin) as tier:
        (folder,) = (await tier.fetch(wanted)).folders
        assert ".lazy-" not in folder.name
        assert tier.held(wanted)


@in_loop
async def test_where_it_is_not_possible_layers_are_fetched_whole(tmp_path: Path, origin: SlowOrigin) -> None:
    wanted = spec(put(origin, FILES))
    nowhere = LazyMounts(tmp_path / "code", tmp_path / "no-such-device")
    assert "no-such-device" in await nowhere.probe()
    tier = Tier1(tmp_path / "code", [origin], CLUSTER_KEY, lazy=LazyStarts(nowhere, origin, 1 << 20))
    (folder,) = (await tier.fetch(wanted)).folders
    assert ".lazy-" not in folder.name
    assert await read(folder / "f01.bin") == FILES["f01.bin"]
    await tier.stop()


@in_loop
async def test_a_damaged_chunk_fails_who_reads_it_and_is_never_part_of_a_tree(tmp_path: Path, origin: SlowOrigin) -> None:
    manifest = put(origin, FILES)
    (name,) = chunks_of(manifest, "f03.bin")
    stored = tmp_path / "origin" / "chunks" / "acme" / name[:2] / name
    good = stored.read_bytes()
    stored.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    async with tier_on(tmp_path, origin) as tier:
        (folder,) = (await tier.fetch(spec(manifest))).folders
        with pytest.raises(OSError) as failed:
            await read(folder / "f03.bin")
        assert failed.value.errno == errno.EIO
        assert await read(folder / "f04.bin") == FILES["f04.bin"]
        assert tier.fetcher.damaged["origin"] >= 2  # once more, then no more
        assert not tier.held(spec(manifest))
        stored.write_bytes(good)
        await until(lambda: tier.held(spec(manifest)), "it comes once it can be had", 15)
        (folder,) = (await tier.fetch(spec(manifest))).folders
        assert await read(folder / "f03.bin") == FILES["f03.bin"]


@in_loop
async def test_an_origin_that_goes_away_fails_reads_until_it_is_back(tmp_path: Path, origin: SlowOrigin) -> None:
    manifest = put(origin, FILES)
    origin.open.clear()
    origin.passed.update(chunks_of(manifest, "f00.bin"))
    async with tier_on(tmp_path, origin) as tier:
        (folder,) = (await tier.fetch(spec(manifest))).folders
        assert await read(folder / "f00.bin") == FILES["f00.bin"]
        origin.gone = True
        with pytest.raises(OSError) as failed:
            await read(folder / "f11.bin")
        assert failed.value.errno == errno.EIO
        assert await read(folder / "f00.bin") == FILES["f00.bin"]
        origin.gone = False
        origin.open.set()
        await until(lambda: tier.held(spec(manifest)), "all of it is here", 15)


@in_loop
async def test_after_its_server_was_killed_the_next_start_has_a_new_one(tmp_path: Path, origin: SlowOrigin) -> None:
    manifest = put(origin, FILES)
    origin.open.clear()
    origin.passed.update(chunks_of(manifest, "f00.bin"))
    async with tier_on(tmp_path, origin) as tier:
        (folder,) = (await tier.fetch(spec(manifest))).folders
        assert await read(folder / "f00.bin") == FILES["f00.bin"]
        mounted = tier.lazy.mounts.get("acme", manifest.digest)  # type: ignore[union-attr]
        assert mounted is not None
        os.kill(mounted.server, signal.SIGKILL)
        await until(lambda: not mounted.up, "its end is known")
        (folder,) = (await tier.fetch(spec(manifest))).folders
        assert await read(folder / "f00.bin") == FILES["f00.bin"]
        assert origin.served.count(chunks_of(manifest, "f00.bin")[0]) == 1
        origin.open.set()


@in_loop
async def test_what_comes_ahead_of_need_is_started_lazily_when_somebody_waits(tmp_path: Path, origin: SlowOrigin) -> None:
    manifest = put(origin, FILES)
    origin.open.clear()
    origin.passed.update(chunks_of(manifest, "f20.bin"))
    async with tier_on(tmp_path, origin) as tier:
        ahead = asyncio.create_task(tier.bring_ahead(spec(manifest)))
        coming = tier._bringing._coming
        await until(lambda: coming and next(iter(coming.values())).large, "it is on its way, whole")
        fetching = asyncio.create_task(tier.fetch(spec(manifest)))
        await asyncio.sleep(0.1)
        origin.open.set()
        (folder,) = (await fetching).folders
        assert ".lazy-" in folder.name
        assert await read(folder / "f20.bin") == FILES["f20.bin"]
        with contextlib.suppress(CodeUnavailable):
            await ahead
        await until(lambda: tier.held(spec(manifest)), "all of it is here", 15)


@in_loop
async def test_on_a_full_disk_it_is_left_to_a_whole_fetch_to_make_room(
    tmp_path: Path, origin: SlowOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put(origin, FILES)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with tier_on(tmp_path, origin) as tier:
        monkeypatch.setattr(layer.Content, "write", full)
        (folder,) = (await tier.fetch(spec(manifest))).folders
        with contextlib.suppress(OSError):
            await read(folder / "f01.bin")
        await until(lambda: tier.held(spec(manifest)), "it came whole", 15)
        (folder,) = (await tier.fetch(spec(manifest))).folders
        assert await read(folder / "f01.bin") == FILES["f01.bin"]


@in_loop
async def test_a_tenant_that_goes_takes_its_mounts_along(tmp_path: Path, origin: SlowOrigin) -> None:
    manifest = put(origin, FILES)
    origin.open.clear()
    async with tier_on(tmp_path, origin) as tier:
        await tier.fetch(spec(manifest))
        assert mounted_below(tmp_path)
        origin.open.set()
        await asyncio.wait_for(tier.forget("acme"), 15)
        assert not mounted_below(tmp_path)
        assert not (tmp_path / "code" / "acme").exists()
        with pytest.raises(CodeUnavailable):
            await tier.fetch(spec(manifest))


ORDINARY = """
import asyncio, os, sys
from pathlib import Path
from workers.drivers.process.isolation import enter_user_namespace
assert enter_user_namespace() and os.getuid() == 65534
sys.path.insert(0, sys.argv[2])
from doubles.lazy_layers import Layer
from doubles.process_bench import INIT_S, Running, bench
from workers.code.lazy.mounts import LazyMounts
from workers.ports import Specialisation
from workers.versions import Kind
folder = Path(sys.argv[1])
async def main():
    lazy = LazyMounts(folder / "code", folder / "fuse")
    why_not = await lazy.probe()
    assert not why_not, why_not
    source = b"def handler(event, context): return open('/var/task/a.bin').read(5)"
    layer = Layer({"handler.py": source, "a.bin": b"hello" * 200000})
    async with bench(folder / "driver") as made:
        assert made.report.tier == "userns", made.report
        mounted = await lazy.mount("acme", layer.manifest.digest, layer.manifest, layer.read)
        clone = await made.driver.clone("acme", 128)
        work = Specialisation("acme/f:1", "handler:handler", Kind.EVENT, 1, 128, (mounted.path,), {})
        running = Running(clone, await clone.specialise(work, INIT_S))
        print(await running.value("go"))
        await clone.kill("over")
        await lazy.close()
asyncio.run(main())
"""


def test_an_ordinary_user_with_the_device_starts_lazily_too(tmp_path: Path) -> None:
    """Where udev lets every user use /dev/fuse; a device of the test's own stands in for it here."""
    place = Path("/var/tmp") / f"foreglow-lazy-{os.getpid()}"
    place.mkdir()
    try:
        os.chown(place, 65534, 65534)
        os.mknod(place / "fuse", 0o020666, os.stat(DEVICE).st_rdev)
        os.chmod(place / "fuse", 0o666)
        done = subprocess.run(
            [sys.executable, "-B", "-c", ORDINARY, str(place), str(Path(__file__).parent.parent)],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["hello"]), done.stderr
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


def test_a_killed_node_is_followed_by_one_that_finds_no_half_layer(tmp_path: Path, origin: SlowOrigin) -> None:
    manifest = put(origin, FILES)
    program = f"""
import asyncio
from pathlib import Path
from workers.mounts import enter_private_mounts
assert enter_private_mounts()
from workers.code.lazy.starting import lazy_starts
from workers.code.origin import Origin
from workers.code.tier1 import Tier1
from workers.versions import CodePackage, Kind, VersionSpec
class Stuck(Origin):
    def chunk(self, tenant, digest, name):
        if name != {chunks_of(manifest, "f02.bin")[0]!r}:
            import time; time.sleep(60)
        return super().chunk(tenant, digest, name)
async def main():
    origin = Stuck({(tmp_path / "origin").as_uri()!r})
    folder = Path({str(tmp_path / "code")!r})
    tier = Tier1(folder, [origin], {CLUSTER_KEY!r}, lazy=await lazy_starts(folder, origin, 1 << 20))
    package = CodePackage({manifest.digest!r})
    spec = VersionSpec("acme/f:1", "acme", "handler:f", Kind.EVENT, "python3.11", 128, 30.0, 1, package)
    (path,) = (await tier.fetch(spec)).folders
    content = await asyncio.to_thread((path / "f02.bin").read_bytes)
    print("read", len(content), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    node = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    with node.stdout as told:
        assert any(line.startswith("read") for line in told)
        node.kill()
        node.wait(10)
    assert not mounted_below(tmp_path)
    time.sleep(0.1)

    async def again() -> None:
        async with tier_on(tmp_path, origin) as tier:
            (folder,) = (await tier.fetch(spec(manifest))).folders
            assert await read(folder / "f02.bin") == FILES["f02.bin"]
            await until(lambda: tier.held(spec(manifest)), "all of it is here", 15)

    in_loop(again)()

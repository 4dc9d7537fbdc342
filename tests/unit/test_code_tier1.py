"""Tier 1: fetched once, verified, bounded, whole or not there."""

import asyncio
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from workers.code.archive import encode_listing, write_archive
from workers.code.chunks import chunk_key
from workers.code.layers import Source
from workers.code.manifest import Manifest, hex_of
from workers.code.origin import Origin, OriginError
from workers.code.publishing import publish_layer
from workers.code.room import Bounds
from workers.code.tier1 import Tier1
from workers.ports import CodeTier, CodeUnavailable
from workers.versions import CodePackage, Kind, VersionSpec

BLOCK = 4096
CLUSTER_KEY = b"the cluster's key"


class CountingOrigin(Origin):
    """The real origin; counts the layers fetched and can be made to hold them back."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.downloads = 0
        self.gate = threading.Event()
        self.gate.set()

    def manifest(self, tenant: str, digest: str) -> Manifest:
        self.downloads += 1
        assert self.gate.wait(10)
        return super().manifest(tenant, digest)


@pytest.fixture
def origin(tmp_path: Path) -> CountingOrigin:
    return CountingOrigin((tmp_path / "origin").as_uri())


@pytest.fixture
def make_tier(tmp_path: Path, origin: Origin) -> Iterator["type[Tier1]"]:
    made: list[Tier1] = []

    def make(max_bytes: int = 1 << 30) -> Tier1:
        tier = Tier1(tmp_path / "code", [origin], CLUSTER_KEY, Bounds(max_bytes, 1 << 40))
        made.append(tier)
        return tier

    yield make  # type: ignore[misc]
    for tier in made:
        tier.close()


def put(origin: Origin, files: dict[str, bytes], tenant: str = "acme") -> str:
    sources = [Source(path, False, len(content), lambda content=content: io.BytesIO(content)) for path, content in files.items()]
    return publish_layer(origin, tenant, chunk_key(CLUSTER_KEY, tenant), sources).digest


def spec(*layers: str, tenant: str = "acme") -> VersionSpec:
    code, *dependencies = layers
    package = CodePackage(code, *dependencies)
    return VersionSpec(f"{tenant}/f:1", tenant, "handler:f", Kind.EVENT, "python3.11", 128, 30.0, 1, package)


def fetch(tier: Tier1, *wanted: VersionSpec) -> list[list[Path]]:
    async def all_of() -> list[list[Path]]:
        return [list((await tier.fetch(one)).folders) for one in wanted]

    return asyncio.run(all_of())


def test_code_comes_first_and_dependencies_second(origin: Origin, make_tier: "type[Tier1]") -> None:
    tier: CodeTier = make_tier()
    code, dependencies = put(origin, {"handler.py": b"1"}), put(origin, {"six.py": b"2", "pkg/deep/x.py": b"3"})
    wanted = spec(code, dependencies)
    assert not tier.held(wanted)
    first, second = fetch(tier, wanted)[0]  # type: ignore[arg-type]
    assert (first / "handler.py").read_bytes() == b"1"
    assert (second / "pkg/deep/x.py").read_bytes() == b"3"
    assert tier.held(wanted)


def test_many_that_ask_at_once_share_one_download(origin: CountingOrigin, make_tier: "type[Tier1]") -> None:
    tier, wanted = make_tier(), spec(put(origin, {"handler.py": b"1"}))

    async def together() -> set[Path]:
        return {(await one).folders[0] for one in [asyncio.create_task(tier.fetch(wanted)) for _ in range(20)]}  # type: ignore[misc]

    assert len(asyncio.run(together())) == 1
    assert origin.downloads == 1


def test_who_gives_up_waiting_does_not_end_it_for_the_others(origin: CountingOrigin, make_tier: "type[Tier1]") -> None:
    tier, wanted = make_tier(), spec(put(origin, {"handler.py": b"1"}))
    origin.gate.clear()

    async def scene() -> None:
        impatient, patient = asyncio.create_task(tier.fetch(wanted)), asyncio.create_task(tier.fetch(wanted))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        impatient.cancel()
        origin.gate.set()
        assert len((await patient).folders) == 1

    asyncio.run(scene())
    assert tier.held(wanted)


def test_who_begins_to_wait_for_a_layer_that_comes_ahead_waits_for_no_other(
    origin: CountingOrigin, make_tier: "type[Tier1]", monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_tier()
    *slow, wanted = [spec(put(origin, {"handler.py": content})) for content in (b"1", b"2", b"3")]
    gate, manifest = threading.Event(), origin.manifest

    def held_back(tenant: str, digest: str) -> Manifest:
        assert digest == wanted.package.code or gate.wait(10)
        return manifest(tenant, digest)

    monkeypatch.setattr(origin, "manifest", held_back)

    async def scene() -> None:
        ahead = [asyncio.create_task(tier.bring_ahead(one)) for one in (*slow, wanted)]
        await asyncio.sleep(0)  # a node has two under way for plans, and one for the tenants it hosts
        try:
            await asyncio.wait_for(tier.fetch(wanted), 30)
        finally:
            gate.set()
        await asyncio.gather(*ahead)

    asyncio.run(scene())


def test_a_restart_finds_what_is_there_and_sweeps_what_is_half_done(
    tmp_path: Path, origin: CountingOrigin, make_tier: "type[Tier1]"
) -> None:
    wanted = spec(put(origin, {"handler.py": b"12345"}))
    fetch(make_tier(), wanted)
    tenant = tmp_path / "code" / "acme"
    (tenant / ("0" * 64 + ".tmp-1")).mkdir()
    (tenant / ("1" * 64 + ".gone-1")).mkdir()
    tier = make_tier()
    assert tier.held(wanted)
    assert tier.bytes_held == BLOCK
    assert [path.name for path in tenant.iterdir()] == [hex_of(wanted.package.code)]
    fetch(tier, wanted)
    assert origin.downloads == 1


def test_after_another_boot_a_damaged_layer_is_fetched_again(
    tmp_path: Path, origin: CountingOrigin, make_tier: "type[Tier1]"
) -> None:
    whole, torn = spec(put(origin, {"handler.py": b"whole"})), spec(put(origin, {"handler.py": b"torn"}))
    _, [path] = fetch(make_tier(), whole, torn)
    (path / "handler.py").write_bytes(b"")
    (tmp_path / "code" / ".boot").write_text("another")
    tier = make_tier()
    assert not tier.held(whole)
    _, [again] = fetch(tier, whole, torn)
    assert (again / "handler.py").read_bytes() == b"torn"
    assert origin.downloads == 3


def test_what_was_not_verified_since_the_machine_went_down_stays_in_doubt_over_restarts(
    tmp_path: Path, origin: CountingOrigin, make_tier: "type[Tier1]"
) -> None:
    whole, torn = spec(put(origin, {"handler.py": b"whole"})), spec(put(origin, {"handler.py": b"torn"}))
    _, [path] = fetch(make_tier(), whole, torn)
    (path / "handler.py").write_bytes(b"")
    (tmp_path / "code" / ".boot").write_text("another")
    fetch(make_tier(), whole)
    tier = make_tier()
    assert tier.held(whole), "verified in this boot"
    assert not tier.held(torn), "asked for by nobody before the node began anew"
    [[again]] = fetch(tier, torn)
    assert (again / "handler.py").read_bytes() == b"torn"
    assert origin.downloads == 3
    assert make_tier().held(torn)


def test_a_layer_that_is_not_what_its_name_says_never_appears(tmp_path: Path, origin: Origin, make_tier: "type[Tier1]") -> None:
    good, bad = put(origin, {"handler.py": b"good"}), put(origin, {"handler.py": b"bad"})
    layers = tmp_path / "origin" / "layers" / "acme"
    (layers / f"{hex_of(good)}.manifest").write_bytes((layers / f"{hex_of(bad)}.manifest").read_bytes())
    with pytest.raises(CodeUnavailable, match="digest"):
        fetch(make_tier(), spec(good))
    assert list((tmp_path / "code").glob("acme/*")) == []


@pytest.mark.parametrize("damage", [lambda _: b"", lambda old: old[:-1], lambda old: old[:-1] + bytes([old[-1] ^ 1])])
def test_a_damaged_chunk_never_appears(
    tmp_path: Path, origin: Origin, make_tier: "type[Tier1]", damage: Callable[[bytes], bytes]
) -> None:
    digest = put(origin, {"handler.py": b"good"})
    (chunk,) = (path for path in (tmp_path / "origin" / "chunks").rglob("*") if path.is_file())
    chunk.write_bytes(damage(chunk.read_bytes()))
    with pytest.raises(CodeUnavailable, match="checksum"):
        fetch(make_tier(), spec(digest))
    assert list((tmp_path / "code").glob("acme/*")) == []


def test_a_layer_of_an_earlier_release_is_served_and_survives_another_boot(
    tmp_path: Path, origin: CountingOrigin, make_tier: "type[Tier1]"
) -> None:
    digest = put_old(origin, tmp_path / "origin", {"pkg/handler.py": b"old"})
    assert origin.holds("acme", digest)
    (path,) = fetch(make_tier(), spec(digest))[0]
    assert (path / "pkg" / "handler.py").read_bytes() == b"old"
    (tmp_path / "code" / ".boot").write_text("another")
    fetch(make_tier(), spec(digest))
    assert origin.downloads == 1
    (path / "pkg" / "handler.py").write_bytes(b"odd")
    (tmp_path / "code" / ".boot").write_text("a third")
    (path,) = fetch(make_tier(), spec(digest))[0]
    assert (path / "pkg" / "handler.py").read_bytes() == b"old"


def put_old(origin: Origin, folder: Path, files: dict[str, bytes]) -> str:
    """A layer as the release before chunks left it: tar.zst, and its listing under the name of a manifest."""
    out = io.BytesIO()
    sources = [Source(path, False, len(content), lambda content=content: io.BytesIO(content)) for path, content in files.items()]
    listing = write_archive(sources, out)
    layers = folder / "layers" / "acme"
    layers.mkdir(parents=True, exist_ok=True)
    (layers / hex_of(listing.digest)).write_bytes(out.getvalue())
    (layers / f"{hex_of(listing.digest)}.manifest").write_bytes(encode_listing(listing))
    return listing.digest


def hostile(entry: tarfile.TarInfo, content: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return zstandard.ZstdCompressor().compress(out.getvalue())


def entry(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.linkname = kind, mode, target
    return made


@pytest.mark.parametrize(
    "archive",
    [
        hostile(entry("../outside"), b"x"),
        hostile(entry("/tmp/outside"), b"x"),
        hostile(entry("link", tarfile.SYMTYPE, target="/etc")),
        hostile(entry("hard", tarfile.LNKTYPE, target="/etc/passwd")),
        hostile(entry("pipe", tarfile.FIFOTYPE)),
        hostile(entry("device", tarfile.CHRTYPE)),
        hostile(entry("setuid", mode=0o4755), b"x"),
        b"not an archive",
        b"",
        zstandard.ZstdCompressor().compress(b"\0" * 1000)[:-3],
    ],
)
def test_a_hostile_origin_writes_nothing_outside_and_leaves_nothing(
    tmp_path: Path, origin: Origin, make_tier: "type[Tier1]", archive: bytes
) -> None:
    digest = put_old(origin, tmp_path / "origin", {"handler.py": b"1"})
    (tmp_path / "origin" / "layers" / "acme" / hex_of(digest)).write_bytes(archive)
    before = {path for path in tmp_path.rglob("*") if "code" not in path.parts}
    with pytest.raises(CodeUnavailable):
        fetch(make_tier(), spec(digest))
    assert {path for path in tmp_path.rglob("*") if "code" not in path.parts} == before
    assert list((tmp_path / "code").glob("acme/*")) == []


def test_least_recently_used_goes_first_and_pinned_never(origin: Origin, make_tier: "type[Tier1]") -> None:
    tier = make_tier(2 * BLOCK)
    first, second, third = (spec(put(origin, {"handler.py": letter * 10})) for letter in (b"a", b"b", b"c"))
    tier.pin(first)
    fetch(tier, first, second, third)
    assert [tier.held(one) for one in (first, second, third)] == [True, False, True]
    tier.unpin(first)
    fetch(tier, second)
    assert [tier.held(one) for one in (first, second, third)] == [False, True, True]
    assert tier.bytes_held == 2 * BLOCK


def test_what_is_used_again_stays(origin: Origin, make_tier: "type[Tier1]") -> None:
    tier = make_tier(2 * BLOCK)
    first, second, third = (spec(put(origin, {"handler.py": letter * 10})) for letter in (b"a", b"b", b"c"))
    fetch(tier, first, second, first, third)
    assert [tier.held(one) for one in (first, second, third)] == [True, False, True]


def test_layers_shared_by_versions_stay_pinned_until_the_last_unpin(origin: Origin, make_tier: "type[Tier1]") -> None:
    tier = make_tier(BLOCK)
    shared, other = spec(put(origin, {"handler.py": b"a" * 10})), spec(put(origin, {"handler.py": b"b" * 10}))
    tier.pin(shared)
    tier.pin(shared)
    tier.unpin(shared)
    fetch(tier, shared, other)
    assert tier.held(shared)


def test_empty_files_and_folders_count_too(origin: Origin, make_tier: "type[Tier1]") -> None:
    many = spec(put(origin, {"handler.py": b"", **{f"p{number}/q/__init__.py": b"" for number in range(10)}}))
    tier = make_tier()
    fetch(tier, many)
    assert tier.bytes_held == 31 * BLOCK
    assert make_tier().bytes_held == 31 * BLOCK


def test_one_version_larger_than_the_bound_is_still_served(origin: Origin, make_tier: "type[Tier1]") -> None:
    tier = make_tier(BLOCK)
    wanted = spec(put(origin, {"a.py": b"x" * 10}), put(origin, {"b.py": b"y" * 10}))
    assert len(fetch(tier, wanted)[0]) == 2


def test_what_is_missing_or_another_tenants_is_unavailable(origin: Origin, make_tier: "type[Tier1]") -> None:
    digest = put(origin, {"handler.py": b"1"}, tenant="acme")
    tier = make_tier()
    for wanted in (spec("sha256:" + "0" * 64), spec(digest, tenant="rival"), spec("sha256:../../x"), spec("")):
        with pytest.raises(CodeUnavailable):
            fetch(tier, wanted)


def test_every_user_may_read_a_layer_whatever_the_umask(tmp_path: Path, origin: Origin, make_tier: "type[Tier1]") -> None:
    previous = os.umask(0o077)
    try:
        (path,) = fetch(make_tier(), spec(put(origin, {"pkg/a.py": b"1"})))[0]
    finally:
        os.umask(previous)

    def mode(of: Path) -> int:
        return stat.S_IMODE(of.stat().st_mode)

    assert [mode(path), mode(path / "pkg"), mode(path / "pkg/a.py")] == [0o755, 0o755, 0o644]
    assert [mode(path.parent), mode(path.parent.parent)] == [0o711, 0o711]


@pytest.mark.system
def test_a_kill_while_unpacking_leaves_no_half_layer(tmp_path: Path, origin: Origin, make_tier: "type[Tier1]") -> None:
    digest = put(origin, {f"f{number}.py": os.urandom(20_000) for number in range(300)})
    program = f"""
import asyncio
from pathlib import Path
from workers.code.origin import Origin
from workers.code.tier1 import Tier1
from workers.versions import CodePackage, Kind, VersionSpec
tier = Tier1(Path({str(tmp_path / "code")!r}), [Origin({(tmp_path / "origin").as_uri()!r})], {CLUSTER_KEY!r})
print("go", flush=True)
asyncio.run(tier.fetch(VersionSpec("acme/f:1", "acme", "h:f", Kind.EVENT, "python3.11", 128, 30.0, 1, CodePackage({digest!r}))))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(10_000):
            if list((tmp_path / "code").glob("*/*.tmp-*/*.py")) or process.poll() is not None:
                break
        process.kill()
    tier = make_tier()
    assert list((tmp_path / "code").glob("*/*.tmp-*")) == []
    (path,) = fetch(tier, spec(digest))[0]
    assert len(list(path.iterdir())) == 300


def test_the_origin_tells_what_it_holds(origin: Origin) -> None:
    digest = put(origin, {"pkg/mod.py": b"1", "ext.cpython-311-x86_64-linux-gnu.so": b"2"})
    assert origin.holds("acme", digest)
    assert not origin.holds("rival", digest)
    manifest: Manifest = origin.manifest("acme", digest)
    assert manifest.digest == digest
    assert [manifest.holds_module(name) for name in ("pkg.mod", "ext", "pkg", "mod")] == [True, True, False, False]


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/y", "file:///proc/nowhere/x", ""])
def test_an_origin_that_cannot_be_is_refused_by_name(url: str) -> None:
    with pytest.raises(OriginError, match="origin_url"):
        Origin(url)

"""What nothing refers to leaves the origin, and nothing else does, whoever publishes meanwhile."""

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.catalog.errors import NotFound
from orchestrator.catalog.store import Store
from orchestrator.flow import collecting
from orchestrator.flow.collecting import GRACE_S, Collector, judge
from orchestrator.flow.metrics import Swept
from workers.code import turns
from workers.code.archive import write_archive
from workers.code.chunks import CHUNK_BYTES, chunk_key, chunk_name, pack, unpack
from workers.code.layers import Source, assemble, verify
from workers.code.manifest import Manifest, hex_of
from workers.code.objects import Objects, Stored
from workers.code.origin import OWNER, Origin, OriginError
from workers.code.publishing import publish_layer, publish_package

KEY = chunk_key(b"the cluster's key", "acme")
CONTENTS = [bytes([65 + number]) * (CHUNK_BYTES // 2) for number in range(4)]
DAY = 86400.0


class Roots:
    """The catalog, as far as sweeping asks it."""

    def __init__(self) -> None:
        self.digests: set[str] | None = set()
        self.released: list[float] = []

    def release(self, tenant: str, now: float, unused_s: float) -> int:
        self.released.append(unused_s)
        if self.digests is None:
            raise NotFound(f"no tenant {tenant}")
        return 0

    def kept(self, tenant: str) -> set[str] | None:
        return set(self.digests) if self.digests is not None else None


class World:
    """An origin in a folder whose files can be made to age."""

    def __init__(self, folder: Path, origin: Origin | None = None) -> None:
        self.folder = folder
        self.origin = origin or Origin(folder.as_uri())
        self.roots = Roots()
        self.swept = Swept()
        self.collector = Collector(self.roots, self.origin, self.swept)
        self.now = 1_000_000.0

    def publish(self, *pieces: int, refer: bool = True) -> str:
        sources = [Source(f"f{piece}", False, len(CONTENTS[piece]), _opener(piece)) for piece in pieces]
        digest = publish_layer(self.origin, "acme", KEY, sources).digest
        if refer and self.roots.digests is not None:
            self.roots.digests.add(digest)
        return digest

    def upload(self, content: bytes) -> str:
        out = io.BytesIO()
        listing = write_archive([Source("h.py", False, len(content), lambda: io.BytesIO(content))], out)
        out.seek(0)
        publish_package(self.origin, "acme", listing, out)
        return listing.digest

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for path in self.folder.rglob("*"):
            if path.is_file() and "turns" not in path.parts:
                status = path.stat()
                os.utime(path, (status.st_atime, status.st_mtime - seconds))

    def collect(self) -> None:
        self.collector.collect("acme", self.now)

    def whole(self, digest: str, scratch: Path) -> bool:
        manifest = self.origin.manifest("acme", digest)
        scratch.mkdir()
        assemble(manifest, lambda chunk: unpack(KEY, chunk.name, self.origin.chunk("acme", digest, chunk.name)), scratch)
        return verify(scratch, digest, KEY)

    def files(self, kind: str) -> list[Path]:
        return [path for path in (self.folder / kind).rglob("*") if path.is_file()]

    def chunks(self) -> set[str]:
        return {path.name for path in self.files("chunks")}


def _opener(piece: int) -> Callable[[], io.BytesIO]:
    return lambda: io.BytesIO(CONTENTS[piece])


def names(*pieces: int) -> set[str]:
    return {chunk_name(KEY, CONTENTS[piece]) for piece in pieces}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "origin")


def test_what_lost_its_last_reference_goes_after_the_grace_and_shared_chunks_stay(world: World, tmp_path: Path) -> None:
    kept, dropped = world.publish(0, 1), world.publish(1, 2)
    assert world.chunks() == names(0, 1, 2), "an equal chunk is stored once"
    world.roots.digests = {kept}
    world.pass_time(DAY)
    world.collect()  # unreferenced since now
    world.pass_time(GRACE_S - 1)
    world.collect()
    assert world.whole(dropped, tmp_path / "dropped"), "who fetches it still can"
    world.pass_time(2)
    world.collect()
    assert not world.origin.holds("acme", dropped)
    assert world.chunks() == names(0, 1)
    assert world.whole(kept, tmp_path / "kept")
    assert world.swept.objects == {"layers": 1, "packages": 0, "chunks": 1}
    assert world.swept.bytes["chunks"] > 0
    assert world.swept.sweeps == {"done": 3, "busy": 0, "failed": 0}


def test_what_is_referred_to_again_in_time_stays(world: World, tmp_path: Path) -> None:
    digest = world.publish(0)
    world.roots.digests = set()
    world.pass_time(DAY)
    world.collect()
    world.roots.digests = {digest}
    world.pass_time(GRACE_S)
    world.collect()
    world.roots.digests = set()
    world.pass_time(GRACE_S)
    world.collect()
    assert world.whole(digest, tmp_path / "layer")


def test_a_publish_of_what_was_about_to_go_makes_it_young_again(world: World, tmp_path: Path) -> None:
    """Between the publish and the catalog's word on it a sweep must not come."""
    digest = world.publish(0, 1)
    world.roots.digests = set()
    world.pass_time(DAY)
    world.collect()
    world.pass_time(GRACE_S + 1)
    assert world.publish(0, 1, refer=False) == digest
    world.collect()
    assert world.whole(digest, tmp_path / "layer")


def test_chunks_that_a_killed_publish_left_go_once_they_are_old(world: World) -> None:
    world.origin.put_chunk("acme", chunk_name(KEY, b"left"), b"left")
    staged = world.folder / "chunks" / "acme" / "00" / ("0" * 64 + "#1")
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"half")
    world.collect()
    assert len(world.files("chunks")) == 2
    world.pass_time(GRACE_S + 1)
    world.collect()
    assert world.files("chunks") == []


def test_uploads_go_like_layers_and_old_forms_too(world: World) -> None:
    kept, dropped = world.upload(b"kept"), world.upload(b"dropped")
    old = world.folder / "layers" / "acme" / hex_of(kept)
    older = world.folder / "layers" / "acme" / ("1" * 64)
    older.parent.mkdir(parents=True)
    for path in (old, older):
        path.write_bytes((world.folder / "packages" / "acme" / hex_of(kept)).read_bytes())
        listing = (world.folder / "packages" / "acme" / f"{hex_of(kept)}.listing").read_bytes()
        path.with_name(f"{path.name}.manifest").write_bytes(listing)
    world.roots.digests = {kept}
    for seconds in (DAY, GRACE_S + 1):
        world.pass_time(seconds)
        world.collect()
    assert world.swept.sweeps["done"] == 2
    assert not world.origin.holds_package("acme", dropped)
    assert world.origin.listing("acme", kept).digest == kept
    assert {path.name for path in world.files("layers")} == {old.name, f"{old.name}.manifest"}
    assert set(world.roots.released) == {collecting.UPLOAD_UNUSED_S}


def test_a_tenant_that_was_removed_goes_and_one_nobody_knows_stays(world: World) -> None:
    world.publish(0)
    world.roots.digests = None
    for seconds in (DAY, GRACE_S + 1):
        world.pass_time(seconds)
        world.collect()
    assert world.chunks() == names(0), "another installation's, for all we know"
    world.roots.digests = set()
    for seconds in (DAY, GRACE_S + 1):
        world.pass_time(seconds)
        world.collect()
    assert world.files("chunks") == world.files("layers") == []


def test_with_one_manifest_unreadable_no_chunk_goes(world: World) -> None:
    digest = world.publish(0)
    (world.folder / "layers" / "acme" / f"{hex_of(digest)}.manifest").write_bytes(b"damaged")
    world.origin.put_chunk("acme", chunk_name(KEY, b"left"), b"left")
    world.pass_time(DAY)
    world.collect()
    assert len(world.chunks()) == 2
    assert world.swept.sweeps["failed"] == 1


def test_the_manifests_that_stay_are_read_before_the_turn(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, manifest = world.publish(0, 1), world.origin.manifest
    world.publish(2, refer=False)
    world.pass_time(DAY)
    world.collect()
    world.pass_time(GRACE_S + 1)

    def outside(tenant: str, digest: str) -> Manifest:
        assert world.origin.marks(tenant) == [], "a turn is short, and there may be thousands"
        return manifest(tenant, digest)

    monkeypatch.setattr(world.origin, "manifest", outside)
    world.collect()
    monkeypatch.undo()
    assert world.chunks() == names(0, 1)
    assert world.whole(kept, tmp_path / "kept")


# -- turns


def test_a_sweep_leaves_while_the_tenant_publishes_and_not_because_of_another(world: World) -> None:
    world.origin.put_chunk("acme", chunk_name(KEY, b"left"), b"left")
    world.pass_time(DAY)
    with turns.publishing(world.origin, "acme"):
        world.collect()
        assert len(world.chunks()) == 1
    assert world.swept.sweeps["busy"] == 1
    with turns.publishing(world.origin, "rival"):
        world.collect()
    assert world.chunks() == set()


def test_a_publish_waits_for_a_sweep_and_says_why_when_it_does_not_end(world: World) -> None:
    with turns.sweeping(world.origin, "acme") as turn:
        assert turn.free
        with pytest.raises(OriginError, match="tidied"), turns.publishing(world.origin, "acme", wait_s=0.1):
            pass
        with turns.sweeping(world.origin, "acme") as second:
            assert not second.free, "one sweep at a time"
    with turns.publishing(world.origin, "acme", wait_s=0):
        pass
    assert world.origin.marks("acme") == []


@pytest.mark.parametrize("kind", [turns.PUBLISH, turns.SWEEP])
def test_what_a_dead_process_said_counts_for_a_while_only(world: World, kind: str) -> None:
    mark = world.origin.mark("acme", kind)
    with turns.sweeping(world.origin, "acme") as turn:
        assert not turn.free
    long_ago = time.time() - turns.LONGEST[kind] - turns.LONGEST_S - 1
    os.utime(world.folder / mark.name, (long_ago, long_ago))
    with turns.sweeping(world.origin, "acme") as turn:
        assert turn.free
    with turns.publishing(world.origin, "acme", wait_s=0):
        pass


def test_what_dead_processes_said_goes(world: World) -> None:
    dead, alive = (world.folder / world.origin.mark("acme", turns.PUBLISH).name for _ in range(2))
    assert max(turns.LONGEST.values()) + turns.LONGEST_S < GRACE_S
    for mark, age in ((dead, GRACE_S + 1), (alive, GRACE_S - 1)):
        os.utime(mark, (time.time() - age,) * 2)
    world.collect()
    assert not dead.exists()
    assert alive.exists()


def test_who_took_too_long_does_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.origin.put_chunk("acme", chunk_name(KEY, b"left"), b"left")
    world.pass_time(DAY)
    monkeypatch.setitem(turns.LONGEST, turns.SWEEP, -1.0)
    world.collect()
    assert world.chunks() == {chunk_name(KEY, b"left")}
    monkeypatch.setitem(turns.LONGEST, turns.PUBLISH, -1.0)
    with pytest.raises(OriginError, match="too long"):
        world.publish(0)
    assert world.files("layers") == []


def test_a_publish_that_stood_still_longer_than_it_knows_is_not_relied_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_manifest = world.origin.put_manifest

    def late(tenant: str, manifest: Manifest) -> None:
        put_manifest(tenant, manifest)
        then = time.time() + turns.LONGEST[turns.PUBLISH] + turns.LONGEST_S
        os.utime(world.folder / "layers" / tenant / f"{hex_of(manifest.digest)}.manifest", (then, then))

    monkeypatch.setattr(world.origin, "put_manifest", late)
    with pytest.raises(OriginError, match="origin's clock"):
        world.publish(0)
    for path in world.files("chunks"):
        path.unlink()  # a sweep took it for dead
    monkeypatch.undo()
    assert world.whole(world.publish(0), tmp_path / "again")


# -- the policy


def test_nothing_goes_at_first_sight() -> None:
    old = [Stored("layers/acme/" + "0" * 64 + suffix, 5, 0.0) for suffix in ("", ".manifest")]
    first = judge(old, set(), {}, 10 * DAY, 9 * DAY)
    assert list(first.gone) == []
    then = judge(old, set(), first.watched, 10 * DAY + GRACE_S, 9 * DAY)
    assert [one.name for one in then.gone] == [old[1].name, old[0].name], "what says it is whole goes first"
    assert then.watched == {}
    assert list(judge(old, {"sha256:" + "0" * 64}, first.watched, 20 * DAY, 19 * DAY).gone) == []


# -- interleaved


class Interrupted(Origin):
    """The real origin; before each request something else may happen."""

    between: Callable[[], None] | None = None
    after = 0
    """Requests before it happens."""

    def _interrupt(self) -> None:
        if self.between is None:
            return
        self.after -= 1
        if self.after < 0:
            between, self.between = self.between, None
            between()

    def holds_chunk(self, tenant: str, name: str) -> bool:
        self._interrupt()
        return super().holds_chunk(tenant, name)

    def put_manifest(self, *args: object) -> None:
        self._interrupt()
        super().put_manifest(*args)  # type: ignore[arg-type]

    def delete(self, *args: object) -> None:
        self._interrupt()
        super().delete(*args)  # type: ignore[arg-type]

    def list(self, *args: object) -> Iterator[list[Stored]]:  # type: ignore[override]
        self._interrupt()
        return super().list(*args)  # type: ignore[arg-type, return-value]


AFTER = st.integers(0, 6)


@pytest.mark.parametrize("after", range(8))
def test_a_package_that_is_uploaded_again_as_it_goes_is_there_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    origin = Interrupted((tmp_path / "origin").as_uri())
    world = World(tmp_path / "origin", origin)
    world.upload(b"x")
    world.pass_time(DAY)
    world.collect()
    world.pass_time(GRACE_S + 1)
    monkeypatch.setattr(turns, "WAIT_S", 0.0)
    again: list[str] = []

    def upload() -> None:
        with suppress(OriginError):
            again.append(world.upload(b"x"))

    origin.between, origin.after = upload, after
    world.collect()
    for digest in again:
        assert origin.holds_package("acme", digest)
        assert origin.package("acme", digest).read()


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("publish_first", [True, False])
def test_a_publish_that_relies_on_chunks_about_to_go_is_whole_whenever_the_other_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, publish_first: bool
) -> None:
    origin = Interrupted((tmp_path / "origin").as_uri())
    world = World(tmp_path / "origin", origin)
    for piece in (0, 1, 2):
        origin.put_chunk("acme", chunk_name(KEY, CONTENTS[piece]), pack(CONTENTS[piece]))
    world.pass_time(DAY)
    published: list[str] = []
    monkeypatch.setattr(turns, "WAIT_S", 0.0)

    def publish() -> None:
        try:
            published.append(world.publish(0, 1))
        except OriginError as error:
            assert "tidied" in str(error)

    origin.between, origin.after = (world.collect if publish_first else publish), after
    (publish if publish_first else world.collect)()
    origin.between = None
    for digest in published:
        assert world.whole(digest, tmp_path / "layer")
    publish()
    world.pass_time(GRACE_S + 1)
    world.collect()
    assert world.chunks() == names(0, 1)


PIECES = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)


class Interleavings(RuleBasedStateMachine):
    """Publishes, references that come and go, time, and sweeps in the midst of publishes and the other way round."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._temporary = tempfile.TemporaryDirectory()
        folder = Path(self._temporary.name)
        self.origin = Interrupted((folder / "origin").as_uri())
        self.world = World(folder / "origin", self.origin)
        self.scratch = folder
        self.looks = 0
        self.pending: set[str] = set()

    @initialize(pieces=PIECES)
    def first(self, pieces: list[int]) -> None:
        self.world.publish(*pieces)

    @rule(pieces=PIECES, refer=st.booleans())
    def publish(self, pieces: list[int], refer: bool) -> None:
        digest = self.world.publish(*pieces, refer=refer)
        if not refer:
            self.pending.add(digest)

    @rule(pieces=PIECES, after=AFTER)
    def publish_with_a_sweep_in_the_midst(self, pieces: list[int], after: int) -> None:
        self.origin.between, self.origin.after = self.world.collect, after
        self.world.publish(*pieces)
        self.origin.between = None

    @rule(pieces=PIECES, after=AFTER)
    def sweep_with_a_publish_in_the_midst(self, pieces: list[int], after: int) -> None:
        def publish() -> None:
            turns.WAIT_S, before = 0.0, turns.WAIT_S
            try:
                self.world.publish(*pieces)
            except OriginError as error:
                assert "tidied" in str(error)
            finally:
                turns.WAIT_S = before

        self.origin.between, self.origin.after = publish, after
        self.world.collect()
        self.origin.between = None

    @rule(pieces=PIECES)
    def a_publish_was_killed_long_ago(self, pieces: list[int]) -> None:
        for piece in pieces:
            name = chunk_name(KEY, CONTENTS[piece])
            if not self.origin.holds_chunk("acme", name):
                self.origin.put_chunk("acme", name, pack(CONTENTS[piece]))
        self.time_passes(DAY)

    @rule()
    def the_catalog_writes_down_what_was_published(self) -> None:
        assert self.world.roots.digests is not None
        self.world.roots.digests |= self.pending
        self.pending.clear()

    @precondition(lambda self: self.world.roots.digests)
    @rule(data=st.data())
    def a_reference_goes(self, data: st.DataObject) -> None:
        assert self.world.roots.digests is not None
        self.world.roots.digests.discard(data.draw(st.sampled_from(sorted(self.world.roots.digests))))

    @rule(seconds=st.sampled_from([GRACE_S / 2, GRACE_S + 1, DAY]))
    def time_passes(self, seconds: float) -> None:
        self.the_catalog_writes_down_what_was_published()
        self.world.pass_time(seconds)

    @rule()
    def sweep(self) -> None:
        self.world.collect()

    @invariant()
    def everything_referred_to_is_whole(self) -> None:
        for digest in (self.world.roots.digests or set()) | self.pending:
            self.looks += 1
            assert self.world.whole(digest, self.scratch / f"look{self.looks}")

    def teardown(self) -> None:
        self.the_catalog_writes_down_what_was_published()
        for _ in range(3):
            self.world.pass_time(GRACE_S + 1)
            self.world.collect()
        named = {
            chunk.name for digest in self.world.roots.digests or set() for chunk in self.origin.manifest("acme", digest).chunks
        }
        assert self.world.chunks() == named, "and nothing else is left"
        self._temporary.cleanup()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


# -- as flow runs it


def test_one_flow_sweeps_at_a_time_and_never_anothers_origin(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'catalog.db'}")
    store.migrate()
    store.keys.create_tenant("acme", 1)
    world = World(tmp_path / "origin")
    world.publish(0)
    left = chunk_name(KEY, b"left")
    world.origin.put_chunk("acme", left, b"left")
    world.pass_time(DAY)
    try:
        first, second = (Collector(store.packages, world.origin, Swept()) for _ in range(2))
        epoch = store.leases.acquire(collecting.LEASE, "another", "", 60)
        first._in_lease(store, "one")
        assert left in world.chunks()
        store.leases.release(collecting.LEASE, "another", epoch)
        first._in_lease(store, "one")
        assert world.chunks() == names(0)
        (world.folder / OWNER).write_text("somebody else")
        world.origin.put_chunk("acme", left, b"left")
        world.pass_time(DAY)
        second._in_lease(store, "one")
        assert left in world.chunks()
    finally:
        store.close()


def test_folders_are_found_as_tenants_are(tmp_path: Path) -> None:
    objects = Objects(tmp_path.as_uri())
    for name in ("chunks/acme/00/1", "chunks/acmeplus/00/1", "layers/rival/2"):
        objects.put(name, b"x")
    assert Origin(tmp_path.as_uri()).tenants() == {"acme", "acmeplus", "rival"}
    assert [one.name for some in objects.list("chunks/acme") for one in some] == ["chunks/acme/00/1"]

"""The origin as everything relies on it, over a folder, S3 and Azure: the same suite."""

import contextlib
import io
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles import object_stores

from orchestrator.doctor import services
from orchestrator.doctor.findings import Level
from orchestrator.flow import collecting
from orchestrator.flow.collecting import Collector
from orchestrator.flow.metrics import Swept
from orchestrator.settings import Settings
from workers.code import objects, turns
from workers.code.archive import unpack_archive, write_archive
from workers.code.chunks import chunk_key, unpack
from workers.code.layers import Limits, Source, assemble, verify
from workers.code.manifest import CHUNK_BYTES, Manifest
from workers.code.origin import Origin, OriginError
from workers.code.publishing import publish_layer
from workers.ports import ChunkSource

KEY = chunk_key(b"the cluster's key", "acme")
pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=["folder", "s3", "azure"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object_stores.Bucket]:
    if request.param == "folder":
        yield object_stores.Bucket(tmp_path_factory.mktemp("origin").as_uri(), {})
        return
    with {"s3": object_stores.s3, "azure": object_stores.azure}[request.param]() as made:
        yield made


@pytest.fixture
def origin(bucket: object_stores.Bucket, monkeypatch: pytest.MonkeyPatch) -> Origin:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    made = Origin(bucket.url)
    for tenant in made.tenants():
        made.forget_tenant(tenant)
    return made


def source(path: str, content: bytes, executable: bool = False) -> Source:
    return Source(path, executable, len(content), lambda: io.BytesIO(content))


LAYER = [source("handler.py", b"x = 1\n"), source("pkg/large.bin", os.urandom(3 * CHUNK_BYTES + 17)), source("run", b"", True)]


def bring(origin: ChunkSource, digest: str, folder: Path) -> Manifest:
    manifest = origin.manifest("acme", digest)
    folder.mkdir()
    assemble(manifest, lambda chunk: unpack(KEY, chunk.name, origin.chunk("acme", digest, chunk.name)), folder)
    return manifest


def chunks_of(origin: Origin, tenant: str = "acme") -> list[str]:
    return sorted(one.name for found in origin.list("chunks", tenant) for one in found)


def test_a_layer_comes_back_as_it_was(origin: Origin, tmp_path: Path) -> None:
    published = publish_layer(origin, "acme", KEY, LAYER)
    assert origin.name == "origin"
    assert origin.holds("acme", published.digest)
    assert bring(origin, published.digest, tmp_path / "layer") == published
    assert verify(tmp_path / "layer", published.digest, KEY)
    assert origin.marks("acme") == []


def test_equal_chunks_of_a_tenant_are_stored_once_and_those_of_another_apart(origin: Origin) -> None:
    first = publish_layer(origin, "acme", KEY, LAYER)
    before = chunks_of(origin)
    second = publish_layer(origin, "acme", KEY, [*LAYER, source("zz.py", b"y = 2\n")])
    assert first.digest != second.digest
    assert len(chunks_of(origin)) == len(before) + 1
    publish_layer(origin, "rival", chunk_key(b"the cluster's key", "rival"), LAYER)
    names = {name.rpartition("/")[2] for name in before}
    assert names.isdisjoint(name.rpartition("/")[2] for name in chunks_of(origin, "rival"))
    assert origin.tenants() == {"acme", "rival"}


def test_many_that_publish_one_digest_at_once_are_as_one(bucket: object_stores.Bucket, origin: Origin, tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def publish(_: int) -> str:
        barrier.wait(30)
        return publish_layer(Origin(bucket.url), "acme", KEY, LAYER).digest

    with ThreadPoolExecutor(3) as threads:
        (digest,) = set(threads.map(publish, range(3)))
    bring(origin, digest, tmp_path / "layer")
    assert verify(tmp_path / "layer", digest, KEY)
    assert len(chunks_of(origin)) == len(origin.manifest("acme", digest).chunks)


def test_a_package_is_streamed_back(origin: Origin, tmp_path: Path) -> None:
    out = io.BytesIO()
    listing = write_archive([source("large.bin", os.urandom(13 << 20)), source("h.py", b"")], out)
    out.seek(0)
    assert not origin.holds_package("acme", listing.digest)
    origin.put_package("acme", listing, out)
    assert origin.holds_package("acme", listing.digest)
    assert origin.listing("acme", listing.digest) == listing
    with origin.package("acme", listing.digest) as stream:
        assert unpack_archive(stream, tmp_path, Limits()) == listing
    for _ in range(2):  # once more does no harm
        origin.delete("acme", [f"packages/acme/{listing.digest[7:]}{end}" for end in (".listing", "")])
    assert not origin.holds_package("acme", listing.digest)


def test_what_is_not_there_is_said_by_name(origin: Origin) -> None:
    absent = "sha256:" + "0" * 64
    for ask in (
        lambda: origin.manifest("acme", absent),
        lambda: origin.chunk("acme", absent, "0" * 64),
        lambda: origin.listing("acme", absent),
        lambda: origin.package("acme", absent),
        lambda: origin.old_layer("acme", absent),
    ):
        with pytest.raises(OriginError, match=r"acme: not in the origin"):
            ask()
    assert not origin.holds("acme", absent)
    assert not origin.holds_chunk("acme", "0" * 64)
    assert not origin.holds_old("acme", absent)
    assert [list(origin.list(kind, "acme")) for kind in ("chunks", "layers")] == [[], []]
    origin.delete("acme", [f"layers/acme/{'0' * 64}.manifest"])
    origin.forget_tenant("acme")


@pytest.mark.parametrize(("tenant", "digest"), [("../x", "sha256:" + "0" * 64), ("acme", "sha256:../../x"), ("acme", "")])
def test_what_is_no_name_never_becomes_a_path(origin: Origin, tenant: str, digest: str) -> None:
    for ask in (origin.manifest, origin.holds, origin.package, origin.listing, origin.order):
        with pytest.raises(OriginError):
            ask(tenant, digest)
    with pytest.raises(OriginError):
        origin.chunk("acme", "sha256:" + "0" * 64, "../../../x")


def test_what_nothing_refers_to_is_swept(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "GRACE_S", -5.0)  # clocks of buckets count whole seconds
    kept = publish_layer(origin, "acme", KEY, LAYER)
    dropped = publish_layer(origin, "acme", KEY, [source("other.bin", os.urandom(700_000))])

    class Roots:
        def release(self, tenant: str, now: float, unused_s: float) -> int:
            return 0

        def kept(self, tenant: str) -> set[str]:
            return {kept.digest}

    swept = Swept()
    Collector(Roots(), origin, swept).collect("acme", 1.0)
    assert not origin.holds("acme", dropped.digest)
    assert {name.rpartition("/")[2] for name in chunks_of(origin)} == {chunk.name for chunk in kept.chunks}
    assert bring(origin, kept.digest, tmp_path / "layer") == kept
    assert (swept.objects["layers"], swept.objects["chunks"], swept.sweeps["done"]) == (1, len(dropped.chunks), 1)


def test_more_than_a_thousand_objects_go_too(origin: Origin) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: origin.put_chunk("acme", f"{number:064x}", b"x"), range(1100)))
    assert len(chunks_of(origin)) == 1100
    origin.forget_tenant("acme")
    assert chunks_of(origin) == []


def test_turns_are_seen_by_others(bucket: object_stores.Bucket, origin: Origin) -> None:
    other = Origin(bucket.url)
    with turns.publishing(origin, "acme"), turns.sweeping(other, "acme") as turn:
        assert not turn.free
    with turns.sweeping(other, "acme") as turn:
        assert turn.free
        with pytest.raises(OriginError, match="tidied"), turns.publishing(origin, "acme", wait_s=0):
            pass


@pytest.mark.usefixtures("origin")
def test_the_doctor_reaches_it(bucket: object_stores.Bucket, tmp_path: Path) -> None:
    found = services.of_origin(Settings(state=tmp_path, origin_url=bucket.url))
    assert found.level is not Level.FAIL, found  # a busy machine's answers may be slow, which is a warning


def test_the_first_that_asks_owns_it(bucket: object_stores.Bucket, origin: Origin) -> None:
    assert origin.owner("one") == "one"
    assert Origin(bucket.url).owner("another") == "one"


# -- away, slow


SECRET = "a-secret-that-no-message-holds"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "TIMEOUTS", {"timeout": "300ms", "connect_timeout": "300ms"})
    monkeypatch.setitem(objects.RETRIES, "max_retries", 1)
    for name, value in (
        ("AWS_ALLOW_HTTP", "true"), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def listening(answers: bool) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answers:
            yield server.getsockname()[1]  # it accepts, and never says a word
            return
        port = server.getsockname()[1]
    yield port


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answers", [True, False])
def test_an_origin_that_is_silent_or_gone_is_an_error_soon(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(answers) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        origin = Origin("s3://code-bucket")
        for ask in (lambda: publish_layer(origin, "acme", KEY, LAYER), lambda: origin.manifest("acme", "sha256:" + "0" * 64)):
            with pytest.raises(OriginError) as caught:
                ask()
            assert SECRET not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_google_storage_is_wired(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be seen without one: the URL leads to its client, which refuses a key that is none."""
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "{}")
    with pytest.raises(OriginError, match=r"origin_url gs://.*private_key"):
        Origin("gs://bucket/prefix")

"""Chunks, manifests and layers: what is cut is put together again, and nothing else is."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.code.chunks import CHUNK_BYTES, chunk_key, chunk_name, intact, pack, unpack
from workers.code.layers import LARGE, Limits, Source, assemble, lay_out, manifest_of, read_chunks, tree, verify
from workers.code.manifest import (
    Chunk,
    LayerError,
    LayerFile,
    Manifest,
    check_manifest,
    decode_manifest,
    encode_manifest,
)

KEY = chunk_key(b"the cluster's key", "acme")


def source(path: str, content: bytes, executable: bool = False) -> Source:
    return Source(path, executable, len(content), lambda: io.BytesIO(content))


def cut(sources: list[Source]) -> tuple[Manifest, dict[str, bytes]]:
    """The layer, and its chunks as they are stored."""
    ordered, _, sizes = lay_out(sources)
    manifest = manifest_of(sources, KEY)
    return manifest, {chunk_name(KEY, plain): pack(plain) for plain in read_chunks(ordered, sizes)}


def put_together(manifest: Manifest, stored: dict[str, bytes], folder: Path, **more: object) -> None:
    folder.mkdir(parents=True)
    assemble(manifest, lambda chunk: unpack(KEY, chunk.name, stored[chunk.name]), folder, **more)  # type: ignore[arg-type]


# -- chunks


@given(st.binary(max_size=3000), st.integers(0), st.integers(1, 255))
def test_a_chunk_is_what_it_was_or_refused(plain: bytes, at: int, change: int) -> None:
    name, stored = chunk_name(KEY, plain), pack(plain)
    assert intact(stored)
    assert unpack(KEY, name, stored) == plain
    damaged = bytearray(stored)
    damaged[at % len(stored)] ^= change
    assert not intact(bytes(damaged))
    try:
        assert unpack(KEY, name, bytes(damaged)) == plain, "the damage is none to the content"
    except LayerError as error:
        assert "checksum" in str(error)
    assert unpack(KEY, name, stored) == plain, "one that was damaged leaves nothing behind"


@pytest.mark.parametrize(
    "stored",
    [
        pack(b"another's"),
        pack(b"x" * (CHUNK_BYTES + 1)),
        pack(b"")[:32],
        b"",
        b"\0" * 40,
    ],
)
def test_what_is_another_chunk_or_none_is_refused(stored: bytes) -> None:
    with pytest.raises(LayerError):
        unpack(KEY, chunk_name(KEY, b"content"), stored)


def sealed(frame: bytes) -> bytes:
    """Whole by its checksum: what somebody could put there who has no key."""
    import hashlib

    return hashlib.sha256(frame).digest() + frame


def test_a_frame_that_hides_its_size_or_has_a_tail_is_refused_before_it_costs_memory() -> None:
    plain = b"content"
    name = chunk_name(KEY, plain)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    huge = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    for frame in (unsized, huge, zstandard.ZstdCompressor().compress(plain) + b"tail", b"not a frame"):
        with pytest.raises(LayerError):
            unpack(KEY, name, sealed(frame))


def test_a_name_tells_nothing_without_the_tenants_key() -> None:
    other = chunk_key(b"the cluster's key", "rival")
    assert len({chunk_name(key, b"content") for key in (KEY, other, chunk_key(b"another cluster's", "acme"))}) == 3
    with pytest.raises(LayerError, match="another"):
        unpack(other, chunk_name(KEY, b"content"), pack(b"content"))


# -- laying out


SIZES = st.one_of(st.integers(0, 3000), st.sampled_from([LARGE - 1, LARGE, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7]))
TREES = st.dictionaries(
    st.from_regex(r"[a-c]{1,3}(/[d-f]{1,2}){0,2}\.py", fullmatch=True), st.tuples(SIZES, st.booleans()), max_size=12
)


def sources_of(sizes: dict[str, tuple[int, bool]]) -> tuple[list[Source], dict[str, bytes]]:
    contents = {path: (path.encode() * (size // len(path) + 1))[:size] for path, (size, _) in sizes.items()}
    return [source(path, contents[path], executable) for path, (_, executable) in sizes.items()], contents


@settings(deadline=None, max_examples=60)
@given(TREES)
def test_any_tree_survives_being_cut_and_put_together(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, tuple[int, bool]]
) -> None:
    sources, contents = sources_of(sizes)
    manifest, stored = cut(sources)
    check_manifest(manifest)
    assert decode_manifest(encode_manifest(manifest), manifest.digest) == manifest
    folder = tmp_path_factory.mktemp("layer") / "tree"
    put_together(manifest, stored, folder)
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == contents
    assert {path for path in sizes if os.access(folder / path, os.X_OK)} == {path for path, (_, on) in sizes.items() if on}
    assert verify(folder, manifest.digest, KEY)
    for file in manifest.files:
        assert (
            b"".join(
                unpack(KEY, manifest.chunks[span.index].name, stored[manifest.chunks[span.index].name])[span.start : span.stop]
                for span in manifest.spans(file.offset, file.size)
            )
            == contents[file.path]
        )
        if file.size >= LARGE:
            assert file.offset in manifest.starts, "a large file begins a chunk"
            assert file.offset + file.size in (*manifest.starts, manifest.size), "and what follows it another"


def test_spans_end_where_the_content_ends() -> None:
    manifest, _ = cut([source("a", b"x" * (CHUNK_BYTES + 10))])
    assert [(span.index, span.start, span.stop) for span in manifest.spans(CHUNK_BYTES - 1, 5000)] == [
        (0, CHUNK_BYTES - 1, CHUNK_BYTES),
        (1, 0, 10),
    ]
    assert list(manifest.spans(manifest.size, 1)) == list(manifest.spans(0, 0)) == []
    assert list(Manifest((), ()).spans(0, 10)) == []


def test_a_changed_file_changes_few_chunks() -> None:
    before = [source(f"pkg/m{number:04}.py", os.urandom(20_000)) for number in range(300)]
    after = [*before[:40], source("pkg/m0040.py", os.urandom(31_000)), *before[41:]]
    kept = {chunk.name for chunk in manifest_of(before, KEY).chunks} & {chunk.name for chunk in manifest_of(after, KEY).chunks}
    assert len(kept) >= len(manifest_of(before, KEY).chunks) - 6


@pytest.mark.parametrize("promised", [2, 4])
def test_a_source_that_is_not_as_long_as_promised_is_refused(promised: int) -> None:
    with pytest.raises(LayerError, match="than declared"):
        manifest_of([Source("grows", False, promised, lambda: io.BytesIO(b"abc"))], KEY)


@pytest.mark.parametrize("change", [{"a.py": b"1 "}, {"a.py": b"1", "b.py": b""}, {"A.py": b"1"}, {"a.p": b"y1"}])
def test_another_content_name_or_mode_is_another_digest(change: dict[str, bytes]) -> None:
    digest = manifest_of([source("a.py", b"1")], KEY).digest
    assert manifest_of([source(path, content) for path, content in change.items()], KEY).digest != digest
    assert manifest_of([source("a.py", b"1", executable=True)], KEY).digest != digest


def test_whatever_changes_on_disk_is_seen(tmp_path: Path) -> None:
    manifest, stored = cut([source("pkg/a.py", b"1"), source("b.py", b"2")])
    changes: list[Callable[[Path], object]] = [
        lambda folder: (folder / "b.py").write_bytes(b"3"),
        lambda folder: (folder / "b.py").chmod(0o755),
        lambda folder: (folder / "b.py").unlink(),
        lambda folder: (folder / "c.py").write_bytes(b""),
        lambda folder: (folder / "pkg" / "link").symlink_to("a.py"),
    ]
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        put_together(manifest, stored, folder)
        assert verify(folder, manifest.digest, KEY)
        change(folder)
        assert not verify(folder, manifest.digest, KEY)


# -- manifests of others


def made(*files: LayerFile, chunks: tuple[Chunk, ...] = ()) -> Manifest:
    return Manifest(files, chunks)


NAME = "0" * 64


@pytest.mark.parametrize(
    ("manifest", "rule"),
    [
        (made(LayerFile("../a", 0o644, 0, 0)), "component"),
        (made(LayerFile("/etc/passwd", 0o644, 0, 0)), "relative"),
        (made(LayerFile("a", 0o4755, 0, 0)), "mode"),
        (made(LayerFile("b", 0o644, 0, 0), LayerFile("a", 0o644, 0, 0)), "order"),
        (made(LayerFile("a", 0o644, 0, 0), LayerFile("a", 0o644, 0, 0)), "twice"),
        (made(LayerFile("a", 0o644, 5, 0)), "hold"),
        (made(LayerFile("a", 0o644, 5, 1), chunks=(Chunk(NAME, 5),)), "follow"),
        (made(LayerFile("a", 0o644, -5, 0), LayerFile("b", 0o644, 10, -5), chunks=(Chunk(NAME, 5),)), "follow"),
        (made(LayerFile("a", 0o644, 5, 0), chunks=(Chunk("../../x", 5),)), "name"),
        (made(LayerFile("a", 0o644, 2 * CHUNK_BYTES, 0), chunks=(Chunk(NAME, 2 * CHUNK_BYTES),)), "bytes"),
        (made(LayerFile("a", 0o644, 0, 0), chunks=(Chunk(NAME, 0),)), "bytes"),
        (made(*(LayerFile(f"{number:06}", 0o644, 0, 0) for number in range(50_001))), "files"),
    ],
)  # fmt: skip
def test_a_manifest_that_breaks_a_rule_is_refused_whoever_signed_its_digest(
    tmp_path: Path, manifest: Manifest, rule: str
) -> None:
    with pytest.raises(LayerError, match=rule):
        decode_manifest(encode_manifest(manifest), manifest.digest)
    with pytest.raises(LayerError, match=rule):
        put_together(manifest, {}, tmp_path / "tree")
    assert list((tmp_path / "tree").iterdir()) == []


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    for number, paths in enumerate((("a", "a/b"), ("a", "a!", "a/b"))):
        manifest = made(*(LayerFile(path, 0o644, 0, 0) for path in paths))
        with pytest.raises(LayerError, match="a file and a folder"):
            put_together(manifest, {}, tmp_path / str(number))


@given(st.binary(max_size=300))
def test_any_bytes_for_a_manifest_are_refused(stored: bytes) -> None:
    for one in (stored, zstandard.ZstdCompressor().compress(stored)):
        with pytest.raises(LayerError):
            decode_manifest(one, "sha256:" + "0" * 64)


def test_a_manifest_with_a_hostile_frame_costs_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (65 << 20))
    with pytest.raises(LayerError, match="64 MiB"):
        decode_manifest(bomb, "sha256:" + "0" * 64)


def test_a_manifest_names_its_chunks_and_sizes() -> None:
    one = made(LayerFile("a", 0o644, 5, 0), chunks=(Chunk(NAME, 5),))
    others = [
        msgspec.structs.replace(one, chunks=(Chunk("1" * 64, 5),)),
        msgspec.structs.replace(one, chunks=(Chunk(NAME, 4), Chunk(NAME, 1))),
        msgspec.structs.replace(one, files=(LayerFile("a", 0o644, 4, 0),)),
    ]
    assert len({manifest.digest for manifest in (one, *others)}) == 4
    with pytest.raises(LayerError, match="digest"):
        decode_manifest(encode_manifest(others[0]), one.digest)


# -- putting together


def test_limits_hold_before_anything_is_written(tmp_path: Path) -> None:
    manifest, stored = cut([source(f"f{number}", b"x" * 100) for number in range(10)])
    for number, limits in enumerate((Limits(size=500), Limits(files=5))):
        with pytest.raises(LayerError, match="over"):
            put_together(manifest, stored, tmp_path / str(number), limits=limits)
        assert list((tmp_path / str(number)).iterdir()) == []
    with pytest.raises(LayerError, match="over"):
        list(tree(_written(tmp_path / "tree", manifest, stored), Limits(files=5)))


def _written(folder: Path, manifest: Manifest, stored: dict[str, bytes]) -> Path:
    put_together(manifest, stored, folder)
    return folder


def test_a_chunk_of_another_length_is_refused(tmp_path: Path) -> None:
    manifest, _ = cut([source("a", b"x" * 100)])
    with pytest.raises(LayerError, match="manifest says"):
        assemble(manifest, lambda _: b"x" * 99, tmp_path)


def test_what_is_there_is_never_written_over_or_through(tmp_path: Path) -> None:
    manifest, stored = cut([source("pkg/a.py", b"1")])
    outside, folder = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    folder.mkdir()
    (folder / "pkg").symlink_to(outside)
    with pytest.raises(LayerError):
        assemble(manifest, lambda chunk: unpack(KEY, chunk.name, stored[chunk.name]), folder)
    assert list(outside.iterdir()) == []


def test_a_chunk_that_cannot_be_had_ends_it(tmp_path: Path) -> None:
    manifest, stored = cut([source("a", os.urandom(20 * CHUNK_BYTES))])
    lost = manifest.chunks[10].name

    def chunk_of(chunk: Chunk) -> bytes:
        if chunk.name == lost:
            raise ConnectionError("away")
        return unpack(KEY, chunk.name, stored[chunk.name])

    with pytest.raises(ConnectionError):
        assemble(manifest, chunk_of, tmp_path)

"""What a layer holds and what it is called: its files, and the chunks that their bytes lie in.

A layer's *content* is its files' bytes one after another, in the order of their paths, cut into chunks. The digest that names
the layer is `sha256:` + hex over the manifest: modes, sizes and paths of the files, sizes and names of the chunks.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import msgspec
import zstandard

CHUNK_BYTES = 512 << 10
PARCEL_CHUNKS = 8
"""A layer of so many chunks at most is sent as one parcel: its manifest, and then all its chunks."""

PARCEL_LENGTH_BYTES = 4
"""Before each part of a parcel: its length, big-endian."""

MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255
MAX_FILES = 50_000
MAX_LAYER_BYTES = 512 << 20
MAX_MANIFEST_BYTES = 64 << 20
"""Of a manifest, stored or not: 50,000 of the longest paths."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[0-9a-f]{64}")


class LayerError(ValueError):
    """The tree, the manifest or a chunk breaks a rule of layers; the message names what, and the rule."""


class LayerFile(msgspec.Struct, frozen=True, array_like=True):
    """`mode` is 0o644 or 0o755; `size` bytes begin at `offset` of the layer's content."""

    path: str
    mode: int
    size: int
    offset: int


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """`name`: see workers.code.chunks; `size`: bytes of content."""

    name: str
    size: int


class Span(msgspec.Struct, frozen=True):
    """The bytes from `start` to `stop` of the chunk number `index`."""

    index: int
    start: int
    stop: int


class Manifest(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """`files` sorted by path, `chunks` in the order of the content."""

    files: tuple[LayerFile, ...]
    chunks: tuple[Chunk, ...]

    @cached_property
    def size(self) -> int:
        """The sum of the files' bytes."""
        return sum(chunk.size for chunk in self.chunks)

    @cached_property
    def digest(self) -> str:
        files = "".join(f"{file.mode:o} {file.size} {file.path}\0" for file in self.files)
        chunks = "".join(f"{chunk.size} {chunk.name}\0" for chunk in self.chunks)
        return "sha256:" + hashlib.sha256(f"layer\0{files}\0{chunks}".encode()).hexdigest()

    @cached_property
    def starts(self) -> Sequence[int]:
        """At which byte of the content each chunk begins."""
        return [0, *accumulate(chunk.size for chunk in self.chunks)][: len(self.chunks)]

    def spans(self, offset: int, size: int) -> Iterator[Span]:
        """Where the `size` bytes from `offset` of the content lie, in their order; what is behind its end is left out."""
        end = min(offset + size, self.size)
        index = bisect_right(self.starts, offset) - 1
        while offset < end:
            start = self.starts[index]
            stop = min(end, start + self.chunks[index].size)
            yield Span(index, offset - start, stop - start)
            offset = stop
            index += 1

    def holds_module(self, module: str) -> bool:
        """True when `module` (dotted) could be imported from this layer: source, package or extension."""
        return any(names_module(file.path, module) for file in self.files)


def names_module(path: str, module: str) -> bool:
    """True when the file `path` is what `module` (dotted) would be imported from."""
    stem = module.replace(".", "/")
    return path in (f"{stem}.py", f"{stem}/__init__.py") or (path.startswith(f"{stem}.") and path.endswith(".so"))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """As it is stored: one zstd frame. Same manifest, same bytes."""
    return zstandard.ZstdCompressor(level=3).compress(_encode(manifest))


def decode_manifest(stored: bytes, digest: str) -> Manifest:
    """The manifest when it is the one that `digest` names and keeps every rule. Raises LayerError."""
    try:
        if len(stored) > MAX_MANIFEST_BYTES or not 0 <= zstandard.frame_content_size(stored) <= MAX_MANIFEST_BYTES:
            raise LayerError(f"manifest of layer {digest[:19]}: over {MAX_MANIFEST_BYTES >> 20} MiB, or no manifest")
        manifest = _decode(zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False))
        same = manifest.digest == digest
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeError) as error:
        raise LayerError(f"manifest of layer {digest[:19]}: {error}") from error
    if not same:
        raise LayerError(f"manifest of layer {digest[:19]}: it has the digest {manifest.digest[:19]}")
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Raises LayerError naming the first rule that it breaks."""
    if len(manifest.files) > MAX_FILES or manifest.size > MAX_LAYER_BYTES:
        raise LayerError(f"a layer holds at most {MAX_FILES} files and {MAX_LAYER_BYTES >> 20} MiB")
    before, offset = "", 0
    for file in manifest.files:
        path = check_path(file.path)
        if path <= before:
            raise LayerError(f"{path!r}: not in the order of paths, or twice")
        if file.mode not in (0o644, 0o755):
            raise LayerError(f"{path!r}: only plain files with mode 0644 or 0755 belong in a layer")
        if file.size < 0 or file.offset != offset:
            raise LayerError(f"{path!r}: its bytes do not follow those of the file before")
        before, offset = path, offset + file.size
    for chunk in manifest.chunks:
        if not 0 < chunk.size <= CHUNK_BYTES or not _NAME.fullmatch(chunk.name):
            raise LayerError(f"chunk {chunk.name[:12]!r}: not a name, or not 1 to {CHUNK_BYTES} bytes")
    if manifest.size != offset:
        raise LayerError(f"the chunks hold {manifest.size} bytes, the files {offset}")


def hex_of(digest: str) -> str:
    """The hex part of `sha256:...`. Raises LayerError: what is not a digest never becomes a path."""
    kind, _, hexadecimal = digest.partition(":")
    if kind != "sha256" or not _NAME.fullmatch(hexadecimal):
        raise LayerError(f"not a layer digest: {digest[:80]!r}")
    return hexadecimal


def check_name(name: str) -> str:
    """`name` when it can be a chunk's. Raises LayerError: what is not never becomes a path."""
    if not _NAME.fullmatch(name):
        raise LayerError(f"not a chunk's name: {name[:80]!r}")
    return name


def check_path(path: str) -> str:
    """`path` when it is a relative path in its shortest form; raises LayerError naming what is wrong with it."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise LayerError(f"{path[:120]!r}: the name is not UTF-8") from None
    if not path or len(encoded) > MAX_PATH_BYTES:
        raise LayerError(f"{path[:120]!r}: a path has 1 to {MAX_PATH_BYTES} bytes")
    if _CONTROL.search(path):
        raise LayerError(f"{path[:120]!r}: control characters in the name")
    if "\\" in path or path.startswith("/") or path[1:2] == ":":
        raise LayerError(f"{path[:120]!r}: the path must be relative, with forward slashes")
    for component in encoded.split(b"/"):
        if component in (b"", b".", b".."):
            raise LayerError(f"{path[:120]!r}: empty, '.' or '..' component in the path")
        if len(component) > MAX_COMPONENT_BYTES:
            raise LayerError(f"{path[:120]!r}: a component is over {MAX_COMPONENT_BYTES} bytes")
    return path

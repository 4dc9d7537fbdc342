"""An uploaded package as a deterministic tar.zst with its listing. It goes from control to flow and never to a node.

An earlier release kept layers in this form too; what it built is read from it until it is built again.
"""

import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from workers.code.layers import Limits, Source, make_folders, new_file, tree
from workers.code.manifest import LayerError, check_path, names_module

READ_BYTES = 1 << 20
MAX_WINDOW = 128 << 20  # memory that reading a hostile frame may ask for
COMPRESSION_LEVEL = 3


class ListedFile(msgspec.Struct, frozen=True, array_like=True):
    """`mode` is 0o644 or 0o755, `digest` the hex SHA-256 of the content."""

    path: str
    mode: int
    digest: str


class Listing(msgspec.Struct, frozen=True, array_like=True):
    """What an archive holds, sorted by path; `size` is the sum of the files' bytes."""

    files: tuple[ListedFile, ...]
    size: int

    @property
    def digest(self) -> str:
        """`sha256:` + hex over one `mode digest path` a file."""
        lines = b"".join(f"{file.mode:o} {file.digest} {file.path}\0".encode() for file in self.files)
        return "sha256:" + hashlib.sha256(lines).hexdigest()

    def holds_module(self, module: str) -> bool:
        """True when `module` (dotted) could be imported from it: source, package or extension."""
        return any(names_module(file.path, module) for file in self.files)


encode_listing = msgspec.json.Encoder().encode
decode_listing = msgspec.json.Decoder(Listing).decode


class _HashingReader:
    """Reads a source once, counts and hashes it; holds it to its promised size."""

    def __init__(self, source: Source, stream: BinaryIO) -> None:
        self._source = source
        self._stream = stream
        self._hash = hashlib.sha256()
        self._left = source.size

    def read(self, size: int = -1) -> bytes:
        """As much as asked for, whatever pieces it comes in."""
        wanted = self._left if size < 0 else min(size, self._left)
        chunk = self._stream.read(wanted) if wanted else b""
        while len(chunk) < wanted:
            more = self._stream.read(wanted - len(chunk))
            if not more:
                raise LayerError(f"{self._source.path!r}: shorter than declared")
            chunk += more
        self._left -= len(chunk)
        self._hash.update(chunk)
        return chunk

    def finish(self) -> str:
        if self._stream.read(1):
            raise LayerError(f"{self._source.path!r}: longer than declared")
        return self._hash.hexdigest()


def write_archive(sources: Iterable[Source], out: BinaryIO) -> Listing:
    """Writes the sources to `out` as tar.zst, sorted by path, and returns what was written. Same sources, same bytes.

    Paths must have passed check_path and be unique. Raises LayerError and what opening or reading a source raises.
    """
    files: list[ListedFile] = []
    size = 0
    with zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).stream_writer(out, closefd=False) as compressed:
        # not closed when a source fails: an error must not leave an archive that looks whole
        archive = tarfile.TarFile(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT)
        for source in sorted(sources, key=lambda source: source.path):
            entry = tarfile.TarInfo(source.path)
            entry.size = source.size
            entry.mode = 0o755 if source.executable else 0o644
            with source.open() as stream:
                reader = _HashingReader(source, stream)
                archive.addfile(entry, reader)
                files.append(ListedFile(source.path, entry.mode, reader.finish()))
            size += source.size
        archive.close()
    return Listing(tuple(files), size)


def unpack_archive(stream: BinaryIO, folder: Path, limits: Limits) -> Listing:
    """Unpacks a tar.zst into the empty `folder` and returns the listing of what it really held.

    Files and folders are made as workers.code.layers.assemble makes them. Raises LayerError on anything else than regular
    files, bad paths or a limit; OSError.
    """
    files: list[ListedFile] = []
    made = {""}
    size = 0
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(stream, read_across_frames=True)
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for entry in archive:
                path = check_path(entry.name)
                size += entry.size
                if not entry.isreg() or entry.mode not in (0o644, 0o755):
                    raise LayerError(f"{path!r}: only plain files with mode 0644 or 0755 belong in a layer")
                if size > limits.size or len(files) >= limits.files:
                    raise LayerError(f"over {limits.size} bytes or {limits.files} files")
                make_folders(str(folder), path, made)
                content = archive.extractfile(entry)
                assert content is not None
                digest = hashlib.sha256()
                with new_file(folder / path, entry.mode) as write:
                    while part := content.read(READ_BYTES):
                        digest.update(part)
                        write(part)
                files.append(ListedFile(path, entry.mode, digest.hexdigest()))
    except (tarfile.TarError, zstandard.ZstdError, EOFError, UnicodeError, FileExistsError, NotADirectoryError) as error:
        raise LayerError(f"not an archive: {error}") from error
    files.sort(key=lambda file: file.path)
    return Listing(tuple(files), size)


def unpack_old_layer(stream: BinaryIO, folder: Path, digest: str, limits: Limits) -> int:
    """A layer of an earlier release, unpacked as unpack_archive does it; its size. Raises LayerError, OSError."""
    listing = unpack_archive(stream, folder, limits)
    if listing.digest != digest:
        raise LayerError(f"the origin's layer has the digest {listing.digest[:19]}")
    return listing.size


def verify_old_layer(folder: Path, digest: str, limits: Limits) -> bool:
    """True when the tree on disk still is the layer `digest` of an earlier release; reads every file."""
    files: list[ListedFile] = []
    size = 0
    try:
        for source in tree(folder, limits):
            with source.open() as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # the stubs want readinto
            files.append(ListedFile(source.path, 0o755 if source.executable else 0o644, content))
            size += source.size
    except (OSError, LayerError):
        return False
    return Listing(tuple(sorted(files, key=lambda file: file.path)), size).digest == digest

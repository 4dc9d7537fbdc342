"""A layer: a tree of plain files, written and read as a deterministic tar.zst.

It holds regular files only, with mode 0644 or 0755: no link can lead out of it, because there is none.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from workers.code.manifest import LayerError, LayerFile, Manifest, check_path

CHUNK = 1 << 20
MAX_WINDOW = 128 << 20  # memory that reading a hostile frame may ask for
COMPRESSION_LEVEL = 3


class Source(msgspec.Struct, frozen=True):
    """One file on its way into a layer. `size` is promised: reading more or less is an error."""

    path: str
    executable: bool
    size: int
    open: Callable[[], BinaryIO]


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one layer."""

    size: int = 250 << 20
    files: int = 20_000


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


def write_layer(sources: Iterable[Source], out: BinaryIO) -> Manifest:
    """Writes the sources to `out` as tar.zst, sorted by path, and returns what was written. Same sources, same bytes.

    Paths must have passed check_path and be unique. Raises LayerError and what opening or reading a source raises.
    """
    files: list[LayerFile] = []
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
                files.append(LayerFile(source.path, entry.mode, reader.finish()))
            size += source.size
        archive.close()
    return Manifest(tuple(files), size)


def unpack_layer(stream: BinaryIO, folder: Path, limits: Limits) -> Manifest:
    """Unpacks a tar.zst into the empty `folder` and returns the manifest of what it really held.

    Every file is new (O_EXCL) and every folder made here, so nothing can be written through a link. Folders get 0755, files
    their mode, whatever the umask. Raises LayerError on anything else than regular files, bad paths or a limit; OSError.
    """
    files: list[LayerFile] = []
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
                _make_folders(folder, path, made)
                content = archive.extractfile(entry)
                assert content is not None
                files.append(LayerFile(path, entry.mode, _write_file(folder / path, entry.mode, content)))
    except (tarfile.TarError, zstandard.ZstdError, EOFError, UnicodeError, FileExistsError, NotADirectoryError) as error:
        raise LayerError(f"not a layer archive: {error}") from error
    files.sort(key=lambda file: file.path)
    return Manifest(tuple(files), size)


def _make_folders(folder: Path, path: str, made: set[str]) -> None:
    parent = path.rpartition("/")[0]
    if parent in made:
        return
    _make_folders(folder, parent, made)
    (folder / parent).mkdir()
    (folder / parent).chmod(0o755)
    made.add(parent)


def _write_file(target: Path, mode: int, content: Iterable[bytes] | object) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while chunk := content.read(CHUNK):  # type: ignore[union-attr]
            digest.update(chunk)
            file.write(chunk)
        os.fchmod(file.fileno(), mode)
    return digest.hexdigest()


def tree(folder: Path, limits: Limits) -> Iterator[Source]:
    """The regular files below `folder` as sources, links never followed. Raises LayerError over a limit or on a link."""
    size = count = 0
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                name = check_path(str(path.relative_to(folder)))
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                    continue
                if not entry.is_file(follow_symlinks=False):
                    raise LayerError(f"{name!r}: only plain files and folders belong in a layer")
                status = entry.stat(follow_symlinks=False)
                size += status.st_size
                count += 1
                if size > limits.size or count > limits.files:
                    raise LayerError(f"over {limits.size >> 20} MiB or {limits.files} files")
                yield Source(name, bool(status.st_mode & 0o100), status.st_size, _opener(path))


def _opener(path: Path) -> Callable[[], BinaryIO]:
    def opened() -> BinaryIO:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    return opened


def verify(folder: Path, digest: str, limits: Limits) -> bool:
    """True when the tree on disk still is the layer `digest`; reads every file."""
    files: list[LayerFile] = []
    size = 0
    try:
        for source in tree(folder, limits):
            with source.open() as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # the stubs want readinto
            files.append(LayerFile(source.path, 0o755 if source.executable else 0o644, content))
            size += source.size
    except (OSError, LayerError):
        return False
    return Manifest(tuple(sorted(files, key=lambda file: file.path)), size).digest == digest

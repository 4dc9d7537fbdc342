"""A layer as a tree of plain files on a disk: cut into chunks on one side, put together again on the other.

It holds regular files only, with mode 0644 or 0755: no link can lead out of it, because there is none.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from workers.code.chunks import chunk_name
from workers.code.manifest import (
    CHUNK_BYTES,
    MAX_FILES,
    MAX_LAYER_BYTES,
    Chunk,
    LayerError,
    LayerFile,
    Manifest,
    check_manifest,
    check_path,
)

FOLDER_MODE = 0o755
LARGE = CHUNK_BYTES // 2
"""A file from this size on has chunks of its own."""


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


LARGEST = Limits(MAX_LAYER_BYTES, MAX_FILES)


# -- from files to chunks


def lay_out(sources: Iterable[Source]) -> tuple[Sequence[Source], tuple[LayerFile, ...], Sequence[int]]:
    """The sources in their order, the files they become, and the sizes of the chunks that hold them.

    Small files share chunks. Where one ends depends on the files' names too, so that after a changed file the same cuts come
    again soon, and most chunks of the next version of a package are those of the one before.
    """
    ordered = sorted(sources, key=lambda source: source.path)
    files: list[LayerFile] = []
    cuts: list[int] = []
    offset = shared = 0
    for source in ordered:
        large = source.size >= LARGE
        if shared and (large or shared + source.size > CHUNK_BYTES or (shared >= LARGE and _ends_a_chunk(source.path))):
            cuts.append(shared)
            shared = 0
        files.append(LayerFile(source.path, 0o755 if source.executable else 0o644, source.size, offset))
        offset += source.size
        if large:
            cuts.extend(min(CHUNK_BYTES, source.size - start) for start in range(0, source.size, CHUNK_BYTES))
        else:
            shared += source.size
    if shared:
        cuts.append(shared)
    return ordered, tuple(files), cuts


def _ends_a_chunk(path: str) -> bool:
    return zlib.crc32(path.encode()) % 8 == 0


def read_chunks(ordered: Iterable[Source], cuts: Iterable[int]) -> Iterator[bytes]:
    """The content of each chunk, every source read once. Raises LayerError, and what opening or reading a source raises."""
    sizes = iter(cuts)
    wanted = next(sizes, 0)
    content = bytearray()
    for source in ordered:
        with source.open() as stream:
            left = source.size
            while left:
                part = stream.read(min(left, wanted - len(content)))
                if not part:
                    raise LayerError(f"{source.path!r}: shorter than declared")
                left -= len(part)
                content += part
                if len(content) == wanted:
                    yield bytes(content)
                    content.clear()
                    wanted = next(sizes, 0)
            if stream.read(1):
                raise LayerError(f"{source.path!r}: longer than declared")


def manifest_of(sources: Iterable[Source], key: bytes) -> Manifest:
    """What a layer of these sources is called; nothing is stored. Raises as read_chunks does."""
    ordered, files, cuts = lay_out(sources)
    return Manifest(files, tuple(Chunk(chunk_name(key, plain), len(plain)) for plain in read_chunks(ordered, cuts)))


def verify(folder: Path, digest: str, key: bytes, limits: Limits = LARGEST) -> bool:
    """True when the tree on disk still is the layer `digest`; reads every file."""
    try:
        return manifest_of(tree(folder, limits), key).digest == digest
    except (OSError, LayerError):
        return False


# -- from chunks to files


def assemble(
    manifest: Manifest,
    chunk_of: Callable[[Chunk], bytes],
    folder: Path,
    limits: Limits = LARGEST,
) -> None:
    """Writes the layer's files into the empty `folder`. `chunk_of` gives a chunk's content, verified.

    Every file is new (O_EXCL) and every folder made here, so nothing can be written through a link. Folders get 0755, files
    their mode, whatever the umask. Raises LayerError, OSError and what `chunk_of` raises; what is written by then stays.
    """
    check_manifest(manifest)
    if manifest.size > limits.size or len(manifest.files) > limits.files:
        raise LayerError(f"over {limits.size} bytes or {limits.files} files")
    content = _Content(_checked(manifest.chunks, chunk_of))
    root, made = str(folder), {""}
    try:
        for file in manifest.files:  # all of them first: the first chunk is on its way meanwhile
            make_folders(root, file.path, made)
        for file in manifest.files:
            descriptor = _create(f"{root}/{file.path}")
            try:
                content.copy(file.size, descriptor)
                os.fchmod(descriptor, file.mode)
            finally:
                os.close(descriptor)
    except (FileExistsError, NotADirectoryError) as error:
        raise LayerError(f"{error.filename}: a file and a folder of one name") from error


def _checked(chunks: Iterable[Chunk], chunk_of: Callable[[Chunk], bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        plain = chunk_of(chunk)
        if len(plain) != chunk.size:
            raise LayerError(f"chunk {chunk.name[:12]}: {len(plain)} bytes, the manifest says {chunk.size}")
        yield plain


class _Content:
    """The chunks' content as one stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def copy(self, size: int, descriptor: int) -> None:
        while size:
            if not self._rest:
                self._rest = memoryview(next(self._chunks))  # there is one: the manifest was checked
            written = os.write(descriptor, self._rest[:size])  # a full disk may take a part, and says so at the next
            self._rest = self._rest[written:]
            size -= written


def make_folders(folder: str, path: str, made: set[str]) -> None:
    """The folders above `path`, those in `made` excepted, each 0755. Raises FileExistsError when something has the name."""
    parent = path.rpartition("/")[0]
    if parent in made:
        return
    make_folders(folder, parent, made)
    os.mkdir(f"{folder}/{parent}")
    os.chmod(f"{folder}/{parent}", FOLDER_MODE)
    made.add(parent)


def _create(path: str) -> int:
    """A descriptor of a file that was not there, and that nobody else may read yet."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextmanager
def new_file(target: Path, mode: int) -> Iterator[Callable[[bytes], object]]:
    """Writes one file that was not there; its mode comes last."""
    with os.fdopen(_create(str(target)), "wb", buffering=0) as file:

        def write(part: bytes) -> None:
            rest = memoryview(part)
            while rest:  # a full disk may take a part, and says so at the next
                rest = rest[file.write(rest) :]

        yield write
        os.fchmod(file.fileno(), mode)


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

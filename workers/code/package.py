"""The user's zip becomes a package: every rule is checked before a byte is kept, every size counted as it is read.

Nothing is unpacked to disk on the way: files go from the zip into the package's tar in sorted order. A symbolic link is
accepted only when it names a plain file of the same zip, and becomes a copy of it.
"""

import errno
import posixpath
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

import msgspec

from workers.code.archive import Listing, write_archive
from workers.code.layers import Limits, Source
from workers.code.manifest import LayerError, check_path
from workers.code.requirements import REQUIREMENTS_FILE, RequirementsError, parse_requirements

MAX_ZIP_BYTES = 50 << 20
MAX_REQUIREMENTS_BYTES = 64 << 10
MAX_LINK_BYTES = 1024
MAX_DIRECTORY_BYTES = 8 << 20
"""Of the zip's central directory, which the reader holds in memory as a whole."""

_END = struct.Struct("<4s4H2LH")
_ENCRYPTED = 0x1
_UTF8 = 0x800
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError)


class PackageError(ValueError):
    """The zip was refused; the message names the entry and the rule, `field` what to change."""

    def __init__(self, message: str, field: str = "package") -> None:
        super().__init__(message)
        self.field = field


class Package(msgspec.Struct, frozen=True):
    """`requirements`: the accepted lines of requirements.txt, empty when there are none."""

    listing: Listing
    requirements: tuple[str, ...]

    @property
    def digest(self) -> str:
        return self.listing.digest


def build_package(archive: BinaryIO, out: BinaryIO, limits: Limits | None = None) -> Package:
    """Checks the zip in `archive` (seekable) and writes its tar.zst to `out`. Raises PackageError."""
    limits = limits or Limits()
    try:
        _check_size(archive)
        with zipfile.ZipFile(archive) as opened:
            sources = _sources(opened, limits)
            requirements = _requirements(opened, sources)
            listing = write_archive(sources, out)
    except PackageError:
        raise
    except LayerError as error:
        raise PackageError(str(error)) from error
    except RequirementsError as error:
        raise PackageError(str(error), "package.requirements.txt") from error
    except _UNREADABLE as error:
        raise PackageError(f"not a readable zip: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning; anything else is trouble of our own
            raise
        raise PackageError("not a readable zip: an entry lies outside of it") from error
    return Package(listing, requirements)


def _check_size(archive: BinaryIO) -> None:
    """Refuses, before the reader builds an object for each entry, an archive that is too large or claims too much."""
    size = archive.seek(0, 2)
    if size > MAX_ZIP_BYTES:
        raise PackageError(f"the zip has {size} bytes, the limit is {MAX_ZIP_BYTES >> 20} MiB")
    archive.seek(max(0, size - _END.size - 0xFFFF))
    tail = archive.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise PackageError("not a zip: it has no end record")
    directory_size = _END.unpack_from(tail, at)[5]
    if b"PK\x06\x07" in tail[max(0, at - 20) : at]:
        raise PackageError("zip64 is not accepted; a package within the limits does not need it")
    if directory_size > MAX_DIRECTORY_BYTES:
        raise PackageError("too many entries in the zip")
    archive.seek(0)


def _sources(opened: zipfile.ZipFile, limits: Limits) -> list[Source]:
    entries = opened.infolist()
    if len(entries) > limits.files:
        raise PackageError(f"the zip has {len(entries)} entries, the limit is {limits.files}")
    if sum(entry.file_size for entry in entries) > limits.size:
        raise PackageError(f"the zip declares over {limits.size >> 20} MiB unpacked")
    names = _Names()
    files: dict[str, zipfile.ZipInfo] = {}
    links: list[zipfile.ZipInfo] = []
    for entry in entries:
        mode = _check_entry(entry)
        folder = entry.filename.endswith("/")
        names.add(check_path(entry.filename.removesuffix("/")), folder)
        if stat.S_ISLNK(mode):
            links.append(entry)
        elif not folder:
            files[entry.filename] = entry
    sources = [_source(opened, entry, entry.filename) for entry in files.values()]
    sources.extend(_source(opened, files[_link_target(opened, link, files)], link.filename) for link in links)
    if sum(source.size for source in sources) > limits.size:
        raise PackageError(f"over {limits.size >> 20} MiB unpacked, copies of linked files included")
    if not sources:
        raise PackageError("the zip holds no files")
    return sources


def _check_entry(entry: zipfile.ZipInfo) -> int:
    """The entry's Unix mode (0 when it has none). Raises PackageError."""
    shown = repr(entry.orig_filename[:120])
    if entry.flag_bits & _ENCRYPTED:
        raise PackageError(f"{shown}: encrypted entries are not accepted")
    if entry.compress_type not in _METHODS:
        raise PackageError(f"{shown}: only stored and deflated entries are accepted")
    if not entry.orig_filename.isascii() and not entry.flag_bits & _UTF8:
        raise PackageError(f"{shown}: the name is not marked as UTF-8")
    if "\0" in entry.orig_filename:
        raise PackageError(f"{shown}: control characters in the name")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise PackageError(f"{shown}: only files, folders and links are accepted")
    return mode


class _Names:
    """Every path and its parents: no two may be one where case or composition is ignored, none be file and folder."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, bool]] = {}

    def add(self, path: str, folder: bool) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self._add(parent, True, again=True)
        self._add(path, folder, again=folder)

    def _add(self, path: str, folder: bool, again: bool) -> None:
        key = unicodedata.normalize("NFC", path).casefold()
        seen = self._seen.get(key)
        if seen is None:
            if "/" in path:
                self._add(path.rpartition("/")[0], True, again=True)
            self._seen[key] = (path, folder)
        elif seen[0] != path:
            raise PackageError(f"{path!r} and {seen[0]!r} differ only by case or composition")
        elif seen[1] != folder:
            raise PackageError(f"{path!r} is a file and a folder")
        elif not again:
            raise PackageError(f"{path!r} is in the zip twice")


def _link_target(opened: zipfile.ZipFile, link: zipfile.ZipInfo, files: dict[str, zipfile.ZipInfo]) -> str:
    if link.file_size > MAX_LINK_BYTES:
        raise PackageError(f"{link.filename!r}: the link's target is too long")
    target = opened.read(link).decode()
    # the target must be a plain file, so no link can be passed on the way and the lexical path is the real one
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(link.filename), target))
    if target.startswith("/") or resolved not in files:
        raise PackageError(f"{link.filename!r}: a link may only name a plain file of the same zip")
    return resolved


def _source(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str) -> Source:
    executable = bool(entry.external_attr >> 16 & 0o100)
    return Source(path, executable, entry.file_size, _opener(opened, entry))


def _opener(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    return lambda: cast(BinaryIO, opened.open(entry))


def _requirements(opened: zipfile.ZipFile, sources: Sequence[Source]) -> tuple[str, ...]:
    for source in sources:
        if source.path == REQUIREMENTS_FILE:
            if source.size > MAX_REQUIREMENTS_BYTES:
                raise RequirementsError(f"{REQUIREMENTS_FILE} is over {MAX_REQUIREMENTS_BYTES >> 10} KiB")
            with source.open() as stream:
                return parse_requirements(stream.read(MAX_REQUIREMENTS_BYTES))
    return ()

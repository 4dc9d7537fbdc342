"""A folder of code as a zip: the same files make the same bytes, whenever and wherever it is made."""

import io
import os
import stat
import zipfile
from pathlib import Path

LEFT_OUT = frozenset({".git", ".hg", ".svn", "__pycache__", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"})
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold
MAX_BYTES = 512 << 20
REQUIREMENTS_FILE = "requirements.txt"


class ArchiveError(ValueError):
    """The folder cannot be packed; the message names the file."""


def pack(folder: Path, requirements: Path | None = None) -> bytes:
    """The zip of `folder`; `requirements` takes the place of its requirements.txt. Raises ArchiveError.

    Left out are what version control and tools keep beside code, and the manifests at the top: changing memory_mb
    makes no new package. Links are followed, inside the folder only.
    """
    files = _files(folder)
    if requirements is not None:
        files[REQUIREMENTS_FILE] = requirements
    if not files:
        raise ArchiveError(f"{folder} holds no files")
    out, total = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in sorted(files.items()):
            try:
                mode, content = path.stat().st_mode, path.read_bytes()
            except OSError as error:
                raise ArchiveError(f"cannot read {path}: {error.strerror}") from error
            total += len(content)
            if total > MAX_BYTES:
                raise ArchiveError(f"{folder} holds more than {MAX_BYTES >> 20} MB; {path} went over it")
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = (stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return out.getvalue()


def _files(folder: Path) -> dict[str, Path]:
    root = folder.resolve()
    found: dict[str, Path] = {}
    for at, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for name in folders:
            if (Path(at) / name).is_symlink():
                raise ArchiveError(f"{Path(at) / name} is a link to a folder; copy it instead")
        for name in names:
            path = Path(at) / name
            relative = path.relative_to(root).as_posix()
            if name.endswith((".pyc", ".pyo")) or (at == str(root) and name.startswith("foreglow") and name.endswith(".toml")):
                continue
            if not path.resolve().is_relative_to(root):
                raise ArchiveError(f"{path} is a link out of {folder}")
            if path.is_file():
                found[relative] = path
    return found

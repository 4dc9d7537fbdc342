"""Debian packages by name: which file, which hash, downloaded by an ordinary user with the host's own apt."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import msgspec

RESOLVE_TIMEOUT_S = 60.0
UPDATE_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 900.0
MAX_SAID = 600  # characters of what apt says that are told on
_URI = re.compile(r"^'(?P<url>[^']+)' (?P<name>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")


class PackageError(Exception):
    """A package cannot be had; the message says which step failed and the way out."""


class Package(msgspec.Struct, frozen=True):
    """`name` without version; `file` as the archive calls it, NAME_VERSION_ARCHITECTURE.deb; `size` in bytes."""

    name: str
    file: str
    sha256: str
    size: int


class Apt:
    """The host's sources, keys and lists. Where the host has no lists (container images), lists of our own below `folder`."""

    def __init__(self, folder: Path, progress: Callable[[str], None]) -> None:
        self._folder = folder
        self._progress = progress
        self._options: list[str] = [
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Acquire::Retries=2",
            "-o",
            "Acquire::http::Timeout=60",
        ]
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise PackageError(
                "the guest image is made of Debian packages, and there is no apt-get or dpkg-deb here: "
                "build it on Debian 12 and copy the folder, or use the process driver"
            )

    def resolve(self, names: Sequence[str], kernel: str) -> list[Package]:
        """What `names` are now, and what the meta package `kernel` stands for; sorted by name. Raises PackageError."""
        try:
            return self._resolve(names, kernel)
        except PackageError:
            self._own_lists()
        return self._resolve(names, kernel)

    def _resolve(self, names: Sequence[str], kernel: str) -> list[Package]:
        shown = self._run(["apt-cache", *self._options, "show", "--no-all-versions", kernel], RESOLVE_TIMEOUT_S)
        found = re.search(r"^Depends: (linux-image-[^\s,]+)", shown, re.MULTILINE)
        if found is None:
            raise PackageError(f"package {kernel} names no kernel")
        wanted = sorted({*names, found[1]})
        with tempfile.TemporaryDirectory(dir=self._folder) as empty:  # it leaves out what lies in the folder it is called in
            command = ["apt-get", *self._options, "-qq", "--print-uris", "download", *wanted]
            listed = self._run(command, RESOLVE_TIMEOUT_S, Path(empty))
        packages: list[Package] = []
        for line in listed.splitlines():
            match = _URI.match(line)
            if match is not None:
                name = unquote(match["name"])
                packages.append(Package(name.partition("_")[0], name, match["sha256"], int(match["size"])))
        missing = set(wanted) - {package.name for package in packages}
        if missing:
            raise PackageError(f"apt knows no SHA-256 of {', '.join(sorted(missing))}")
        return sorted(packages, key=lambda package: package.name)

    def _own_lists(self) -> None:
        self._progress("asking Debian for its package lists (the host has none that serve)")
        lists, cache = self._folder / "lists", self._folder / "cache"
        for made in (lists / "partial", cache / "archives" / "partial"):
            made.mkdir(parents=True, exist_ok=True)
        self._options += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        self._run(["apt-get", *self._options, "-qq", "update"], UPDATE_TIMEOUT_S)

    def download(self, packages: Sequence[Package], folder: Path) -> None:
        """Puts those that are not in `folder`, whole, there, named by their hash. Raises PackageError, OSError."""
        missing = [package for package in packages if not _whole(at(folder, package), package)]
        if not missing:
            return
        megabytes = sum(package.size for package in missing) / 1e6
        self._progress(f"downloading {len(missing)} Debian packages ({megabytes:.0f} MB)")
        aside = folder / "coming"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            names = [f"{package.name}={_version(package)}" for package in missing]
            self._run(["apt-get", *self._options, "-qq", "download", *names], DOWNLOAD_TIMEOUT_S, aside)
            come = {_digest(path): path for path in aside.iterdir() if path.suffix == ".deb"}
            for package in missing:
                path = come.get(package.sha256)
                if path is None:
                    raise PackageError(
                        f"{package.file} came with another content than its SHA-256 says, or not at all: try again"
                    )
                os.replace(path, at(folder, package))
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _run(self, command: list[str], timeout_s: float, folder: Path | None = None) -> str:
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                env=environment,
                cwd=folder,
            )
        except subprocess.TimeoutExpired as error:
            raise PackageError(f"{command[0]} was not done within {timeout_s:.0f} s: is there a network?") from error
        except OSError as error:
            raise PackageError(f"{command[0]} does not run: {error.strerror}") from error
        if done.returncode:
            raise PackageError(_said(command[0], done.stderr))
        return done.stdout


def at(folder: Path, package: Package) -> Path:
    return folder / f"{package.sha256}.deb"


@contextlib.contextmanager
def contents(archive: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The package's files as a tar stream on the process's standard output. Raises PackageError when it is damaged."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        assert process.stdout is not None
        assert process.stderr is not None
        while process.stdout.read(1 << 20):  # a tar reader stops at the end mark, before the padding
            pass
        said = process.stderr.read().decode(errors="replace")
        if process.wait():
            raise PackageError(_said("dpkg-deb", said))


def unpack(archive: Path, folder: Path) -> None:
    """The package's files below `folder`. Raises PackageError."""
    done = subprocess.run(
        ["dpkg-deb", "-x", str(archive), str(folder)], capture_output=True, text=True, check=False, errors="replace"
    )
    if done.returncode:
        raise PackageError(_said("dpkg-deb", done.stderr))


def _whole(archive: Path, package: Package) -> bool:
    return archive.exists() and archive.stat().st_size == package.size and _digest(archive) == package.sha256


def _version(package: Package) -> str:
    return package.file.split("_")[1]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(program: str, errors: str) -> str:
    words = " ".join(line.removeprefix("E: ") for line in errors.splitlines() if line.strip() and not line.startswith("W: "))
    return f"{program}: {words[:MAX_SAID] or 'failed without a word'}"

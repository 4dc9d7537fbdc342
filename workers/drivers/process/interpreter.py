"""Finds the interpreter of a runtime and what of the host it needs: the only host files a sandbox sees."""

import glob
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNTIME = "python3.11"
PROBE_TIMEOUT_S = 20.0
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
CERTIFICATES_AT = "/etc/ssl/certs/ca-certificates.crt"

_PROBE = """
import json, os, ssl, sys, sysconfig
import bz2, ctypes, decimal, hashlib, lzma, sqlite3, uuid, zlib
with open("/proc/self/maps") as maps:
    mapped = sorted({line.split(None, 5)[5].strip() for line in maps if ".so" in line and "/" in line})
paths = ssl.get_default_verify_paths()
print(json.dumps({
    "implementation": sys.implementation.name, "version": list(sys.version_info[:2]),
    "executable": getattr(sys, "_base_executable", sys.executable), "stdlib": sysconfig.get_path("stdlib"),
    "platstdlib": os.path.dirname(os.path.dirname(json.__file__)), "path": [p for p in sys.path if p],
    "mapped": mapped, "cafile": paths.openssl_cafile, "dynload": sysconfig.get_config_var("DESTSHARED") or "",
}))
"""


class NoInterpreter(Exception):
    """No usable interpreter; the message lists what was tried and why not."""


@dataclass(frozen=True)
class Interpreter:
    """`binds`: (source, target) for the sandbox root, read-only; `links`: (path, destination); `masks`: folders that must
    look empty (packages of the host)."""

    executable: str
    binds: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    masks: tuple[str, ...]


def find_interpreter(given: str = "") -> Interpreter:
    """The first usable CPython 3.11: `given` alone if there is one, else the usual places. Raises NoInterpreter.

    Blocks up to PROBE_TIMEOUT_S per candidate. For root it must be one that every user may execute, because a sandbox
    runs as a user of its own; else one that this user may.
    """
    tried: list[str] = []
    for candidate in [given] if given else _candidates():
        try:
            return _examine(candidate)
        except NoInterpreter as error:
            tried.append(f"{candidate}: {error}")
    raise NoInterpreter(f"no {RUNTIME} that sandboxes can run; set FOREGLOW_PYTHON. " + "; ".join(tried))


def _candidates() -> list[str]:
    found = [f"/usr/bin/{RUNTIME}", f"/usr/local/bin/{RUNTIME}", getattr(sys, "_base_executable", sys.executable)]
    found += [str(Path(folder) / RUNTIME) for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/")]
    return list(dict.fromkeys(path for path in found if path and os.path.exists(path)))


def _examine(candidate: str) -> Interpreter:
    _check_access(candidate)
    facts = _probe(candidate)
    executable = str(facts["executable"])
    if os.path.realpath(executable) != os.path.realpath(candidate):  # a virtual environment: what it was made from
        _check_access(executable)
        facts = _probe(executable)
    real = os.path.realpath(executable)
    stdlib = os.path.realpath(facts["stdlib"])
    _check_access(stdlib)
    folders = {stdlib, os.path.realpath(facts["platstdlib"])}
    if facts["dynload"]:
        folders.add(os.path.realpath(facts["dynload"]))
    files = {real}
    for library in facts["mapped"]:
        path = os.path.realpath(library)
        parent = os.path.dirname(path)
        if parent.startswith(SYSTEM_LIBRARIES):
            folders.add(parent)  # whole: wheels bring libraries that need others of the system (libstdc++)
        elif not any(path.startswith(folder + "/") for folder in folders):
            files.add(path)
    folders = {folder for folder in folders if os.path.isdir(folder) and not any(folder.startswith(o + "/") for o in folders)}
    files = {path for path in files if not any(path.startswith(folder + "/") for folder in folders)}
    links = _links(executable, real)
    binds = [(path, path) for path in sorted(folders | files)]
    bundle = next((path for path in CERTIFICATES if os.access(path, os.R_OK)), "")
    if bundle:
        binds.append((os.path.realpath(bundle), CERTIFICATES_AT))
        if facts["cafile"] and facts["cafile"] != CERTIFICATES_AT:
            links.append((facts["cafile"], CERTIFICATES_AT))
    return Interpreter(executable, tuple(binds), tuple(links), tuple(_masks(folders)))


def _check_access(path: str) -> None:
    """Raises NoInterpreter unless the sandbox's user can reach it."""
    real = os.path.realpath(path)
    if os.geteuid() != 0:
        if not os.access(real, os.R_OK | os.X_OK):
            raise NoInterpreter("this user cannot read and execute it")
        return
    try:
        for part in [*Path(real).parents, Path(real)]:
            mode = part.stat().st_mode
            wanted = stat.S_IXOTH | (stat.S_IROTH if part == Path(real) else 0)
            if mode & wanted != wanted:
                raise NoInterpreter(f"not every user may read and execute {part}")
    except OSError as error:
        raise NoInterpreter(str(error)) from error


def _probe(executable: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-c", _PROBE], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoInterpreter(f"does not run: {error}") from error
    if done.returncode:
        raise NoInterpreter("misses a standard module: " + done.stderr.decode(errors="replace").strip()[-200:])
    facts: dict[str, Any] = json.loads(done.stdout)
    if facts["implementation"] != "cpython" or facts["version"] != [3, 11]:
        raise NoInterpreter(f"is {facts['implementation']} {facts['version']}, not CPython 3.11")
    return facts


def _links(executable: str, real: str) -> list[tuple[str, str]]:
    """Symlinks that lead to the binds: merged /usr, the ELF loader, the interpreter's own name."""
    links = [(path, os.readlink(path)) for path in ("/bin", "/lib", "/lib64") if os.path.islink(path)]
    if executable != real:
        links.append((executable, real))
    loader = _elf_loader(real)
    if loader:
        place = os.path.join(os.path.realpath(os.path.dirname(loader)), os.path.basename(loader))
        if place != os.path.realpath(loader):
            links.append((place, os.path.realpath(loader)))
    return links


def _elf_loader(path: str) -> str:
    """PT_INTERP of a 64-bit ELF file; empty when it has none."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:5] != b"\x7fELF\x02":
        return ""
    start, size, count = (int.from_bytes(head[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    for index in range(count):
        entry = head[start + index * size : start + (index + 1) * size]
        if int.from_bytes(entry[:4], "little") == 3:
            offset, length = int.from_bytes(entry[8:16], "little"), int.from_bytes(entry[32:40], "little")
            return head[offset : offset + length].rstrip(b"\0").decode()
    return ""


def _masks(folders: set[str]) -> list[str]:
    """Folders of host packages inside what is bound."""
    found: list[str] = []
    for folder in folders:
        for name in ("site-packages", "dist-packages"):
            found += glob.glob(f"{glob.escape(folder)}/{name}")
            found += glob.glob(f"{glob.escape(folder)}/python*/{name}")
    return sorted(found)

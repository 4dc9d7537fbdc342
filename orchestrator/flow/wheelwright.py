"""Resolves requirements and builds what has no wheel: the program of a source build, inside the tenant's sandbox.

`python -I -S wheelwright.py UV PYTHON REQUIREMENTS OUT`. Standard library only. Leaves in OUT the wheels it built,
`pins.txt` (name==version, everything that was resolved) and `built.txt` (name==version, file and SHA-256 of its source).
Nothing it says is trusted outside: it runs beside the tenant's own code. Exits with uv's code.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from typing import Any

FETCH_TIMEOUT_S = 60.0
PIECE = 1 << 16
BUILDING = "building "
WORK = "/tmp"  # the sandbox's own  # noqa: S108
LOCK, SOURCES, WHEELS = f"{WORK}/pylock.toml", f"{WORK}/sources", f"{WORK}/wheels"


def run(*command: str) -> None:
    """Its words are ours; ends with its code when it fails."""
    code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
    if code:
        sys.stdout.flush()
        sys.exit(code if 0 < code < 100 else 2)


def say(words: str) -> None:
    print(words, flush=True)


def fetch(name: str, source: dict[str, Any], folder: str) -> tuple[str, str]:
    """(path, SHA-256) of a source distribution, checked against every SHA the index gave."""
    url = str(source["url"])
    path = os.path.join(folder, os.path.basename(str(source.get("name") or url.rpartition("/")[2])))
    with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer, open(path, "wb") as file:  # noqa: S310  our own index
        shutil.copyfileobj(answer, file, PIECE)
    for kind, wanted in source.get("hashes", {}).items():
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != wanted:
            say(f"error: {name}: the source that came is not the one the index names ({kind} {found}, wanted {wanted})")
            sys.exit(2)
    with open(path, "rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    uv, python, requirements, out = sys.argv[1:5]
    quiet = ("--no-config", "--no-progress", "--no-python-downloads", "--python", python)
    run(uv, "pip", "compile", *quiet, "--quiet", "--format", "pylock.toml", "--output-file", LOCK, requirements)
    with open(LOCK, "rb") as file:
        packages = tomllib.load(file).get("packages", [])
    pins, built = [], []
    for folder in (SOURCES, WHEELS):
        os.makedirs(folder)
    for package in packages:
        pin = f"{package['name']}=={package['version']}"
        pins.append(pin)
        if package.get("wheels"):
            continue
        if "sdist" not in package:
            say(f"error: {pin} has neither a wheel that fits nor a source distribution")
            sys.exit(1)
        path, digest = fetch(pin, package["sdist"], SOURCES)
        say(f"\n{BUILDING}{pin} from {os.path.basename(path)}")
        run(uv, "build", *quiet, "--wheel", "--out-dir", WHEELS, path)
        built.append(f"{pin} {os.path.basename(path)} {digest}")
    for name in os.listdir(WHEELS):
        if name.endswith(".whl"):
            shutil.move(os.path.join(WHEELS, name), os.path.join(out, name))
    for name, lines in (("pins.txt", pins), ("built.txt", built)):
        with open(os.path.join(out, name), "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()

"""python -m benchmarks.images: does a layer start faster from an EROFS image than from its tree? As root, with mkfs.erofs.

For each size one JSON line: making the image, reading every file of it for the first time, and reading image and tree again.
What an instance does with a tree and with a mount is the same: a bind of a folder.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = ((1 << 20, 100), (20 << 20, 2000))
AGAIN = 15


def read_all(folder: Path) -> float:
    """Seconds."""
    began = time.perf_counter()
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return time.perf_counter() - began


def measure(folder: Path, size: int, files: int) -> dict[str, float]:
    tree, image, mount = folder / "tree", folder / "image", folder / "mount"
    mount.mkdir()
    for number in range(files):
        path = tree / f"package{number % 50}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((f"value = {number:08d}\n".encode() * (size // files))[: size // files])
    began = time.perf_counter()
    subprocess.run(["mkfs.erofs", "--quiet", image, tree], check=True, capture_output=True)
    made = time.perf_counter() - began
    subprocess.run(["mount", "-t", "erofs", "-o", "ro", image, mount], check=True)
    try:
        first = read_all(mount)
        rounds = [(read_all(tree), read_all(mount)) for _ in range(AGAIN)]
    finally:
        subprocess.run(["umount", mount], check=True)
    return {
        "bytes": size,
        "files": files,
        "image_bytes": image.stat().st_size,
        "mkfs_ms": made * 1000,
        "first_read_ms": first * 1000,
        "tree_read_ms": min(one for one, _ in rounds) * 1000,
        "image_read_ms": min(one for _, one in rounds) * 1000,
    }


def main() -> None:
    for size, files in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), size, files)
        sys.stdout.write(json.dumps({name: round(value, 2) for name, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()

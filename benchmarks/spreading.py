"""python -m benchmarks.spreading [FOLDER]: what writing a layer costs on a disk where layers are evicted all the time.

Each round writes a layer of 98 files in 40 folders and deletes the one before, once into a folder as the kernel makes it and once
into one whose layers are spread (workers.code.shelf), in turns. One JSON line each: medians in ms.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from workers.code.layers import assemble
from workers.code.manifest import Chunk, LayerFile, Manifest
from workers.code.shelf import Shelf

FILES, FOLDERS, FILE_BYTES = 98, 40, 11_000
ROUNDS = 60
PLAIN = b"x" * (FILES * FILE_BYTES // 4)


def layer() -> Manifest:
    paths = sorted(f"package{number % FOLDERS:02}/module{number}.py" for number in range(FILES))
    files = [LayerFile(path, 0o644, FILE_BYTES, number * FILE_BYTES) for number, path in enumerate(paths)]
    return Manifest(tuple(files), tuple(Chunk("0" * 64, len(PLAIN)) for _ in range(4)))


def main() -> None:
    manifest = layer()
    ms: dict[str, list[float]] = {"as_made": [], "spread": []}
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as base:
        shelf = Shelf(Path(base) / "spread")
        shelf.open()
        (Path(base) / "as_made").mkdir()
        before: dict[str, Path] = {}
        for number in range(ROUNDS):
            digest = f"sha256:{number:064x}"
            for way, found in ms.items():
                if way == "spread":
                    folder = shelf.begin(("bench", digest))
                else:
                    folder = Path(base) / way / digest
                    folder.mkdir()
                began = time.perf_counter()
                assemble(manifest, lambda _: PLAIN, folder)
                found.append((time.perf_counter() - began) * 1000)
                if way in before:
                    shutil.rmtree(before[way])
                before[way] = folder
    for way, took in ms.items():
        told = {
            "folder": way,
            "files": FILES,
            "median_ms": round(statistics.median(took), 2),
            "rounds": ROUNDS,
            "cores": os.cpu_count(),
        }
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()

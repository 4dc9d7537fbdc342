"""Measures what importing each handler of the checkout costs: the CPU time of a fresh interpreter, the median of five.

.venv/bin/python examples/imports.py        downloads the packages the first time
"""

import statistics
import subprocess
import tempfile
from pathlib import Path

import uv
from rich.console import Console

from orchestrator.cli.manifest import FunctionEntry, read_manifest
from orchestrator.cli.show import ms, table
from workers.drivers.process.interpreter import find_interpreter

REPEATS = 5
MEASURE = """
import importlib, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[2]]
began = time.process_time()
importlib.import_module(sys.argv[3])
print((time.process_time() - began) * 1000)
"""


def main() -> None:
    python = find_interpreter("").executable
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for entry in read_manifest(Path(__file__).parent / "checkout"):
            packages = Path(folder) / entry.name
            requirements = entry.folder / "requirements.txt"
            install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--only-binary", ":all:", "--compile-bytecode"]
            subprocess.run([*install, "--python", python, "--target", packages, "--requirements", requirements], check=True)
            cost = statistics.median(measure(python, entry, packages) for _ in range(REPEATS))
            rows.append((entry.name, ", ".join(line.partition("==")[0] for line in requirements.read_text().split()), ms(cost)))
    Console().print(table("", ("function", "packages", "CPU ms>"), rows))


def measure(python: str, entry: FunctionEntry, packages: Path) -> float:
    module = entry.handler.partition(":")[0]
    command = [python, "-I", "-S", "-B", "-c", MEASURE, str(entry.folder), str(packages), module]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env={"OPENBLAS_NUM_THREADS": "1"}).stdout)


if __name__ == "__main__":
    main()

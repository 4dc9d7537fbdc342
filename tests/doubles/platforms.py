"""A whole `foreglow up` in a folder of its own, and what its processes hold: memory, descriptors, threads."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
STOP_S = 60.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Platform:
    """Started at once, on free ports. `pids` are the platform's own by name; sandboxes come and go and are not among them."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.state = folder / "state"
        self.process = subprocess.Popen(
            [*FOREGLOW, "up", "--state", str(self.state), "--functions-port=0", "--control-port=0", "--otlp-port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            env={**os.environ, **environment},
        )
        lines = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("ready"):
                break
        else:
            self.process.wait(STOP_S)
            self.process.stdout.close()
            raise AssertionError(f"not ready: {lines}")
        addresses = json.loads((self.state / "addresses.json").read_text())
        self.control, self.functions, self.otlp = (str(addresses[name]) for name in ("control", "functions", "otlp"))
        self.key = (self.state / "key").read_text().strip()

    def pids(self) -> dict[str, int]:
        noted = json.loads((self.state / "processes.json").read_text())["processes"]
        return {str(name): int(entry["pid"]) for name, entry in noted.items()}

    def held(self) -> dict[str, tuple[float, int]]:
        """Of each process: resident memory in MB, and how many descriptors are open."""
        found = {}
        for name, pid in {**self.pids(), "up": self.process.pid}.items():
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[name] = (pages * _PAGE / (1 << 20), len(os.listdir(f"/proc/{pid}/fd")))
        return found

    def logs(self) -> str:
        """What the processes have written, the end of each."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(self.state.rglob("*.log"))
        )

    def stop(self) -> int:
        """The exit code; 0 when everything ended by itself."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

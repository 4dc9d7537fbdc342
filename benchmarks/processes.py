"""What /proc says of processes and of the machine: trees, CPU, memory. And starting and ending what the benchmarks run."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 30.0


def descendants(pid: int) -> list[int]:
    """`pid` and all below it, sandboxes included: their own numbers are hidden from them, not from the host."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, ())
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and kernel time of these processes and of their children that ended and were reaped."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            ticks += sum(int(one) for one in fields[11:15])
    return ticks / TICKS


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size. Processes that cannot be read count as 0."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            match = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(match[1]) if match else 0
    return total / 1024


def private_mb(pid: int, part: Callable[[str, str], str]) -> dict[str, float]:
    """Anonymous memory (a private copy of a file's page is that too) by what `part(rights, name)` calls each mapping: what no
    other process has. Empty when it cannot be read."""
    found: dict[str, float] = {}
    name = ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        fields = line.split(maxsplit=5)
        if "-" in fields[0] and not fields[0].endswith(":"):
            name = part(fields[1], fields[5] if len(fields) > 5 else "")
        elif fields[0] == "Anonymous:":
            found[name] = found.get(name, 0.0) + int(fields[1]) / 1024
    return found


def kernel_memory_mb() -> float:
    """What the kernel holds and cannot give back: its objects, stacks, page tables, per-CPU areas. Of the whole machine."""
    held = ("SUnreclaim", "KernelStack", "PageTables", "Percpu")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in held) / 1024


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def machine_ticks() -> tuple[int, int, int]:
    """(all, idle, stolen by other machines) since boot."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4], fields[7]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


# -- what we start


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """In a group of its own, its output in `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, then kills its group. Returns when it has ended."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    """Until something listens. Raises RuntimeError when the process ended, TimeoutError."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with code {process.returncode}")
        time.sleep(0.002)
    raise TimeoutError(f"nothing listens on port {port} after {timeout_s:g} s")

"""What must hold before `foreglow up` starts anything: the folder is ours alone, ports are free, the disk takes writes.

Each failure is one line that names what is wrong and the way out.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.settings import MAX_SOCKET_PATH, Settings

MIN_FREE_MB = 64
SWEEP_WAIT_S = 5.0
PORTS = {"functions": "functions_port", "control": "control_port", "otlp": "otlp_port"}
SOCKETS = ("gateway", "planner", "node", "valkey", "page", "zone-cache")


class NotPossible(Exception):
    """`up` cannot start; the message is the one line to show."""


def make_state_folder(state: Path) -> None:
    """Makes the folder, closed to others: database, keys and code of the tenants lie below. Raises NotPossible."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state.stat().st_uid == os.geteuid():
            state.chmod(0o700)
    except OSError as error:
        raise NotPossible(f"cannot use the state folder {state}: {error.strerror}; choose another with --state") from error


def lock_state(state: Path) -> int:
    """Makes the folder and takes its lock; the descriptor holds it as long as it is open. Raises NotPossible."""
    make_state_folder(state)
    try:
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotPossible(f"cannot use the state folder {state}: {error.strerror}; choose another with --state") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        who = f" (process {holder})" if holder else ""
        raise NotPossible(f"another `foreglow up` already runs on {state}{who}; choose another folder with --state") from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError as error:
        os.close(descriptor)
        raise NotPossible(f"cannot write to {state}: {error.strerror}; choose another folder with --state") from error
    return descriptor


def check_disk(state: Path) -> None:
    """Writes a probe and looks at what is free. Raises NotPossible."""
    probe = state / ".probe"
    try:
        probe.write_bytes(b"x" * 65536)
        free = shutil.disk_usage(state).free
    except OSError as error:
        raise NotPossible(f"cannot write to {state}: {error.strerror}; free some space or choose --state") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    if free < MIN_FREE_MB << 20:
        raise NotPossible(f"{state} has {free >> 20} MB free and needs {MIN_FREE_MB}; free some space or choose --state")


def reserve_ports(settings: Settings) -> Mapping[str, socket.socket]:
    """One bound socket per listener, never listening: port 0 becomes a real one, and nobody else is given it.

    The listener binds the same port beside it: Linux allows that with SO_REUSEADDR on both while only one listens. Keep
    them open as long as the listeners live. Raises NotPossible naming the port and its option.
    """
    held: dict[str, socket.socket] = {}
    for name, field in PORTS.items():
        port = getattr(settings, field)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        bound = held[name] = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((settings.host, port))
        except OSError as error:
            for one in held.values():
                one.close()
            taken = error.errno == errno.EADDRINUSE
            why = "is taken" if taken else f"cannot be used ({error.strerror})"
            raise NotPossible(f"port {port} on {settings.host} {why}: choose another with --{name}-port") from error
    return held


def make_runtime_folder(folder: Path) -> None:
    """The short 0700 folder for sockets, below a parent nobody else can swap it in. Raises NotPossible."""
    if len(str(folder / "zone-cache.sock")) > MAX_SOCKET_PATH:
        raise NotPossible(f"the socket folder {folder} has too long a name; set XDG_RUNTIME_DIR to a shorter one")
    try:
        parent = folder.parent.stat()
        if parent.st_uid not in (0, os.geteuid()) or (parent.st_mode & 0o022 and not parent.st_mode & stat.S_ISVTX):
            raise NotPossible(f"{folder.parent} can be changed by other users: sockets are not safe there; set XDG_RUNTIME_DIR")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise NotPossible(f"{folder} belongs to somebody else: remove it or set XDG_RUNTIME_DIR to a folder of your own")
        folder.chmod(0o700)
    except OSError as error:
        raise NotPossible(f"cannot make {folder}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of your own") from error


def sweep(settings: Settings) -> list[str]:
    """Ends what a killed predecessor left and removes its sockets and addresses. Returns what it did, a line each."""
    done = []
    for name, pid in _left_behind(processes_file(settings)).items():
        done.append(f"ended {name} (process {pid}) of an earlier run")
    processes_file(settings).unlink(missing_ok=True)
    settings.addresses_file.unlink(missing_ok=True)
    for path in settings.runtime_folder.glob("*-ops.sock"):
        path.unlink(missing_ok=True)
    for name in SOCKETS:
        with contextlib.suppress(OSError):
            settings.socket(name).unlink()
            done.append(f"removed the stale socket of {name}")
    return done


def processes_file(settings: Settings) -> Path:
    return settings.state / "processes.json"


def record(path: Path, processes: Mapping[str, int]) -> None:
    """Notes which processes run, so that a successor can end exactly these. Best effort: a full disk stops nothing."""
    entries = {name: {"pid": pid, "started": started_at(pid)} for name, pid in processes.items()}
    fresh = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        fresh.write_text(json.dumps({"boot": _boot_id(), "processes": entries}))
        fresh.replace(path)


def started_at(pid: int) -> int:
    """Clock ticks since boot at which `pid` started; with the pid it names a process for ever. 0: there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def noted_processes(path: Path) -> dict[str, int]:
    """Those noted in `path` that still run, by name."""
    return {name: pid for name, (pid, _) in _alive(path).items()}


def _alive(path: Path) -> dict[str, tuple[int, int]]:
    try:
        noted = json.loads(path.read_text())
        if noted["boot"] != _boot_id():
            return {}
        left = {str(name): (int(entry["pid"]), int(entry["started"])) for name, entry in noted["processes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: (pid, started) for name, (pid, started) in left.items() if started and started_at(pid) == started}


def _left_behind(path: Path) -> dict[str, int]:
    alive = _alive(path)
    for pid, _ in alive.values():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + SWEEP_WAIT_S
    while time.monotonic() < deadline and any(started_at(pid) == started for pid, started in alive.values()):
        time.sleep(0.02)
    return {name: pid for name, (pid, _) in alive.items()}


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

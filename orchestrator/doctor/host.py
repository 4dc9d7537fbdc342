"""Probes of the machine: isolation, limits, disk, clock, versions."""

import contextlib
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import msgspec
from packaging.requirements import Requirement

from orchestrator.doctor import findings
from orchestrator.doctor.findings import Finding
from workers.drivers.limits import detect
from workers.drivers.process.confinement import probe, with_toolchain
from workers.drivers.process.interpreter import NoInterpreter, find_interpreter
from workers.ports import IsolationReport

ISOLATION_TIMEOUT_S = 60.0
STEADY_S = 0.2
DISTRIBUTION = "foreglow"


def look(state: Path, python: str) -> Iterator[Finding]:
    """Each probe's finding as it comes; the isolation probe takes a second or two."""
    root = os.geteuid() == 0
    yield findings.python(sys.version_info[:2])
    yield findings.kernel(_kernel())
    yield findings.packages(broken_packages())
    yield _runtime(python)
    yield isolation(python, root)
    yield builds(python)
    yield lazy_starts()
    yield tunnels()
    yield findings.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield findings.processes(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    yield findings.namespaces(_allowed_namespaces(), root)
    yield _control_groups(root)
    yield disk(state)
    wall, steady = time.time(), time.monotonic()
    time.sleep(STEADY_S)
    yield findings.drift(time.time() - wall, time.monotonic() - steady)


def builds(python: str) -> Finding:
    """By making the sandbox of a source build, which is gone after."""
    try:
        tier, why = probe(with_toolchain(find_interpreter(python)), None)
    except (NoInterpreter, OSError) as error:
        return findings.builds("", str(error)[:300])
    return findings.builds(tier.name if tier else "", why[:300])


def lazy_starts() -> Finding:
    """By mounting and reading a layer, in a process of its own and a folder that is gone after."""
    folder = tempfile.mkdtemp(prefix="foreglow-doctor-")
    command = [sys.executable, "-P", "-m", "orchestrator.doctor.lazy", folder]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ISOLATION_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
        words = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        return findings.lazy_starts(words[-1][:300] if words else "" if not done.returncode else "no output")
    except (OSError, subprocess.TimeoutExpired) as error:
        return findings.lazy_starts(str(error)[:300])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def isolation(python: str, root: bool) -> Finding:
    """By making a sandbox, in a process of its own and a folder that is gone after."""
    folder = tempfile.mkdtemp(prefix="foreglow-doctor-")
    command = [sys.executable, "-P", "-m", "orchestrator.doctor.sandbox", folder, python]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ISOLATION_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
            return findings.isolation(None, words[-1][:300], root)
        return findings.isolation(msgspec.json.decode(done.stdout, type=IsolationReport), "", root)
    except subprocess.TimeoutExpired:
        return findings.isolation(None, f"nothing happened in {ISOLATION_TIMEOUT_S:.0f} s", root)
    except (OSError, msgspec.MsgspecError) as error:
        return findings.isolation(None, str(error), root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tunnels() -> Finding:
    """By opening both backends of private networks, in a process of its own."""
    command = [sys.executable, "-P", "-m", "orchestrator.doctor.tunnels"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ISOLATION_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
            return findings.tunnels({}, words[-1][:300])
        return findings.tunnels(msgspec.json.decode(done.stdout, type=dict[str, str]), "")
    except subprocess.TimeoutExpired:
        return findings.tunnels({}, f"nothing happened in {ISOLATION_TIMEOUT_S:.0f} s")
    except (OSError, msgspec.MsgspecError) as error:
        return findings.tunnels({}, str(error)[:300])


def disk(state: Path) -> Finding:
    """In the state folder, or where it would be made. The probe's file never has a name: nothing is left whatever happens."""
    folder = next(one for one in (state, *state.parents) if one.exists())
    try:
        found = os.statvfs(folder)
    except OSError:
        return findings.disk(0, -1, None, str(folder))
    free_files = found.f_favail if found.f_files else -1
    return findings.disk(found.f_bavail * found.f_frsize / (1 << 20), free_files, _fsync_ms(folder), str(folder))


def broken_packages() -> dict[str, str]:
    """What this release requires and does not have: requirement -> what is there."""
    broken = {}
    for line in _required():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            broken[str(wanted)] = "none"
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            broken[str(wanted)] = found
    return broken


def _required() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def _fsync_ms(folder: Path) -> float | None:
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        began = time.perf_counter()
        os.write(descriptor, b"x" * 65536)
        os.fsync(descriptor)
        return (time.perf_counter() - began) * 1000
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _kernel() -> tuple[int, int]:
    numbers = re.findall(r"\d+", platform.release())
    return int(numbers[0]), int(numbers[1])


def _runtime(python: str) -> Finding:
    try:
        return findings.runtime(str(find_interpreter(python).executable), "")
    except NoInterpreter as error:
        return findings.runtime("", str(error))


def _allowed_namespaces() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        if Path("/proc/sys/kernel/unprivileged_userns_clone").read_text().strip() == "0":
            return 0
    try:
        return int(Path("/proc/sys/user/max_user_namespaces").read_text())
    except (OSError, ValueError):
        return None


def _control_groups(root: bool) -> Finding:
    try:
        layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return findings.control_groups("none", False, root)
    folders = [*layout.v1.values(), *([layout.v2] if layout.v2 else [])]
    kind = "v1" if layout.v1 else "v2" if layout.v2 else "none"
    return findings.control_groups(kind, bool(folders) and all(os.access(one, os.W_OK) for one in folders), root)

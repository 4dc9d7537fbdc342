"""Probes of one installation: its files, sockets and ports, what a dead predecessor left, what runs now."""

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

import orchestrator
from orchestrator.doctor import findings
from orchestrator.doctor.findings import Finding, Level
from orchestrator.ops.catalogue import PROCESSES, ZONE_CACHE
from orchestrator.preflight import PORTS, SOCKETS, noted_processes
from orchestrator.settings import Settings
from orchestrator.validity import validity
from workers.rpc.messages import PROTOCOL

ANSWER_S = 6.0


def look(settings: Settings) -> Iterator[Finding]:
    running = is_running(settings)
    yield from files(settings)
    yield from certificates(settings, running)
    yield from sockets(settings)
    yield from ports(settings, running)
    yield leftovers(settings, running)
    yield from processes(settings, running)


def is_running(settings: Settings) -> bool:
    """True while an `up` holds the lock of this state folder; looked up, not tried: a try could be in another's way."""
    try:
        found = (settings.state / "lock").stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return False
    mark = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any("FLOCK" in line and mark in line.split() for line in locks.splitlines())


def files(settings: Settings) -> Iterator[Finding]:
    """Secrets are for their owner only."""
    judged = []
    for path, allowed in (
        (settings.state, 0o700),
        (settings.key_file, 0o600),
        (settings.admin_key_file, 0o600),
        (settings.state / "foreglow.db", 0o644),  # its folder is closed
        (settings.runtime_folder, 0o700),
    ):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield findings.fail("files", f"{path}: {error.strerror}", "run this as the user that runs Foreglow")
            return
        judged.append(findings.mode(str(path), stat.S_IMODE(found.st_mode), allowed, found.st_uid in (os.geteuid(), 0)))
    wrong = [one for one in judged if one.level is not Level.OK]
    yield from wrong
    if not wrong:
        yield findings.ok("files", f"{len(judged)} looked at" if judged else f"nothing in {settings.state} yet")


def certificates(settings: Settings, running: bool) -> Iterator[Finding]:
    """What this host shows to others. Those beside control are made anew at each start: old ones matter only while it runs."""
    own = settings.state / "authority"
    looked = [settings.state / "member.pem", settings.state / "ca.pem", own / "ca.pem"]
    judged = []
    for path in [*looked, *(sorted(own.glob("*.pem")) if running else [])]:
        try:
            held = validity(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            yield findings.fail("certificates", f"{path} cannot be read: {error}", findings.NEW_CERTIFICATE)
            return
        judged.append(findings.certificate(str(path), held, time.time()))
    wrong = [one for one in judged if one.level is not Level.OK]
    yield from wrong
    if not wrong:
        yield findings.ok("certificates", f"{len(judged)} looked at" if judged else "none: no other host has to do with this one")


def sockets(settings: Settings) -> Iterator[Finding]:
    longest = max((settings.ops_socket(name) for name in (*PROCESSES, ZONE_CACHE)), key=lambda path: len(str(path)))
    yield findings.socket_path(str(longest))


def ports(settings: Settings, running: bool) -> Iterator[Finding]:
    ours = _addresses(settings) if running else set()
    for name, field in PORTS.items():
        number = getattr(settings, field)
        if number == 0:
            continue
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        taken, error = False, ""
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, number))
                probe.listen(1)
            except OSError as failure:
                taken, error = failure.errno == errno.EADDRINUSE, failure.strerror or str(failure)
        yield findings.port(name, number, taken, number in ours and running, error)


def leftovers(settings: Settings, running: bool) -> Finding:
    if running:
        return findings.leftovers([])
    left = [
        f"{name} (process {pid}) of an earlier run" for name, pid in noted_processes(settings.state / "processes.json").items()
    ]
    names = [*(f"{name}.sock" for name in SOCKETS), *(f"{name}-ops.sock" for name in (*PROCESSES, ZONE_CACHE))]
    left += [f"socket {name}" for name in names if _dead(settings.runtime_folder / name)]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [point for point in mounts if point.startswith(f"{settings.node_folder}/")]
    if below:
        left.append(f"{len(below)} mounts below {settings.node_folder}")
    return findings.leftovers(left)


def processes(settings: Settings, running: bool) -> Iterator[Finding]:
    """Those with a socket, and all when `up` runs: a zone cache among them where the settings ask for one."""
    releases = []
    for name in (*PROCESSES, ZONE_CACHE):
        path = settings.ops_socket(name)
        if not path.exists() and not running:
            continue
        if not path.exists() or _dead(path):
            if running and (name != ZONE_CACHE or settings.zone_cache):
                yield findings.answering(name, False, [])
            continue
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=ANSWER_S) as client:
                answer = client.get("http://operations/readyz").json()
                page = client.get("http://operations/metrics").text
        except (httpx.HTTPError, OSError, ValueError):
            if running:
                yield findings.answering(name, False, [])
            continue
        reasons = [f"{check['name']}: {check['reason']}" for check in answer["checks"] if not check["ok"]]
        yield findings.answering(name, answer["ready"], reasons)
        releases += [
            f"{sample.labels['version']}, protocol {sample.labels['protocol']}"
            for part in text_string_to_metric_families(page)
            for sample in part.samples
            if part.name == "foreglow_build"
        ]
    yield findings.release(f"{orchestrator.__version__}, protocol {PROTOCOL}", releases)


def _addresses(settings: Settings) -> set[int]:
    try:
        return {int(address.rpartition(":")[2]) for address in json.loads(settings.addresses_file.read_text()).values()}
    except (OSError, ValueError, AttributeError):
        return set()


def _dead(path: Path) -> bool:
    """A socket nobody listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False

"""Private servers of the kinds a fleet runs on: PostgreSQL and Redis as Debian ships them, never the system's own services.

Each dies with the test run (PDEATHSIG), even when that is killed, listens on a unix socket only, and forgets everything.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from orchestrator import valkey

START_S = 60.0
DURABLE_OFF = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=200")


def tool(name: str, package: str) -> str:
    """The path of an installed program; the test is skipped where it is missing, with the package that has it."""
    places = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/usr/sbin", *places]))
    if found is None:
        pytest.skip(f"{name} is missing: install Debian's {package}")
    return found


def _waited(true: Callable[[], object], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{what} does not answer")
        time.sleep(0.02)


def _end(process: "subprocess.Popen[bytes] | None", number: signal.Signals) -> None:
    if process is None or process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


class Postgres:
    """A cluster in a temporary folder. PostgreSQL refuses to run as root: there it runs as Debian's user `postgres`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fg-pg-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._as = [tool("setpriv", "util-linux"), "--pdeathsig", "SIGQUIT"]
        if os.geteuid() == 0:
            tool("postgres", "postgresql")  # which brings the user
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self._as += ["--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups"]
        command = [tool("initdb", "postgresql"), "-D", str(self.folder / "cluster"), "-U", "postgres", "-A", "trust", "-N"]
        command += ["-E", "UTF8", "--locale=C.UTF-8"]
        subprocess.run([*self._as, *command], check=True, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=START_S)

    def start(self) -> None:
        options = [f"-c{option}" for option in DURABLE_OFF]
        command = [tool("postgres", "postgresql"), "-D", str(self.folder / "cluster"), "-k", str(self.folder), "-h", "", *options]
        with (self.folder.with_suffix(".log")).open("ab") as log:
            self.process = subprocess.Popen([*self._as, *command], cwd=self.folder, stdout=log, stderr=log)
        _waited(self._answers, self.process, "PostgreSQL")

    def _answers(self) -> bool:
        ready = [tool("pg_isready", "postgresql"), "-q", "-h", str(self.folder)]
        return subprocess.run(ready, check=False, timeout=START_S).returncode == 0

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"test{os.getpid()}x{self._made}"
        engine = create_engine(self.url().replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def kill(self) -> None:
        """As a crash of the host would: no process of the cluster gets a word in. The next start recovers from the log."""
        assert self.process is not None
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(20)

    def tree(self) -> list[int]:
        """The server and its backends."""
        assert self.process is not None
        parent = str(self.process.pid)
        found = [self.process.pid]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "stat").read_text().rpartition(")")[2].split()[1] == parent:
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        _end(self.process, signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(".log").unlink(missing_ok=True)


def redis_command(kind: str, socket: Path, folder: Path) -> list[str]:
    """Starts the embedded Valkey (`kind` valkey) or Debian's Redis with the same settings."""
    embedded = list(valkey.command(socket, folder))
    return embedded if kind == "valkey" else [tool("redis-server", "redis-server"), *embedded[1:]]


class RedisServer:
    """A Redis or the embedded Valkey (`kind`); `url` is what FOREGLOW_REDIS_URL takes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix="fg-"))  # short: a socket's path holds 108 bytes
        self.socket = self.folder / "r.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = redis_command(self.kind, self.socket, self.folder / "data")
        guard = [tool("setpriv", "util-linux"), "--pdeathsig", "SIGKILL"]
        self.process = subprocess.Popen([*guard, *command], stdout=subprocess.DEVNULL)
        _waited(lambda: valkey.answers(self.socket), self.process, self.kind)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        _end(self.process, signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

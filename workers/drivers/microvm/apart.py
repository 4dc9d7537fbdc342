"""Programs of the host that read tenants' files, and could be taken over by them: mkfs.erofs, the bytecode compiler.

As root each runs as a host user of its own, without a capability, in a mount namespace where it sees /usr and the folders it is
given, read-only (jail.py), in a network namespace with nothing in it, within limits; what it makes goes to a descriptor. As an
ordinary user there are only the limits: it is that user then.
"""

import contextlib
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.drivers.microvm.confinement import ENVIRONMENT, Confinement
from workers.drivers.microvm.jail import NoJail, make_jail
from workers.ports import DriverError

WORDS = 64 << 10  # bytes of what it says; with more it ends
ENDED_S = 10.0
ORDINARY = "code: disks and bytecode are made of functions' files by programs that run as the node's own user"

# What comes before `--` are files to write 0 into, which puts this process into their groups. 126: not apart, so not started.
_ENTER = """
while [ "$1" != -- ]; do echo 0 >"$1" || exit 126; shift; done; shift
echo 800 >/proc/self/oom_score_adj || exit 126
exec "$@"
"""


class ApartError(Exception):
    """It did not run, or failed; the message says why."""


@dataclass(frozen=True)
class Limits:
    """`seconds` of time and of CPU, `memory_bytes` of address space, `file_bytes` of what it writes."""

    seconds: float
    memory_bytes: int
    file_bytes: int
    files: int = 64


@dataclass
class Apart:
    """`confinement`, once opened, says who programs run as. `doors`: of control groups they live in. Any thread may use it."""

    confinement: Confinement | None = None
    doors: Callable[[], Sequence[str]] = field(default=tuple)

    @property
    def privileged(self) -> bool:
        return self.confinement is not None and self.confinement.privileged

    def run(
        self, program: Sequence[str], reads: Sequence[Path], writes: Sequence[int], limits: Limits, stdin: int = -1, out: int = -1
    ) -> None:
        """Runs `program` (absolute) until it ends; `writes` are open files it may write, by /proc/self/fd. Blocks. Raises
        ApartError with what it said."""
        try:
            with self._line(program, reads, writes, limits) as line:
                self._run(line, writes, limits.seconds, stdin, out)
        except (OSError, NoJail, DriverError) as error:
            raise ApartError(f"{os.path.basename(program[0])} could not be run apart: {error}") from error

    @contextlib.contextmanager
    def _line(self, program: Sequence[str], reads: Sequence[Path], writes: Sequence[int], limits: Limits) -> Iterator[list[str]]:
        bounded = [
            "/usr/bin/prlimit",
            f"--as={limits.memory_bytes}",
            f"--cpu={math.ceil(limits.seconds)}",
            "--core=0",
            "--memlock=0",
        ]
        bounded += [f"--fsize={limits.file_bytes}", f"--nofile={limits.files}", "--", *program]
        if self.confinement is None or not self.confinement.privileged:
            yield bounded
            return
        with contextlib.ExitStack() as held:
            user = self.confinement.take_user()
            held.callback(self.confinement.give_back_user, user)
            for one in writes:
                os.fchown(one, user, user)
                held.callback(os.fchown, one, os.geteuid(), os.getegid())
            jail = make_jail([path.resolve() for path in reads])
            held.callback(os.close, jail)
            who = str(user)
            spaces = ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{jail}", "/usr/bin/unshare", "--net", "--ipc", "--uts"]
            dropped = ["/usr/bin/setpriv", "--no-new-privs", "--pdeathsig", "KILL", "--reuid", who, "--regid", who]
            dropped += ["--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all", "--"]
            yield ["/bin/sh", "-c", _ENTER, "sh", *self.doors(), "--", *spaces, *dropped, *bounded]

    def _run(self, line: Sequence[str], writes: Sequence[int], seconds: float, stdin: int, out: int) -> None:
        process = subprocess.Popen(
            line,
            stdin=stdin if stdin >= 0 else subprocess.DEVNULL,
            stdout=out if out >= 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=writes,
            cwd="/",
            env=ENVIRONMENT,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            assert process.stderr is not None
            with process.stderr:
                said = process.stderr.read(WORDS)
            process.wait()  # the timer ends it
        finally:
            timer.cancel()
            process.kill()
            process.wait(ENDED_S)
        if late.is_set():
            raise ApartError(f"it was not done within {seconds:g} s")
        if process.returncode:
            code = process.returncode
            how = f"signal {-code}" if code < 0 else f"exit {code}"
            if code == -signal.SIGXFSZ:
                how = "it writes more than it may"
            raise ApartError(" ".join(said.decode(errors="replace").split())[-400:] or how)


UNCONFINED = Apart()
"""For tests and tools: within limits only."""

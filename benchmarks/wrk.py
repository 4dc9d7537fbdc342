"""wrk as client of warm requests: a unique token in each, one thread, and only 200s count."""

import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).with_name("wrk.lua")


class WrkMissing(Exception):
    """wrk is not installed; the message says how to get it."""


class _Result(msgspec.Struct):
    requests: int
    seconds: float
    refused: int  # answers with a status over 399
    broken: int  # connections that failed or timed out
    wrong: int  # answers that did not return a token that was out; counted by `verify` only
    first_wrong: str
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Load:
    """One run. `answers`: 200s. `client_cpu_s`: user and kernel time of wrk itself."""

    answers: int
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_s: float

    @property
    def rps(self) -> float:
        return self.answers / self.seconds


def run(port: int, path: str, connections: int, seconds: float, authorization: str = "", verify: bool = False) -> Load:
    """Raises WrkMissing; RuntimeError when an answer was not a 200, or with `verify` did not return its token."""
    program = shutil.which("wrk")
    if program is None:
        raise WrkMissing("wrk is not installed: on Debian, apt-get install wrk")
    environment = {**os.environ, "BENCH_VERIFY": "1" if verify else "0"}
    environment.pop("BENCH_AUTHORIZATION", None)
    if authorization:
        environment["BENCH_AUTHORIZATION"] = authorization
    url = f"http://127.0.0.1:{port}{path}"
    command = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(SCRIPT), url]
    before = _children_cpu()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds + 60, check=False)
    client_cpu_s = _children_cpu() - before
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), "")
    if done.returncode or not line:
        raise RuntimeError(f"wrk ended with code {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return checked(line.removeprefix("RESULT "), client_cpu_s)


def checked(line: str, client_cpu_s: float) -> Load:
    """The run a result line tells of. Raises RuntimeError when it holds anything but 200s."""
    result = msgspec.json.decode(line, type=_Result)
    if result.refused or result.broken or result.wrong or not result.requests:
        trouble = f"{result.refused} refused, {result.broken} broken, {result.wrong} wrong {result.first_wrong}"
        raise RuntimeError(f"of {result.requests} answers {trouble}")
    return Load(result.requests, result.seconds, result.p50_ms, result.p99_ms, client_cpu_s)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

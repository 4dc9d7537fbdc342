"""Peers as the topics see them: started and ended by `with`, asked over HTTP on the loopback."""

import abc
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from benchmarks import processes
from benchmarks.client import Answer, NotOk, request

START_TIMEOUT_S = 60.0


class Peer(abc.ABC):
    """One server. `path(function)` is where a function answers; `cool` brings functions back to zero where the peer can."""

    name: ClassVar[str]
    scales_to_zero: ClassVar[bool] = False

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="foreglow-peer-")
        self.folder = Path(self._scratch.name)
        try:
            self.port = processes.free_port()
            command = self.command()
            began = time.perf_counter()
            self.process = processes.start(command, self.folder / "log", cwd=self.folder)
            self._wait_until_it_answers()
            self.start_ms = (time.perf_counter() - began) * 1000
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if hasattr(self, "process"):
            processes.stop(self.process)
        self._scratch.cleanup()

    @abc.abstractmethod
    def command(self) -> list[str | Path]:
        """How it is started on `self.port`; writes what it needs to `self.folder` first. Raises PeerMissing."""

    def path(self, function: str) -> str:
        return f"/{function}"

    def cool(self, functions: list[str]) -> None:
        """Scales these to zero. Raises TypeError for a peer that is always on."""
        raise TypeError(f"{self.name} does not scale to zero")

    def invoke(self, function: str, body: bytes = b"{}") -> Answer:
        return request(self.port, self.path(function), body)

    def _wait_until_it_answers(self) -> None:
        processes.wait_for_port(self.port, self.process, START_TIMEOUT_S)
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.invoke("echo")
                return
            except (OSError, NotOk):
                if self.process.poll() is not None or time.monotonic() > until:
                    log = (self.folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"{self.name} does not answer: {log[-500:]}") from None
                time.sleep(0.005)

"""uvicorn, bare and with FastAPI: always on, nothing isolated. The floor of what Python answers with."""

from pathlib import Path
from typing import ClassVar

from benchmarks.peers.environments import python_with
from benchmarks.peers.servers import Peer

PINS = ["uvicorn==0.54.0", "httptools==0.9.0", "uvloop==0.23.0"]
SERVED = Path(__file__).with_name("served")


class BareUvicorn(Peer):
    name: ClassVar[str] = "uvicorn"
    module: ClassVar[str] = "bare"
    pins: ClassVar[list[str]] = PINS

    def command(self) -> list[str | Path]:
        python = python_with(self.name, self.pins)
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--no-access-log", "--log-level", "warning"]
        return [python, "-m", "uvicorn", "--app-dir", SERVED, f"{self.module}:app", *options]


class FastApi(BareUvicorn):
    name: ClassVar[str] = "fastapi"
    module: ClassVar[str] = "framework"
    pins: ClassVar[list[str]] = [*PINS, "fastapi==0.165.0"]

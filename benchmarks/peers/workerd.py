"""workerd's worker loader: a JavaScript isolate per function in one process, loaded from source at the first request."""

import os
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.environments import PeerMissing, node_package
from benchmarks.peers.servers import Peer

VERSION = "1.20261117.1"
SERVED = Path(__file__).with_name("served")
CONFIG = """using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "loader", worker = (
    modules = [(name = "loader.js", esModule = embed "loader.js")],
    compatibilityDate = "2026-01-01",
    bindings = [
      (name = "LOADER", workerLoader = (id = "functions")),
      (name = "SELF", service = "loader"),
      (name = "ECHO", text = embed "echo.js"),
      (name = "STAGE", text = embed "stage.js"),
    ],
  ))],
  sockets = [(name = "http", address = "127.0.0.1:PORT", http = (), service = "loader")],
);
"""


class WorkerLoader(Peer):
    """Loaded workers stay, so zero is a copy nobody asked for yet."""

    name: ClassVar[str] = "workerd"
    scales_to_zero: ClassVar[bool] = True

    def __init__(self, init_rounds: int = 0) -> None:
        """`init_rounds`: turns of the loop that a stage's init computes."""
        self._rounds = init_rounds
        self._copy = 0

    def command(self) -> list[str | Path]:
        folder = node_package("workerd", VERSION)
        found = sorted(folder.glob("node_modules/@cloudflare/workerd-*/bin/workerd"))
        if not found or not os.access(found[0], os.X_OK):
            raise PeerMissing("workerd: npm brought no program for this machine")
        for name in ("loader.js", "echo.js"):
            (self.folder / name).write_text((SERVED / name).read_text())
        (self.folder / "stage.js").write_text((SERVED / "stage.js").read_text().replace("ROUNDS", str(self._rounds), 2))
        (self.folder / "config.capnp").write_text(CONFIG.replace("PORT", str(self.port)))
        return [found[0], "serve", "--experimental", "config.capnp"]

    def path(self, function: str) -> str:
        return f"/{function}.{self._copy}"

    def cool(self, functions: list[str]) -> None:
        self._copy += 1

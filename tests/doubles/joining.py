"""Control's join listener with its database, for who joins it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from doubles.cluster import LOOPBACK, identity, port_of

from orchestrator.authority import Authority
from orchestrator.catalog.store import Store
from orchestrator.control.joining import JoinListener
from orchestrator.joining import join, write_token
from workers.rpc.transport import HostPort, Identity

AT = "10.0.0.2:8703"
TOLD = {"key": "the-sealing-key", "origin_url": "s3://code", "redis_url": "redis://cache"}


class Control:
    """The join listener with its database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.store = Store(f"sqlite:///{folder / 'db'}")
        self.store.migrate()
        self.authority = Authority(folder / "authority")
        self.changes = 0
        self.at = ""

    @contextlib.asynccontextmanager
    async def listening(self, who: Identity | None = None, days: float = 365) -> AsyncIterator[str]:
        own = who or identity(self.authority, self.folder, "control", "control@a")
        listener = JoinListener(self.store.nodes, self.store.vpcs, self.authority, own, lambda role: TOLD, self._changed, days)
        server = await listener.start(LOOPBACK, 0)
        self.at = str(port_of(server))
        try:
            yield self.at
        finally:
            server.close()

    def _changed(self) -> None:
        self.changes += 1

    def token(self, role: str = "node", ttl_s: float = 60.0, vpc: str = "") -> str:
        return write_token(self.store.nodes.make_token(role, ttl_s, time.time(), vpc), self.authority.digest)

    @staticmethod
    def free_port() -> HostPort:
        return HostPort(LOOPBACK, 0)

    async def join(self, token: str, name: str = "n1", role: str = "node", address: str = AT) -> Path:
        state = self.folder / f"state-{name}-{role}"
        state.mkdir(exist_ok=True)
        await asyncio.to_thread(join, state, self.at, token, role, name, address, "zone-a")
        return state

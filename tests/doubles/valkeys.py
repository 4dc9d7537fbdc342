"""A Valkey of the test's own, and the routes a publisher would leave in it."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import redis.asyncio as redis
from doubles.loop import until

from orchestrator import valkey
from orchestrator.catalog.routes import FUNCTIONS_KEY, KEYS_KEY, SEQUENCE_KEY, STREAM_KEY, Route, encode


class Server:
    """A Valkey of our own, with the data folder it would have under `up`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "v.sock"
        self.url = f"unix://{self.socket}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = valkey.command(self.socket, self.folder / "data")
        self._process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        await until(lambda: valkey.answers(self.socket), "Valkey answers")

    def end(self) -> None:
        """Nothing of it is left, also when the test is being cancelled: no waiting here."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


class Catalog:
    """What a publisher leaves in Redis, in the fewest words; the real one has tests of its own."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client

    async def put(self, *routes: Route, told: bool = True) -> None:
        for one in routes:
            await self.client.hset(FUNCTIONS_KEY, one.function, encode(one))  # type: ignore[misc]
            sequence = await self.client.incr(SEQUENCE_KEY)
            if told:
                await self.client.xadd(STREAM_KEY, {"s": sequence, "t": "function", "id": one.function, "v": encode(one)})

    async def remove(self, function: str) -> None:
        await self.client.hdel(FUNCTIONS_KEY, function)  # type: ignore[misc]
        sequence = await self.client.incr(SEQUENCE_KEY)
        await self.client.xadd(STREAM_KEY, {"s": sequence, "t": "function", "id": function, "v": ""})

    async def key(self, name: str, value: bytes) -> None:
        if value:
            await self.client.hset(KEYS_KEY, name, value)  # type: ignore[misc]
        else:
            await self.client.hdel(KEYS_KEY, name)  # type: ignore[misc]
        sequence = await self.client.incr(SEQUENCE_KEY)
        await self.client.xadd(STREAM_KEY, {"s": sequence, "t": "key", "id": name, "v": value})

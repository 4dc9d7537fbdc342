"""The gateway as a process: uvicorn, real sockets and signals, a real Valkey; behind it a node over sandboxes in memory."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio as redis
from doubles.gateways import KEYS, TOKEN, digest, route
from doubles.loop import in_loop, until
from doubles.nodes import Rig, running_node, spec
from doubles.ports import held_port
from doubles.sandboxes import silent
from doubles.valkeys import Catalog, Server

from orchestrator.catalog.routes import encode
from orchestrator.settings import Settings, rpc_secret
from workers.drivers.frames import FromGuest
from workers.sealing import load_key
from workers.versions import Kind

pytestmark = pytest.mark.system

ECHO, SITE = spec("echo"), spec("site", kind=Kind.HTTP)


class Gateway:
    def __init__(self, process: asyncio.subprocess.Process, port: int, rig: Rig, valkey: Server, catalog: Catalog) -> None:
        self.process, self.port, self.rig, self.valkey, self.catalog = process, port, rig, valkey, catalog
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {TOKEN}"}, timeout=10
        )

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while self.process.returncode is None:
                with contextlib.suppress(httpx.TransportError):
                    if (await self.client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.02)
        raise AssertionError(f"the gateway ended with code {self.process.returncode}")

    async def post(self, name: str, content: bytes = b"", **more: Any) -> httpx.Response:
        return await self.client.post(f"/function/{name}", content=content, **more)

    async def raw(self, text: bytes) -> bytes:
        """The answer to a request in its own bytes; the connection is closed by the server or after it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(text)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(65536), 15)
            async with asyncio.timeout(1.0):
                while chunk := await reader.read(65536):
                    answer += chunk
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def running_gateway_process(**environment: str) -> AsyncIterator[Gateway]:
    valkey = Server(Path(tempfile.mkdtemp(prefix="fg-")))  # short: a socket's path holds 108 bytes
    settings, held = Settings(state=valkey.folder / "state"), contextlib.ExitStack()
    try:
        for made in (settings.state, settings.runtime_folder):
            made.mkdir(mode=0o700, parents=True)
        await valkey.start()
        client = redis.from_url(valkey.url, protocol=2)
        catalog = Catalog(client)
        await catalog.key(digest(TOKEN), encode(KEYS[digest(TOKEN)]))
        await catalog.put(route(ECHO), route(SITE))
        async with running_node(valkey.folder, secret=rpc_secret(load_key(settings.key_file))) as rig:
            port = held.enter_context(held_port())
            more = {
                "FOREGLOW_HOME": str(settings.state),
                "FOREGLOW_NODES": str(rig.path),
                "FOREGLOW_REDIS_URL": valkey.url,
                "FOREGLOW_FUNCTIONS_PORT": str(port),
                **environment,
            }
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "orchestrator.cli.main", "gateway"),
                env={**os.environ, **more},
                stdout=asyncio.subprocess.DEVNULL,
            )
            gateway = Gateway(process, port, rig, valkey, catalog)
            try:
                await gateway.ready()
                yield gateway
            finally:
                if process.returncode is None:
                    process.kill()
                await gateway.client.aclose()
                await process.wait()
        await client.aclose()
        await valkey.kill()
    finally:
        held.close()
        valkey.end()
        shutil.rmtree(settings.runtime_folder, ignore_errors=True)


HEAD = b"POST /function/echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
UPGRADE = (
    b"GET /function/site/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1000):
        yield bytes(1000)


@in_loop
async def test_requests_over_the_wire_good_bad_and_hostile() -> None:
    async with running_gateway_process(FOREGLOW_MAX_PAYLOAD_BYTES="100000") as gateway:
        answer = await gateway.post("echo", b"hello")
        assert (answer.status_code, answer.content, answer.headers["x-foreglow-start"]) == (200, b"hello", "cold")
        assert "server" not in answer.headers
        assert (await gateway.post("nobody")).status_code == 404
        assert (await gateway.client.post("/function/echo", headers={"authorization": "Bearer no"})).status_code == 401
        assert (await gateway.post("echo:" + "9" * 5000)).status_code == 404

        # bodies, whole and chunked, up to the limit and over it
        assert len((await gateway.post("echo", bytes(100_000))).content) == 100_000
        assert len((await gateway.post("echo", pieces(100_000))).content) == 100_000  # type: ignore[arg-type]
        assert (await gateway.post("echo", bytes(100_001))).status_code == 413
        with contextlib.suppress(httpx.TransportError):  # the server may close while the client still sends
            assert (await gateway.post("echo", pieces(300_000))).status_code == 413  # type: ignore[arg-type]

        # what its own parser must refuse, and what must not become an error of ours
        for text in (
            HEAD + b"Content-Length: -5\r\n\r\n",
            HEAD + b"Content-Length: five\r\n\r\n",
            HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"\x16\x03\x01 not http\r\n\r\n",
        ):
            assert b" 500 " not in await gateway.raw(text), text
        assert (await gateway.raw(UPGRADE)).startswith(b"HTTP/1.1 401")
        assert (await gateway.client.get("/healthz")).text == "ok\n"


@in_loop
async def test_answers_nobody_can_split() -> None:
    async with running_gateway_process() as gateway:
        injected = [["X-A", "1\r\nX-Injected: 1"], ["a b", "c"]]
        head = {"http": {"status": 200, "headers": injected}, "content_type": "text/plain\r\nX-Injected: 1"}
        gateway.rig.driver.handler = lambda clone, frame: clone.say(FromGuest.RESULT, frame.id, head, b"body")
        answer = await gateway.client.get("/function/site/")
        assert (answer.status_code, answer.content) == (200, b"body")
        assert "x-injected" not in answer.headers
        for status, seen in [(204, 204), (304, 304), (999, 502), (101, 502)]:
            gateway.rig.driver.handler = lambda clone, frame, status=status: clone.say(
                FromGuest.RESULT, frame.id, {"http": {"status": status}}, b"body"
            )
            answer = await gateway.client.get("/function/site/")
            assert (answer.status_code, bool(answer.content)) == (seen, seen == 502)
            assert (await gateway.client.get("/healthz")).text == "ok\n", "the connection is still in step"


@in_loop
async def test_without_valkey_it_goes_on_and_told_to_stop_it_finishes_what_runs() -> None:
    async with running_gateway_process() as gateway:
        assert (await gateway.post("echo", b"before")).content == b"before"
        await gateway.valkey.kill()
        assert (await gateway.post("echo", b"without")).content == b"without"
        await gateway.valkey.start()
        await gateway.catalog.put(route(spec("late")))

        answer = await gateway.post("late")
        for _ in range(3000):
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.02)
            answer = await gateway.post("late")
        assert answer.status_code == 200

        gateway.rig.driver.handler = silent
        running = asyncio.ensure_future(gateway.post("late"))
        late = next(clone for clone in gateway.rig.driver.instances if clone.work and "late" in clone.work.version)
        await until(lambda: len(late.invocations()) == 2)
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert gateway.process.returncode is None
        late.answer(2, b"finished")
        assert (await running).content == b"finished"
        assert await asyncio.wait_for(gateway.process.wait(), 40) == 0
        await until(lambda: not gateway.rig.node._connections)

"""The functions listener bounds what a request's head may cost, with the real protocol on a real socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from doubles.loop import in_loop, until

from orchestrator.heads import MAX_HEAD, BoundedHttp, bounded_by_address
from tracing.receiver import receiver_app


async def _app(scope, receive, send):  # type: ignore[no-untyped-def]
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _answer(port: int, head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for at in range(0, len(head), 16384):
            writer.write(head[at : at + 16384])
            await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(200), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@in_loop
async def test_a_head_without_end_is_refused_and_a_body_as_large_is_not() -> None:
    server = uvicorn.Server(uvicorn.Config(_app, port=0, http=BoundedHttp, lifespan="off", log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the server listens")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        unfinished = b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * (MAX_HEAD * 4)
        said = await _answer(port, unfinished)
        assert b" 200 " not in said
        assert said == b"" or b" 431 " in said
        body = b"b" * (MAX_HEAD * 4)
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        assert b" 200 " in await _answer(port, head + body)
        assert b" 200 " in await _answer(port, b"GET / HTTP/1.1\r\nhost: x\r\nx-fine: " + b"a" * 30_000 + b"\r\n\r\n")
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def _listening(protocol: type[BoundedHttp], app: Any = _app) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, lifespan="off", log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the server listens")
    try:
        yield server.servers[0].sockets[0].getsockname()[1], server
    finally:
        server.should_exit = True
        await serving


@in_loop
async def test_an_address_has_so_many_connections_and_others_have_theirs() -> None:
    async with _listening(bounded_by_address(3, 30)) as (port, server):
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await until(lambda: len(server.server_state.connections) == 3, "they are there")
        said = await _answer(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 503 " in said
        assert said.endswith(b"too many connections come from one address")
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.read(200), 30)
        writer.close()
        slow.pop()[1].close()
        await until(lambda: len(server.server_state.connections) == 2, "one has gone, and so has the other address")
        assert b" 200 " in await _answer(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        for _, one in slow:
            one.close()


@in_loop
async def test_a_head_that_does_not_come_ends_its_connection_also_a_second_one() -> None:
    async with _listening(bounded_by_address(3, 0.2)) as (port, _):
        for begun in (b"", b"GET / HTTP/1.1\r\nhost:"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(200), 30) == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.read(200), 30)
        writer.write(b"GET / HTTP/1.1\r\nhost:")
        assert await asyncio.wait_for(reader.read(200), 30) == b""
        writer.close()


@in_loop
async def test_who_has_no_key_cannot_hold_a_connection_with_a_body_that_does_not_come() -> None:
    app = receiver_app(lambda _: None, lambda _tenant, _spans: 0)
    async with _listening(bounded_by_address(3, 30), app) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nx")
        said = await asyncio.wait_for(reader.read(), 30)  # up to the end
        assert b" 401 " in said
        writer.close()

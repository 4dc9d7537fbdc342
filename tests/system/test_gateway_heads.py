"""The functions listener bounds what a request's head may cost, with the real protocol on a real socket."""

import asyncio
import contextlib

import uvicorn
from doubles.loop import in_loop, until

from orchestrator.heads import MAX_HEAD, BoundedHttp


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
        return await asyncio.wait_for(reader.read(200), 5)
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

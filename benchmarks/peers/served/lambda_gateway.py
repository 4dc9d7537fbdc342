"""A small gateway for awslambdaric, standard library only: starts one runtime process per concurrent invocation, on demand.

    python lambda_gateway.py PORT FUNCTIONS.json
POST /NAME invokes, DELETE /NAME ends the instances. FUNCTIONS.json: {name: {handler, environment}}.
Each instance has a Runtime API of its own on a free port, as one has inside its microVM.
"""

import asyncio
import json
import os
import signal
import sys
from collections import deque
from pathlib import Path

MOST = 16  # instances of one function
HERE = str(Path(__file__).parent)
Job = tuple[bytes, "asyncio.Future[tuple[int, bytes]]"]


class Http(asyncio.Protocol):
    """Just enough HTTP/1.1: requests one after the other on a kept connection."""

    def __init__(self, handle):
        self._handle, self._buffer, self._turn = handle, b"", asyncio.Queue(64)

    def connection_made(self, transport):
        self.transport = transport
        self._worker = asyncio.ensure_future(self._answer_in_turn())

    def connection_lost(self, error):
        self._worker.cancel()

    def data_received(self, chunk):
        self._buffer += chunk
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"\ncontent-length:")
            length = int(head[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if b"transfer-encoding: chunked" in head:
                stop = self._buffer.find(b"0\r\n\r\n", end + 4)
                if stop < 0:
                    return
                body, rest = unchunked(self._buffer[end + 4 : stop]), self._buffer[stop + 5 :]
            elif len(self._buffer) >= end + 4 + length:
                body, rest = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            else:
                return
            method, path, _ = self._buffer[:end].split(b"\r\n", 1)[0].decode().split(" ")
            self._buffer = rest
            self._turn.put_nowait((method, path, body, b"connection: close" in head))

    async def _answer_in_turn(self):
        while True:
            method, path, body, closes = await self._turn.get()
            status, answer, headers = await self._handle(method, path, body)
            self.transport.write(
                b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
                % (status, len(answer), headers, answer)
            )
            if closes:
                self.transport.close()
                return


def unchunked(raw):
    parts = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        parts.append(raw[: int(size, 16)])
        raw = raw[int(size, 16) + 2 :]
    return b"".join(parts)


class Function:
    def __init__(self, name, handler, environment):
        self.name, self.handler, self.environment = name, handler, environment
        self.jobs: deque[Job] = deque()
        self.idle = deque()  # futures of instances that wait for work
        self.instances = set()

    async def invoke(self, body):
        job = (body, asyncio.get_running_loop().create_future())
        while self.idle:
            waiting = self.idle.popleft()
            if not waiting.done():
                waiting.set_result(job)
                return await job[1]
        self.jobs.append(job)
        if len(self.instances) < MOST:
            instance = Instance(self)
            self.instances.add(instance)
            await instance.start()
        return await job[1]

    async def end(self):
        for instance in list(self.instances):
            await instance.end()
        self.idle.clear()


class Instance:
    """A runtime process and the Runtime API it talks to."""

    def __init__(self, function):
        self.function, self.job, self.count = function, None, 0

    async def start(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Http(self.answer), "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        environment = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
            "AWS_LAMBDA_FUNCTION_NAME": self.function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "AWS_REGION": "local",
            "LAMBDA_TASK_ROOT": HERE,
            "_HANDLER": self.function.handler,
            **self.function.environment,
        }
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "awslambdaric", self.function.handler, cwd=HERE, env=environment
        )

    async def end(self):
        self.function.instances.discard(self)
        self.server.close()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def answer(self, method, path, body):
        """The Runtime API: next, response, error."""
        if path.endswith("/invocation/next"):
            function = self.function
            if function.jobs:
                self.job = function.jobs.popleft()
            else:
                waiting = asyncio.get_running_loop().create_future()
                function.idle.append(waiting)
                self.job = await waiting
            self.count += 1
            headers = (
                f"Lambda-Runtime-Aws-Request-Id: {self.count}\r\nLambda-Runtime-Deadline-Ms: 9999999999999\r\n"
                "Lambda-Runtime-Invoked-Function-Arn: local\r\n"
            ).encode()
            return 200, self.job[0], headers
        job, self.job = self.job, None
        if job is not None and not job[1].done():
            job[1].set_result((200 if path.endswith("/response") else 502, body))
        return 202, b"", b""


async def main(port, described):
    functions = {name: Function(name, **one) for name, one in described.items()}

    async def handle(method, path, body):
        function = functions.get(path[1:])
        if function is None:
            return 404, b"{}", b""
        if method == "DELETE":
            await function.end()
            return 200, b"{}", b""
        return *await function.invoke(body), b""

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: Http(handle), "127.0.0.1", port)
    await stopped.wait()
    server.close()
    for function in functions.values():
        await function.end()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))

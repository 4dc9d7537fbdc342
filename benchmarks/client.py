"""The client of cold starts: one request on a new connection, by hand, so that nothing is kept or retried."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

TIMEOUT_S = 60.0


class NotOk(Exception):
    """An answer other than 200; the message holds its beginning."""


@dataclass(frozen=True)
class Answer:
    """`ms`: from before connecting until the last byte. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    ms: float

    @property
    def start(self) -> str:
        """How the invocation found its instance; empty for peers."""
        return self.headers.get("x-foreglow-start", "")

    @property
    def trace_id(self) -> str:
        return self.headers.get("x-foreglow-trace", "")

    @property
    def code_from(self) -> str:
        """tier1, tier2 or origin, as Server-Timing says; empty when nothing was started."""
        for part in self.headers.get("server-timing", "").split(","):
            name, _, rest = part.strip().partition(";")
            if name == "code":
                return next((one[5:] for one in rest.split(";") if one.startswith("desc=")), "")
        return ""

    @property
    def steps_ms(self) -> dict[str, float]:
        """Server-Timing."""
        steps = {}
        for part in self.headers.get("server-timing", "").split(","):
            name, _, rest = part.strip().partition(";")
            for parameter in rest.split(";"):
                if parameter.startswith("dur="):
                    steps[name] = float(parameter[4:])
        return steps


def request(port: int, path: str, body: bytes = b"{}", headers: Mapping[str, str] | None = None, method: str = "POST") -> Answer:
    """Raises OSError when the answer is not whole, NotOk when it is not 200."""
    sent = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    message = f"{method} {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(message)
        status, found, answered = _read(connection)
        ms = (time.perf_counter() - began) * 1000
    if status != 200:
        raise NotOk(f"{method} {path}: status {status}: {answered[:300].decode(errors='replace')}")
    return Answer(status, found, answered, ms)


def _read(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Until the body is whole, by its length or chunks, or the other side closes."""
    received, head_end = b"", -1
    while head_end < 0:
        received = _more(connection, received)
        head_end = received.find(b"\r\n\r\n")
    lines = received[:head_end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body = received[head_end + 4 :]
    if "content-length" in headers:
        while len(body) < int(headers["content-length"]):
            body = _more(connection, body)
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body = _more(connection, body)
        body = _joined(body)
    return int(lines[0].split(" ", 2)[1]), headers, body


def _more(connection: socket.socket, so_far: bytes) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionError(f"the answer ended early, after {len(so_far)} bytes")
    return so_far + chunk


def _joined(chunked: bytes) -> bytes:
    parts = []
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        parts.append(rest[:length])
        chunked = rest[length + 2 :] if length else b""
    return b"".join(parts)

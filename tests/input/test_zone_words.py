"""What a zone cache is asked, and what it answers to its callers, can be anything: it refuses, they go on, nobody breaks."""

import asyncio
import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest
from doubles.zones import publish
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.zone_cache.app import ZoneApp
from orchestrator.zone_cache.disk import ZoneDisk
from orchestrator.zone_cache.holding import Holding
from workers.code.manifest import LayerError, encode_manifest
from workers.code.origin import Origin, OriginError
from workers.code.zone import ZoneClient

HEX = st.one_of(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64), st.text(max_size=70))
WORDS = st.one_of(st.text(max_size=20), st.sampled_from(["acme", "..", ".", "%2e%2e", "a/b", "chunks", "%00", "x" * 300]))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
FILLS = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda document: json.dumps(document).encode()),
    st.builds(
        lambda chunks, within: json.dumps({"chunks": chunks, "within_s": within}).encode(), st.lists(HEX, max_size=4), st.floats()
    ),
)


class Cache:
    """The application over an origin that is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holding = Holding(ZoneDisk(folder / "zone", 1 << 30), Origin((folder / "origin").as_uri()))
        application = ZoneApp(self.holding, lambda peer, tenant, filling: "", lambda: True).app

        self.app = application

    async def ask(self, method: str, path: str, body: bytes = b"", gone: bool = False, **headers: str) -> int:
        """The status. What the application raises is raised here; `path` comes as a server has read it."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"} if gone else {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        shown = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": shown, "root_path": ""}
        await self.app({**scope, "state": {"peer": None}}, receive, send)
        return int(sent[0]["status"])


@pytest.fixture(scope="module")
def cache() -> Iterator[Cache]:
    with tempfile.TemporaryDirectory() as folder:
        made = Cache(Path(folder))
        yield made
        made.holding.close()


@given(
    st.sampled_from(["GET", "POST", "HEAD", "PUT"]),
    WORDS,
    HEX,
    WORDS,
    HEX,
    FILLS,
    st.text(alphabet="bytes=0123456789-, ", max_size=20),
)
def test_any_question_is_refused_and_leaves_nothing(
    cache: Cache, method: str, tenant: str, layer: str, what: str, name: str, body: bytes, part: str
) -> None:
    for path in (
        f"/v1/layers/{tenant}/{layer}/{what}/{name}",
        f"/v1/layers/{tenant}/{layer}/chunks/{name}",
        f"/v1/layers/{tenant}/{layer}/fill",
    ):
        status = asyncio.run(cache.ask(method, path, body, range=part))
        assert status in (400, 404, 405), (status, path)
    assert not list((cache.folder / "zone").glob("[!.]*")), "nothing was kept"


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    answer = (200, b"")

    def get_request(self) -> Any:
        request, _ = super().get_request()
        return request, ("zone", 0)


class Handler(BaseHTTPRequestHandler):
    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, body = self.server.answer  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = _any  # noqa: N815 - the names the server calls

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def liar() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder, Server(f"{folder}/z.sock", Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


ANSWERS = st.one_of(
    st.binary(max_size=300),
    JSON.map(lambda document: json.dumps(document).encode()),
    st.builds(lambda missing, reason: json.dumps({"missing": missing, "reason": reason}).encode(), st.integers(-3, 3), JSON),
)


@given(st.sampled_from([200, 204, 206, 301, 400, 403, 404, 416, 500, 503]), ANSWERS)
def test_whatever_a_cache_answers_its_callers_hear_of_an_error_or_of_nothing(liar: Server, status: int, body: bytes) -> None:
    liar.answer = (status, body if status != 204 else b"")
    client = ZoneClient("default", None, [Path(str(liar.server_address))])
    digest, name = "sha256:" + "a" * 64, "b" * 64
    assert isinstance(client.fill("acme", digest, [name], 1.0), str)
    for ask in (lambda: client.manifest("acme", digest), lambda: client.chunk("acme", digest, name)):
        with contextlib.suppress(OriginError):
            ask()
    client.close()


def test_an_answer_without_end_is_cut_off(liar: Server, tmp_path: Path) -> None:
    liar.answer = (200, bytes(2 << 20))
    client = ZoneClient("default", None, [Path(str(liar.server_address))])
    with pytest.raises(OriginError, match="an answer of over"):
        client.chunk("acme", "sha256:" + "a" * 64, "b" * 64)
    client.close()


def test_another_layers_manifest_is_not_taken_for_the_one_asked_for(liar: Server, tmp_path: Path) -> None:
    layer = publish(Origin(tmp_path.as_uri()), "acme", {"a.py": b"1"})
    other = publish(Origin(tmp_path.as_uri()), "acme", {"a.py": b"2"})
    liar.answer = (200, encode_manifest(other))
    client = ZoneClient("default", None, [Path(str(liar.server_address))])
    with pytest.raises(OriginError, match="has the digest"):
        client.manifest("acme", layer.digest)
    client.close()


@given(st.text(max_size=80))
def test_a_name_that_is_none_never_becomes_a_path(name: str) -> None:
    client = ZoneClient("default")
    for ask in (lambda: client.chunk("acme", "sha256:" + "a" * 64, name), lambda: client.manifest("acme", name)):
        with pytest.raises(OriginError):
            ask()
    with contextlib.suppress(LayerError):
        client.fill("acme", "sha256:" + "a" * 64, [name], 0.1)
    client.close()


def test_a_caller_that_hangs_up_in_the_middle_costs_nothing(cache: Cache) -> None:
    assert asyncio.run(cache.ask("POST", f"/v1/layers/acme/{'a' * 64}/fill", gone=True)) == 400

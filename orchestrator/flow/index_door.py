"""The only network of a source build: an index of our own, on the sandbox's loopback, that asks the operator's indexes.

Not a proxy for addresses: a build may get the page of a project, and files that such a page has named, nothing else. So it
reaches no other host, no other path of an index, and never sees the credentials or the real address of one.
"""

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import structlog

from orchestrator.flow.index_pages import HTML_PAGE, JSON_PAGE, File, PageError, write_html, write_json
from orchestrator.flow.index_settings import Index
from orchestrator.flow.index_upstream import MAX_CONNECTIONS, PIECE, TIMEOUT_S, Refused, Upstream, local_file

MAX_KNOWN = 200_000
MAX_TOLD = 10
PAGES_AT_ONCE = 4
"""A page is read whole and takes many times its size meanwhile, in the memory of this process, which no build's limit holds."""

IDLE_S = 60.0
CLOSE_POLL_S = 0.05
PROJECT = re.compile(r"/(\d+)/([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)/?\Z")
FLAT = re.compile(r"/flat/(\d+)\Z")
FILE = re.compile(r"/file/([0-9a-f]{32})/[^/]+?(\.metadata)?\Z")

log = structlog.get_logger(__name__)


class Budget:
    """Bytes that may still be fetched for one build, whatever it then takes of them."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        with self._lock:
            self._left -= size
            if self._left < 0:
                raise Refused(403, "the build has fetched as much as it may")


class IndexDoor:
    """Answers on `listener` until closed. `troubles`: what of the operator's side failed meanwhile; `refused`: what a build asked
    for and may not have."""

    def __init__(self, listener: socket.socket, upstream: Upstream, max_bytes: int) -> None:
        self.troubles: list[str] = []
        self.refused: list[str] = []
        self.budget = Budget(max_bytes)
        self.closing = False
        self._upstream = upstream
        self._known: dict[str, tuple[Index, str]] = {}
        self._lock = threading.Lock()
        self._pages = threading.BoundedSemaphore(PAGES_AT_ONCE)
        self._server = _Server(listener, self)
        self._address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": CLOSE_POLL_S}, name="index-door", daemon=True
        )

    def __enter__(self) -> "IndexDoor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        self._server.shutdown()
        self._thread.join(TIMEOUT_S)
        self._server.server_close()

    def answer(self, path: str) -> tuple[str, Generator[bytes, None, None]]:
        """(content type, the content in pieces) of what stands at `path`. Raises Refused and what asking upstream raises."""
        indexes = self._upstream.indexes.all
        if (project := PROJECT.match(path)) and int(project[1]) < len(indexes):
            return JSON_PAGE, self._page(indexes[int(project[1])], project[2])
        if (flat := FLAT.match(path)) and int(flat[1]) < len(indexes):
            return HTML_PAGE, self._page(indexes[int(flat[1])], "")
        if file := FILE.match(path):
            with self._lock:
                known = self._known.get(file[1])
            if known is not None:
                return "application/octet-stream", self._content(known[0], known[1] + (file[2] or ""))
        raise Refused(403, "a build gets the pages of projects and the files they name, nothing else")

    def _page(self, index: Index, project: str) -> Generator[bytes, None, None]:
        """Until it is sent it takes one of the places for pages."""
        with self._pages:
            files = self._renamed(index, project)
            yield write_json(project, files) if project else write_html(files)

    def _renamed(self, index: Index, project: str) -> list[File]:
        """The files of a page, at addresses of ours; what lies where builds may not go is left out."""
        named: list[File] = []
        for one in self._upstream.page(index, project, self.budget.take):
            if not self._upstream.may_fetch(index, one.url):
                self.note(self.refused, f"{one.name} lies on {urlsplit(one.url).hostname}, which is not among the build_hosts")
                continue
            token = hashlib.sha256(f"{index.url}\0{one.url}".encode()).hexdigest()[:32]
            with self._lock:
                if token not in self._known and len(self._known) >= MAX_KNOWN:
                    raise Refused(403, "the build has seen as many files as it may")
                self._known[token] = (index, one.url)
            named.append(File(one.name, f"{self._address}/file/{token}/{quote(one.name)}", one.hashes, one.facts))
        return named

    def _content(self, index: Index, url: str) -> Generator[bytes, None, None]:
        if url.startswith("file:"):
            path = local_file(index, url)
            if path is None or not path.is_file():
                raise Refused(404, "not there")
            return self._pieces(path)
        return self._fetched(index, url)

    def _pieces(self, path: Path) -> Generator[bytes, None, None]:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                self.budget.take(len(piece))
                yield piece

    def _fetched(self, index: Index, url: str) -> Generator[bytes, None, None]:
        with self._upstream.stream(index, url, "*/*") as answer:
            for piece in answer.iter_raw(PIECE):
                self.budget.take(len(piece))
                yield piece

    def note(self, where: list[str], what: str) -> None:
        with self._lock:
            if what not in where and len(where) < MAX_TOLD:
                where.append(what)


class _Server(ThreadingHTTPServer):
    """On a socket that is there already. Connections over the limit wait in the listener's backlog."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, door: IndexDoor) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.door = door
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._free.acquire(timeout=CLOSE_POLL_S):
            if self.door.closing:
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side went, mostly; a build is not worth a traceback in our log."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = IDLE_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "foreglow", ""

    def do_GET(self) -> None:
        self._serve(self._send_body)

    def do_HEAD(self) -> None:
        self._serve(lambda first, rest: None)

    def _serve(self, send: Callable[[bytes, Iterator[bytes]], None]) -> None:
        door = self.server.door
        self.close_connection = True
        try:
            content_type, content = door.answer(self.path)
            first = next(content, b"")
        except Refused as error:
            if error.status == 403:
                door.note(door.refused, f"{self.command} {self.path[:100]}: {error}")
            elif error.status == 502:
                door.note(door.troubles, str(error))
            self._say(error.status, str(error))
            return
        except (httpx.HTTPError, PageError, OSError) as error:
            door.note(door.troubles, f"{type(error).__name__}: {error}"[:200])
            self._say(502, "the package index did not answer")
            return
        with closing(content):
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            send(first, content)

    def _send_body(self, first: bytes, rest: Iterator[bytes]) -> None:
        door = self.server.door
        try:
            piece = first
            while piece and not door.closing:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                piece = next(rest, b"")
            if not piece:
                self.wfile.write(b"0\r\n\r\n")
        except Refused as error:
            door.note(door.refused, str(error))
        except httpx.HTTPError as error:
            door.note(door.troubles, f"{type(error).__name__}: {error}"[:200])

    def _say(self, status: int, words: str) -> None:
        body = f"{words}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: what was refused is told with the build's condition."""

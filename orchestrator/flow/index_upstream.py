"""The operator's package indexes as builds may see them: pages of projects, and the files that those name."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from orchestrator.flow.index_pages import ACCEPTED, MAX_FILES, File, read_page
from orchestrator.flow.index_settings import Index, Indexes, origin_of

MAX_PAGE = 64 << 20
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 32
TIMEOUT_S = 30.0
PIECE = 1 << 16


class Refused(Exception):
    """An answer other than 200: (status, why)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Upstream:
    """The operator's indexes, as far as builds may see them. `hosts`: where files may lie beside the index's own host."""

    def __init__(self, indexes: Indexes, hosts: Sequence[str]) -> None:
        self.indexes = indexes
        self._hosts = frozenset(host.lower() for host in hosts)
        self._client = httpx.Client(
            timeout=TIMEOUT_S, follow_redirects=False, limits=httpx.Limits(max_connections=MAX_CONNECTIONS)
        )

    def close(self) -> None:
        self._client.close()

    def may_fetch(self, index: Index, url: str) -> bool:
        """A file or a redirect of `index` may lead there."""
        try:
            here, there = origin_of(index.url), origin_of(url)
        except ValueError:
            return False
        if here[0] == "file":
            return there[0] == "file" and local_file(index, url) is not None
        secure = there[0] == "https" or (there[0] == "http" and here[0] == "http")
        return secure and (there == here or (there[1] in self._hosts and there[2] in (80, 443)))

    def page(self, index: Index, project: str, count: Callable[[int], None] = lambda _: None) -> list[File]:
        """What the index has of a project (empty: what its one page has); `count` is told of bytes as they come.

        Raises Refused, httpx.HTTPError, OSError, PageError."""
        url = f"{index.url}/{project}/" if project else index.url
        if index.url.startswith("file:"):
            return _local_page(index, url)
        content = bytearray()
        with self.stream(index, url, ACCEPTED) as answer:
            for piece in answer.iter_bytes(PIECE):
                count(len(piece))
                content += piece
                if len(content) > MAX_PAGE:
                    raise Refused(502, f"the page of {project or 'files'} is over {MAX_PAGE >> 20} MiB")
            return read_page(bytes(content), answer.headers.get("content-type", ""), str(answer.url.copy_with(userinfo=b"")))

    @contextlib.contextmanager
    def stream(self, index: Index, url: str, accept: str) -> Iterator[httpx.Response]:
        """The answer to a GET, redirects followed to where they may lead. Raises Refused for anything but 200."""
        for _ in range(MAX_REDIRECTS + 1):
            # whatever other host a page names gets no credentials; none are in what we were asked for either
            ours = index.credentials if origin_of(url) == origin_of(index.url) else None
            headers = {"Accept": accept, "Accept-Encoding": "gzip" if accept == ACCEPTED else "identity"}
            auth = httpx.BasicAuth(*ours) if ours else None
            request = self._client.build_request("GET", url, headers=headers)
            answer = self._client.send(request, auth=auth, stream=True)
            try:
                if answer.is_redirect:
                    url = urljoin(url, answer.headers["location"])
                    if not self.may_fetch(index, url):
                        raise Refused(403, "the index sends this elsewhere, to a host that builds may not reach")
                    continue
                if answer.status_code != 200:
                    raise Refused(answer.status_code if answer.status_code in (404, 410) else 502, f"HTTP {answer.status_code}")
                yield answer
                return
            finally:
                answer.close()
        raise Refused(502, f"more than {MAX_REDIRECTS} redirects")


def local_file(index: Index, url: str) -> Path | None:
    """The file that a file:// address below the index means; None when it leads out of it."""
    root = Path(unquote(urlsplit(index.url).path)).resolve()
    path = Path(unquote(urlsplit(url).path)).resolve()
    return path if path.is_relative_to(root) else None


def _local_page(index: Index, url: str) -> list[File]:
    folder = local_file(index, url)
    if folder is None or not folder.is_dir():
        raise Refused(404, "not there")
    page = folder / "index.html"
    if page.is_file():
        return read_page(page.read_bytes(), "text/html", folder.as_uri() + "/")
    return [File(name, (folder / name).as_uri(), {}, {}) for name in sorted(os.listdir(folder))[:MAX_FILES]]

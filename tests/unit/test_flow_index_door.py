"""The index that a source build sees: which settings it comes from, what it lets through, and to whom credentials go."""

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import httpx
import pytest
from doubles.package_indexes import PackageIndex, package_index

from orchestrator.flow.index_door import PAGES_AT_ONCE, IndexDoor
from orchestrator.flow.index_pages import File
from orchestrator.flow.index_settings import PUBLIC_INDEX, Index, inside_variables, read_indexes
from orchestrator.flow.index_upstream import Upstream

CONTENT = b"the file" * 1000


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with package_index() as made:
        made.add("thing", "thing-1.0.tar.gz", CONTENT)
        yield made


@contextmanager
def door(hosts: tuple[str, ...] = (), max_bytes: int = 1 << 20, **environment: str) -> Iterator[tuple[httpx.Client, IndexDoor]]:
    listener = socket.create_server(("127.0.0.1", 0))
    upstream = Upstream(read_indexes(environment), hosts)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with (
        IndexDoor(listener, upstream, max_bytes) as opened,
        httpx.Client(base_url=address, trust_env=False, timeout=20) as client,
    ):
        yield client, opened
    upstream.close()


def test_the_public_index_is_what_uv_asks_when_nothing_is_set() -> None:
    assert read_indexes({}).all == (Index(PUBLIC_INDEX),)
    assert read_indexes({"UV_NO_INDEX": "1"}).all == (Index(PUBLIC_INDEX),), "uv knows no such variable"


def test_indexes_keep_their_order_and_credentials_are_taken_out() -> None:
    found = read_indexes({
        "UV_INDEX": "corp=https://corp.example/simple/ https://me:p%40ss@other.example:8443/x",
        "UV_INDEX_CORP_USERNAME": "u",
        "UV_INDEX_CORP_PASSWORD": "p",
        "UV_EXTRA_INDEX_URL": "https://extra.example/simple",
        "UV_INDEX_URL": "https://default.example/simple",
        "UV_FIND_LINKS": "/some/wheels,https://links.example/all.html",
    })  # fmt: skip
    assert found.all == (
        Index("https://corp.example/simple", credentials=("u", "p")),
        Index("https://other.example:8443/x", credentials=("me", "p@ss")),
        Index("https://extra.example/simple"),
        Index("https://default.example/simple"),
        Index("file:///some/wheels", flat=True),
        Index("https://links.example/all.html", flat=True),
    )
    inside = inside_variables(found, {"UV_EXCLUDE_NEWER": "2026-01-01", "UV_KEYRING_PROVIDER": "x", "HOME": "/root"}, "http://d")
    assert inside == {
        "UV_EXCLUDE_NEWER": "2026-01-01",
        "UV_INDEX": "http://d/0 http://d/1 http://d/2",
        "UV_DEFAULT_INDEX": "http://d/3",
        "UV_FIND_LINKS": "http://d/flat/4,http://d/flat/5",
    }


def test_a_page_and_its_files_come_through_under_other_addresses(index: PackageIndex) -> None:
    with door(UV_DEFAULT_INDEX=index.url) as (client, opened):
        page = client.get("/0/thing/")
        (file,) = page.json()["files"]
        assert page.headers["content-type"] == "application/vnd.pypi.simple.v1+json"
        assert re.search(r"/file/[0-9a-f]{32}/thing-1\.0\.tar\.gz$", file["url"])
        assert str(index.port) not in page.text
        assert client.get(file["url"]).content == CONTENT
        assert client.get("/0/absent/").status_code == 404
    assert (opened.troubles, opened.refused) == ([], [])


@pytest.mark.parametrize(
    "path",
    ["/", "/0/", "/1/thing/", "/0/../../etc/passwd", "/0/thing/extra/", "/0/THING/", "/0/%2e%2e/", "/file/0/x",
     "/file/" + "0" * 32 + "/x", "/flat/0/x", "/0/thing?x=http://169.254.169.254/"],
)  # fmt: skip
def test_nothing_else_does(index: PackageIndex, path: str) -> None:
    with door(UV_DEFAULT_INDEX=index.url) as (client, opened):
        request = httpx.Request("GET", str(client.base_url).rstrip("/"))
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code == 403
        assert opened.refused
    assert index.asked == []


def test_an_address_of_another_host_is_not_followed_as_a_proxy_would(index: PackageIndex) -> None:
    with (
        door(UV_DEFAULT_INDEX=index.url) as (client, _),
        socket.create_connection((client.base_url.host, client.base_url.port)) as raw,
    ):
        raw.sendall(f"GET http://127.0.0.1:{index.port}/simple/thing/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 403 " in raw.recv(1000)
    with (
        door(UV_DEFAULT_INDEX=index.url) as (client, _),
        socket.create_connection((client.base_url.host, client.base_url.port)) as raw,
    ):
        raw.sendall(f"CONNECT 127.0.0.1:{index.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 501 " in raw.recv(1000)
    assert index.asked == []


def test_credentials_go_to_the_index_and_nowhere_else(index: PackageIndex) -> None:
    index.credentials = "me:secret"
    with package_index() as other:
        other.add("thing", "thing-2.0.tar.gz", CONTENT)
        index.add("thing", "thing-2.0.tar.gz", CONTENT)
        # the same host under another name: what the index's own pages name there gets no credentials
        index.elsewhere["thing-2.0.tar.gz"] = f"http://localhost:{other.port}/files/thing/thing-2.0.tar.gz"
        url = index.url.replace("://", "://me:secret@")
        with door(hosts=("localhost",), UV_DEFAULT_INDEX=url) as (client, opened):
            (here,) = client.get("/0/thing/").json()["files"]
            assert client.get(here["url"]).content == CONTENT
            assert opened.refused == ["thing-2.0.tar.gz lies on localhost, which is not among the build_hosts"], (
                "only on 80 and 443"
            )
        assert all(right for _, right in index.asked)
        assert other.asked == []


def test_no_other_host_gets_credentials_even_where_files_may_lie(index: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Upstream, "may_fetch", lambda *_: True)  # as if the other one listened on 443
    index.credentials = "me:secret"
    with package_index() as other:
        other.credentials = "me:secret"
        index.elsewhere["thing-1.0.tar.gz"] = f"http://127.0.0.1:{other.port}/files/thing/thing-1.0.tar.gz"
        with door(UV_DEFAULT_INDEX=index.url.replace("://", "://me:secret@")) as (client, _):
            (file,) = client.get("/0/thing/").json()["files"]
            client.get(file["url"])
        assert other.asked == [("/files/thing/thing-1.0.tar.gz", False)]


def test_a_redirect_elsewhere_is_refused(index: PackageIndex) -> None:
    index.moved["/files/thing/thing-1.0.tar.gz"] = "http://169.254.169.254/latest/meta-data"
    with door(UV_DEFAULT_INDEX=index.url) as (client, opened):
        (file,) = client.get("/0/thing/").json()["files"]
        assert client.get(file["url"]).status_code == 403
        assert "sends this elsewhere" in opened.refused[0]


def test_what_a_build_fetches_is_bounded(index: PackageIndex) -> None:
    with door(max_bytes=len(CONTENT), UV_DEFAULT_INDEX=index.url) as (client, opened):
        (file,) = client.get("/0/thing/").json()["files"]
        assert client.get(file["url"]).status_code == 403
        assert opened.refused[0].endswith("the build has fetched as much as it may")


def test_what_is_fetched_for_a_build_that_does_not_take_it_counts(index: PackageIndex) -> None:
    with door(max_bytes=1000, UV_DEFAULT_INDEX=index.url) as (client, _):
        assert client.head("/0/thing/").status_code == 200
        assert 403 in {client.head("/0/thing/").status_code for _ in range(20)}


def test_few_pages_are_read_at_a_time(index: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is whole in memory."""
    reading, most, page = [0], [0], Upstream.page

    def slowly(*arguments: Any) -> list[File]:
        reading[0] += 1
        most[0] = max(most[0], reading[0])
        time.sleep(0.02)
        reading[0] -= 1
        return page(*arguments)

    monkeypatch.setattr(Upstream, "page", slowly)
    with door(UV_DEFAULT_INDEX=index.url) as (client, _), ThreadPoolExecutor(12) as many:
        assert {one.status_code for one in many.map(client.head, ["/0/thing/"] * 24)} == {200}
    assert 1 < most[0] <= PAGES_AT_ONCE


def test_an_index_that_fails_is_trouble_not_refusal(index: PackageIndex) -> None:
    index.broken = True
    with door(UV_DEFAULT_INDEX=index.url) as (client, opened):
        assert client.get("/0/thing/").status_code == 502
    assert opened.troubles == ["HTTP 503"]
    with door(UV_DEFAULT_INDEX="http://127.0.0.1:1/simple") as (client, opened):
        assert client.get("/0/thing/").status_code == 502
    assert "ConnectError" in opened.troubles[0]


def test_folders_are_served_and_not_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "thing-1.0-py3-none-any.whl").write_bytes(CONTENT)
    (folder / "out-1.0.tar.gz").symlink_to(tmp_path / "secret")
    with door(UV_DEFAULT_INDEX=(tmp_path / "nothing").as_uri(), UV_FIND_LINKS=str(folder)) as (client, _):
        page = client.get("/flat/1").text
        assert "out-1.0" not in page
        (address,) = re.findall(r'href="([^"]+)"', page)
        assert urlopen(Request(address), timeout=10).read() == CONTENT
    project = tmp_path / "index" / "thing"
    project.mkdir(parents=True)
    (project / "index.html").write_text('<a href="../../secret">secret</a><a href="thing-1.0.tar.gz">x</a>')
    (project / "thing-1.0.tar.gz").write_bytes(CONTENT)
    with door(UV_DEFAULT_INDEX=(tmp_path / "index").as_uri()) as (client, _):
        (file,) = json.loads(client.get("/0/thing/").text)["files"]
        assert client.get(file["url"]).content == CONTENT

"""The way into the live page: links, the cookie, whose data a session sees, and what control hands on to the page process."""

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from orchestrator.catalog.store import Store
from orchestrator.control import forward
from orchestrator.control.app import server
from orchestrator.control.sessions import LINK_S, LINKS, PER_TENANT, SESSION_S, Sessions
from orchestrator.settings import Settings


class PageDouble:
    """A page process: answers with what it was asked, and echoes on its websocket."""

    def __init__(self, path: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._server = uvicorn.Server(
            uvicorn.Config(self._app, interface="asgi3", log_config=None, ws="websockets-sansio", lifespan="off")
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append({"path": scope["path"], "query": scope["query_string"].decode(), "headers": headers})
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                if message.get("text") == "end":
                    await send({"type": "websocket.close", "code": 1000})
                    return
                await send({"type": "websocket.send", "text": f"echo {message['text']}"})
            return
        answered = [(b"content-type", b"text/html"), (b"set-cookie", b"a=b"), (b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": answered})
        await send({"type": "http.response.body", "body": b"<h1>page</h1>"})


class Door:
    def __init__(self, settings: Settings, address: str) -> None:
        self.settings = settings
        self.address = address
        self.host = address.removeprefix("http://")
        self.bearer = {"Authorization": f"Bearer {settings.admin_key_file.read_text().strip()}"}
        self.http = httpx.Client(base_url=address, trust_env=False, timeout=60)
        self.store = Store(settings.effective_database_url)
        self.store.keys.create_tenant("rival", 1)
        self.rival = {"Authorization": f"Bearer {self.store.keys.make_key('rival', 'k', 1).token}"}

    def close(self) -> None:
        self.http.close()
        self.store.close()

    def link(self, bearer: dict[str, str] | None = None) -> str:
        answer = self.http.post("/v1/page/links", headers=bearer or self.bearer)
        assert (answer.status_code, answer.json()["expires_s"]) == (201, LINK_S)
        return str(answer.json()["path"])

    def session(self, bearer: dict[str, str] | None = None) -> str:
        answer = httpx.get(self.address + self.link(bearer), trust_env=False, timeout=60)
        return answer.cookies["foreglow_session"]

    def page(self, session: str, path: str = "/page/", **headers: str) -> httpx.Response:
        return self.http.get(path, headers={"Cookie": f"foreglow_session={session}", **headers})


@contextlib.contextmanager
def doors(**changes: Any) -> Iterator[Door]:
    folder = Path(tempfile.mkdtemp(prefix="fg-page-"))
    settings = Settings(state=folder, redis_url=f"unix://{folder}/none.sock", **changes)
    settings.runtime_folder.mkdir(mode=0o700)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        made = server(settings)
        thread = threading.Thread(target=made.run, args=([listener],))
        thread.start()
        listener.listen()
        door = Door(settings, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield door
        finally:
            door.close()
            made.should_exit = True
            thread.join(60)
            shutil.rmtree(settings.runtime_folder, ignore_errors=True)
            shutil.rmtree(folder)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with doors() as made:
        yield made


@pytest.fixture
def behind(door: Door) -> Iterator[PageDouble]:
    page = PageDouble(door.settings.socket("page"))
    yield page
    page.close()
    door.settings.socket("page").unlink(missing_ok=True)


# -- links and sessions


def test_a_link_opens_once_and_only_in_its_time() -> None:
    sessions = Sessions()
    link = sessions.offer("acme", "key", 100.0)
    assert sessions.redeem(link, 100.0 + LINK_S) is None
    link = sessions.offer("acme", "key", 100.0)
    session = sessions.redeem(link, 99.9 + LINK_S)
    assert session is not None
    assert session != link
    assert sessions.redeem(link, 101.0) is None
    assert sessions.key_of(session, 101.0) == "key"


def test_a_session_ends_by_time_and_by_order() -> None:
    sessions = Sessions()
    first, second = (sessions.redeem(sessions.offer("acme", "key", 0.0), 0.0) or "" for _ in range(2))
    assert sessions.key_of(first, SESSION_S - 1) == "key"
    assert sessions.key_of(first, SESSION_S) is None
    sessions.end(second)
    sessions.end("unknown")
    assert sessions.key_of(second, 1.0) is None
    assert sessions.key_of("", 1.0) is None


def test_many_links_give_up_ones_own_oldest_first() -> None:
    sessions = Sessions()
    other = sessions.offer("rival", "other", 0.0)
    own = [sessions.offer("acme", f"key {number}", 0.0) for number in range(PER_TENANT + 3)]
    assert [sessions.redeem(link, 1.0) is not None for link in own] == [False] * 3 + [True] * PER_TENANT
    assert sessions.redeem(other, 1.0) is not None


def test_links_are_bounded_in_all() -> None:
    sessions = Sessions()
    links = [sessions.offer(f"tenant {number}", "key", 0.0) for number in range(LINKS + 5)]
    assert sum(sessions.redeem(link, 1.0) is not None for link in links) == LINKS


# -- signing in and out


def test_a_link_needs_a_key_and_gives_a_cookie_no_script_can_read(door: Door) -> None:
    assert door.http.post("/v1/page/links").status_code == 401
    answer = door.http.get(door.link())
    assert (answer.status_code, answer.headers["location"]) == (303, "/page/")
    cookie = answer.headers["set-cookie"]
    for flag in ("HttpOnly", "SameSite=strict", "Path=/page", f"Max-Age={int(SESSION_S)}"):
        assert flag in cookie
    assert "Secure" not in cookie
    assert "Domain" not in cookie
    assert answer.headers["cache-control"] == "no-store"
    door.http.cookies.clear()


def test_a_link_that_was_used_is_gone(door: Door) -> None:
    link = door.link()
    assert door.http.get(link).status_code == 303
    door.http.cookies.clear()
    again = door.http.get(link)
    assert again.status_code == 410
    assert "foreglow open" in again.text
    assert "set-cookie" not in again.headers
    assert door.http.get("/login/unknown").status_code == 410
    assert door.http.head(door.link()).status_code == 405  # whoever looks at a link ahead does not use it up


@pytest.mark.parametrize(
    "cookie",
    [None, "foreglow_session=", "foreglow_session=x", "other=x", "foreglow_session=" + "x" * 5000, 'foreglow_session="', "\x01"],
)
def test_without_a_live_session_there_is_only_the_way_to_one(door: Door, behind: PageDouble, cookie: str | None) -> None:
    answer = door.http.get("/page/", headers={"Cookie": cookie} if cookie is not None else {})
    assert answer.status_code == 401
    assert "foreglow open" in answer.text
    assert behind.asked == []


def test_signing_out_ends_the_session_itself(door: Door, behind: PageDouble) -> None:
    session = door.session()
    assert door.page(session).status_code == 200
    cookie = {"Cookie": f"foreglow_session={session}"}
    refused = door.http.post("/page/logout", headers=cookie | {"Origin": "http://evil.example"})
    assert (refused.status_code, door.page(session).status_code) == (403, 200)
    answer = door.http.post("/page/logout", headers=cookie | {"Origin": door.address})
    assert (answer.status_code, 'foreglow_session=""' in answer.headers["set-cookie"]) == (200, True)
    assert door.page(session).status_code == 401


def test_a_session_ends_with_the_key_that_opened_it(door: Door, behind: PageDouble) -> None:
    made = door.store.keys.make_key("default", "ci", 1)
    session = door.session({"Authorization": f"Bearer {made.token}"})
    assert door.page(session).status_code == 200
    door.store.keys.revoke_key("default", made.key_id, 2)
    assert door.page(session).status_code == 401


# -- what a session may


def test_a_session_reads_its_own_tenants_data_and_changes_nothing(door: Door) -> None:
    session, theirs = door.session(), door.session(door.rival)
    digest = door.http.post("/v1/packages", content=_zip(), headers=door.bearer | {"Content-Type": "application/zip"}).json()[
        "digest"
    ]
    wanted = {"package": digest, "handler": "handler:f"}
    assert door.http.put("/v1/functions/mine", json=wanted, headers=door.bearer).status_code == 202
    seen = door.http.get("/v1/functions", headers={"Authorization": f"Session {session}"}).json()["functions"]
    assert [one["name"] for one in seen] == ["mine"]
    assert door.http.get("/v1/functions", headers={"Authorization": f"Session {theirs}"}).json() == {"functions": []}
    assert door.http.get("/v1/functions/mine", headers={"Authorization": f"Session {theirs}"}).status_code == 404
    for method, path in (
        ("PUT", "/v1/functions/x"),
        ("DELETE", "/v1/functions/mine"),
        ("POST", "/v1/page/links"),
        ("POST", "/v1/cool"),
    ):
        answer = door.http.request(method, path, headers={"Authorization": f"Session {session}"}, json=wanted)
        assert answer.status_code == 403
        assert answer.json()["field"] == "Authorization"
    assert door.http.get("/v1/functions", headers={"Authorization": "Session wrong"}).status_code == 401


def test_the_cookie_alone_opens_no_api(door: Door) -> None:
    assert door.http.get("/v1/functions", headers={"Cookie": f"foreglow_session={door.session()}"}).status_code == 401


# -- handed on


def test_only_what_is_named_crosses_to_the_page_and_back(door: Door, behind: PageDouble) -> None:
    session = door.session()
    forged = {
        "X-Forwarded-Prefix": "/evil",
        "X-Foreglow-Session": "forged",
        "Authorization": "Bearer k",
        "X-Other": "1",
        "Accept": "*/*",
    }
    answer = door.page(session, "/page/graph/a%20b%2Fc?x=1%262", **forged)
    assert (answer.status_code, answer.text) == (200, "<h1>page</h1>")
    (asked,) = behind.asked
    assert (asked["path"], asked["query"]) == ("/graph/a b/c", "x=1%262")
    headers = asked["headers"]
    assert (headers["x-forwarded-prefix"], headers["x-foreglow-session"], headers["accept"]) == ("/page", session, "*/*")
    assert not {"cookie", "authorization", "x-other"} & headers.keys()
    assert not {"set-cookie", "access-control-allow-origin"} & answer.headers.keys()
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"


def test_another_origin_and_another_host_are_refused(door: Door, behind: PageDouble) -> None:
    session = door.session()
    for origin in ("http://evil.example", "null", f"http://{door.host}0", "http://127.0.0.1:1"):
        assert door.page(session, Origin=origin).status_code == 403
    assert door.page(session, Host="evil.example").status_code == 421
    assert door.page(session, Origin=door.address).status_code == 200


def test_the_page_is_only_read(door: Door, behind: PageDouble) -> None:
    cookie = {"Cookie": f"foreglow_session={door.session()}"}
    assert door.http.post("/page/", headers=cookie).status_code == 405
    assert door.http.delete("/page/x", headers=cookie).status_code == 405
    assert behind.asked == []


def test_while_the_page_is_away_a_plain_page_says_so_and_comes_back(door: Door) -> None:
    answer = door.page(door.session())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert 'http-equiv="refresh"' in answer.text
    assert door.http.get("/healthz").status_code == 200


# -- websockets


def dial(door: Door, session: str, origin: str | None = None, path: str = "/page/ws?x=1", host: str = "") -> Any:
    headers = {"Cookie": f"foreglow_session={session}"} | ({"Host": host} if host else {})
    return connect(f"ws://{door.host}{path}", additional_headers=headers, origin=origin or door.address, open_timeout=20)  # type: ignore[arg-type]


def test_a_websocket_is_handed_on_and_ends_on_both_sides(door: Door, behind: PageDouble) -> None:
    session = door.session()
    with dial(door, session) as browser:
        browser.send("hello")
        assert browser.recv(20) == "echo hello"
        browser.send("end")
        assert list(browser) == []
    asked = behind.asked[-1]
    assert (asked["path"], asked["query"], asked["headers"]["x-foreglow-session"]) == ("/ws", "x=1", session)
    assert "cookie" not in asked["headers"]


@pytest.mark.parametrize(
    ("session", "origin", "path"),
    [("wrong", None, "/page/ws"), ("", None, "/page/ws"), ("live", "http://evil.example", "/page/ws"),
     ("live", "null", "/page/ws"), ("live", None, "/v1/functions"), ("live", None, "/login/x")],
)  # fmt: skip
def test_a_websocket_without_session_or_of_another_origin_is_refused(
    door: Door, behind: PageDouble, session: str, origin: str | None, path: str
) -> None:
    live = door.session() if session == "live" else session
    with pytest.raises(InvalidStatus) as refused, dial(door, live, origin, path):
        pass
    assert refused.value.response.status_code == 403
    assert behind.asked == []


def test_a_websocket_to_a_page_that_is_away_is_refused(door: Door) -> None:
    with pytest.raises(InvalidStatus), dial(door, door.session()):
        pass


def test_websockets_are_bounded(door: Door, behind: PageDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "SOCKETS", 1)
    session = door.session()
    with dial(door, session) as browser:
        browser.send("one")
        assert browser.recv(20) == "echo one"
        with pytest.raises(InvalidStatus), dial(door, session):
            pass
    deadline = time.monotonic() + 20
    while True:  # the place is free again once the first is gone
        try:
            with dial(door, session) as browser:
                browser.send("two")
                assert browser.recv(20) == "echo two"
                return
        except InvalidStatus:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _zip() -> bytes:
    import io
    import zipfile

    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("handler.py", "def f(e, c): return e")
    return body.getvalue()


def test_openapi_names_the_link_and_not_the_page(door: Door) -> None:
    paths = json.loads(door.http.get("/openapi.json").text)["paths"]
    assert "/v1/page/links" in paths
    assert not [path for path in paths if path.startswith(("/page", "/login"))]

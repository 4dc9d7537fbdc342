"""What a request must pass before it is read: Host and Origin of ours, a live key or session, a body within its path's limit."""

import ipaddress
import time
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.catalog.keys import Caller, Keys
from orchestrator.catalog.model import KeyRole
from orchestrator.control import notices
from orchestrator.control.problems import Problem, problem_response
from orchestrator.control.sessions import Sessions
from workers.code.package import MAX_ZIP_BYTES

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/healthz", "/readyz", "/openapi.json")
MAX_BODY_BYTES = 1 << 20
MAX_IMPORT_BYTES = 80 << 20
LIMITS = {"/v1/packages": MAX_ZIP_BYTES, "/v1/traces/import": MAX_IMPORT_BYTES}
MAX_TOKEN = 256
PAGE, LOGIN = "/page", "/login/"
COOKIE = "foreglow_session"


class Guard:
    """ASGI middleware. It answers before the body is read, so nobody without a key can make us parse anything.

    A Host that is a name must be one of `names`: a page elsewhere cannot reach a listener here by pointing a name of its own at
    it. On a listener that is not on loopback any IP address is accepted, which such a page cannot be served from.

    A session stands for the key that opened it. The browser's cookie opens PAGE, with an Origin of ours or none; the page process
    shows the session as `Authorization: Session`, which no browser adds by itself, and only reads with it.
    """

    def __init__(self, app: ASGIApp, keys: Keys, sessions: Sessions, names: Iterable[str], any_address: bool) -> None:
        self._app = app
        self._keys = keys
        self._sessions = sessions
        self._names = {*LOOPBACK, *names}
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = await self._check(scope)
        if refusal is None and scope["type"] == "websocket" and not _on_page(scope["path"]):
            refusal = problem_response(404, "no websocket is served here")
        if refusal is None:
            limit = LIMITS.get(scope["path"], MAX_BODY_BYTES)
            await self._app(scope, _limited(receive, limit), send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:  # before it is accepted: the browser sees a 403
            await send({"type": "websocket.close", "code": 1008})

    async def _check(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._ours(headers.get("host", "")):
            return problem_response(421, "this Host is not served here", "Host")
        if path in OPEN_PATHS or path.startswith(LOGIN):
            return None
        on_page = _on_page(path)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if on_page:
            if not _same_origin(headers):
                return problem_response(403, "the page answers only itself", "Origin")
            scheme, token = "session", _cookie(headers)
            scope.setdefault("state", {})["session"] = token
        if scheme.lower() == "session":
            if not on_page and scope.get("method") not in ("GET", "HEAD"):
                return problem_response(403, "a session only reads; send a key as `Authorization: Bearer KEY`", "Authorization")
            scheme, token = "bearer", self._sessions.key_of(token.strip(), time.time()) or ""
        try:
            caller = await self._authenticate(token.strip()) if scheme.lower() == "bearer" else None
        except SQLAlchemyError:
            return problem_response(503, "the database is not reachable; try again", headers={"Retry-After": "1"})
        if caller is None and on_page:
            return notices.signed_out()
        if caller is None:
            detail = "send a live key as `Authorization: Bearer KEY`"
            return problem_response(401, detail, "Authorization", {"WWW-Authenticate": "Bearer"})
        state = {"tenant": caller.tenant, "role": caller.role, "key_id": caller.key_id, "key": token.strip()}
        scope.setdefault("state", {}).update(state)
        length = headers.get("content-length", "0")
        limit = LIMITS.get(path, MAX_BODY_BYTES)
        if not length.isdigit() or int(length) > limit:
            return problem_response(413, _too_large(limit), "body", {"Connection": "close"})
        return None

    async def _authenticate(self, token: str) -> Caller | None:
        if not token or len(token) > MAX_TOKEN:
            return None
        return await run_in_threadpool(self._keys.authenticate, token, time.time())

    def _ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address


def operator_only(request: Request) -> None:
    """Raises Problem 403 for a key that is no operator's. For `dependencies=[Depends(operator_only)]`."""
    if not is_operator(request):
        raise Problem(403, "this needs an operator key, and this is a tenant's: ask whoever runs the platform", "Authorization")


def is_operator(request: Request) -> bool:
    return bool(request.state.role == KeyRole.OPERATOR)


def tenant_meant(request: Request, named: str) -> str:
    """The caller's own tenant, or the one an operator names. Raises Problem 403 for anybody else who names another's."""
    own = str(request.state.tenant)
    if named and named != own and not is_operator(request):
        raise Problem(403, "tenant: only an operator key may name another tenant than its own", "tenant")
    return named or own


def _on_page(path: str) -> bool:
    return path == PAGE or path.startswith(f"{PAGE}/")


def _same_origin(headers: Headers) -> bool:
    """A browser names the Origin of a websocket, of a form and of every script's request to another origin."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _limited(receive: Receive, limit: int) -> Receive:
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise Problem(413, _too_large(limit), "body", {"Connection": "close"})
        return message

    return counted


def _too_large(limit: int) -> str:
    return f"the body is over {limit >> 20} MiB"

"""The page process: NiceGUI on a unix socket that control alone forwards to."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog
import uvicorn
from fastapi import FastAPI
from nicegui import app as pages
from nicegui import background_tasks, core, ui
from nicegui.client import Client
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from orchestrator.page.api import ControlApi, connection
from orchestrator.page.viewer import PREFIX, Viewer, known
from orchestrator.settings import Settings

SESSION_HEADER = "x-foreglow-session"
VIEWERS = 60
NICE = 5  # the page yields to what serves invocations
GRACE_S = 2
RECONNECT_S = 20.0
RELOADS = 5  # of a page whose parts did not all come, a second later each time
HERE = Path(__file__).parent
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="18" r="9" fill="#c2570c"/>'
    '<path d="M3 24h26M16 2v4M5 8l3 3M27 8l-3 3" stroke="#c2570c" stroke-width="3" stroke-linecap="round"/></svg>'
)
HEAD = """<script>
try { const kept = localStorage.getItem("foreglow-theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { }
addEventListener("popstate", () => emitEvent("went", location.pathname));
{  // a script or a style that did not come leaves an empty page, which would stay: it is asked for again, a few times
    const kept = "foreglow-tries", parts = [HTMLScriptElement, HTMLLinkElement, HTMLStyleElement];
    let missing = false;
    addEventListener("error", (event) => {
        if (missing || !parts.some((kind) => event.target instanceof kind)) return;
        missing = true;
        const tries = Number(sessionStorage.getItem(kept)) + 1;
        sessionStorage.setItem(kept, tries);
        if (tries <= %d) setTimeout(() => location.reload(), 1000 * tries);
    }, true);
    addEventListener("load", () => missing || sessionStorage.removeItem(kept));
}
</script><style>%s</style>"""

log = structlog.get_logger(__name__)


def build(address: str) -> FastAPI:
    """The application; `address` is control's, as http://HOST:PORT. Once per process: NiceGUI keeps its pages in the module."""
    http = connection(address)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):  # type: ignore[no-untyped-def]
        yield
        await http.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    ui.add_head_html(HEAD % (RELOADS, (HERE / "components" / "style.css").read_text()), shared=True)

    async def watch(request: Request, client: Client, room: str = "", argument: str = "") -> Response | None:
        path = f"{room}/{argument}"
        session = request.headers.get(SESSION_HEADER, "")
        if not session:
            return HTMLResponse("this process is reached through control", 403)
        if not known(path):
            return HTMLResponse(_nothing_here(), 404)
        if len(Client.instances) > VIEWERS:
            return HTMLResponse("too many pages are open; close one and try again", 503, {"Retry-After": "10"})
        viewer = Viewer(client, ControlApi(http, session), path)
        background_tasks.create(_watching(client, viewer), name="viewer")
        return None

    for path in ("/", "/{room}", "/{room}/{argument:path}"):
        ui.page(path, title="Foreglow", language="en-US", dark=None, reconnect_timeout=RECONNECT_S)(watch)
    pages.config.socket_io_js_transports = ["websocket"]
    core.sio.eio.cors_allowed_origins = []
    ui.run_with(
        app,
        title="Foreglow",
        favicon=FAVICON,
        dark=None,
        language="en-US",
        binding_refresh_interval=None,
        reconnect_timeout=RECONNECT_S,
        message_history_length=200,
        tailwind=False,
        show_welcome_message=False,
    )
    return app


async def _watching(client: Client, viewer: Viewer) -> None:
    with client:
        try:
            await viewer.run()
        except RuntimeError as error:  # an element whose browser went away meanwhile
            log.info("viewer.ended", reason=str(error)[:200])
        finally:
            viewer.close()


def _nothing_here() -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Nothing here - Foreglow</title></head>'
        f'<body><main><h1>Nothing is at this address</h1><p><a href="{PREFIX}/">To the call graph</a></p></main></body></html>'
    )


def listening(path: Path) -> socket.socket:
    """A socket at `path` that only this user can connect to. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(100)
    return listener


class Running(Protocol):
    """What tells operators of this process."""

    async def start(self, settings: Settings) -> None: ...
    async def stop(self) -> None: ...


Beside = Callable[[Callable[[], bool], Callable[[], int]], Running]
"""Made of: does it serve, how many watch."""


def run(settings: Settings, address: str, beside: Beside) -> None:
    """Serves until SIGTERM or SIGINT, with what `beside` makes running in the same loop."""
    os.nice(NICE)
    path = settings.socket("page")
    server = uvicorn.Server(
        uvicorn.Config(
            build(address),
            http="h11",
            ws="websockets-sansio",
            ws_max_size=1 << 20,
            ws_per_message_deflate=False,
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            limit_concurrency=300,
        )
    )
    with contextlib.closing(listening(path)) as listener:
        try:
            asyncio.run(_serve(settings, server, listener, beside))
        finally:
            path.unlink(missing_ok=True)


async def _serve(settings: Settings, server: uvicorn.Server, listener: socket.socket, beside: "Beside") -> None:
    operations = beside(lambda: server.started, lambda: len(Client.instances))
    try:
        await operations.start(settings)
        await server.serve([listener])
    finally:
        await operations.stop()

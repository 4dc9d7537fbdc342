"""One open page: its frame, the view in it, and the beat at which that view is brought up to date."""

import asyncio
import json
import time
from collections.abc import Sequence
from urllib.parse import quote, unquote

from nicegui import ui
from nicegui.client import Client

from orchestrator.page.api import ControlApi
from orchestrator.page.elements import Plain
from orchestrator.page.views.callgraph import CallGraphView
from orchestrator.page.views.decisions import DecisionsView
from orchestrator.page.views.platform import PlatformView
from orchestrator.page.views.releases import ReleasesView
from orchestrator.page.views.runs import RunsView
from orchestrator.page.views.scaling import ScalingView
from orchestrator.page.views.view import View

PREFIX = "/page"
BEAT_S = 1.0
ROOMS: dict[str, tuple[str, str, type[View]]] = {
    "graph": ("Graph", "Call graph", CallGraphView),
    "decisions": ("Decisions", "Decisions", DecisionsView),
    "runs": ("Runs", "Runs", RunsView),
    "scaling": ("Scaling", "Scaling", ScalingView),
    "releases": ("Releases", "Releases", ReleasesView),
    "platform": ("Functions and nodes", "Functions and nodes", PlatformView),
}
"""What the link to it says, its title, the view; by the first part of the path. The first one is also at the root."""

FOLLOW_LINK = """(event) => {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    emit(event.currentTarget.getAttribute("href"));
}"""
NEXT_THEME = """() => {
    const root = document.documentElement, next = { undefined: "dark", dark: "light", light: undefined }[root.dataset.theme];
    if (next) { root.dataset.theme = next; localStorage.setItem("foreglow-theme", next); }
    else { delete root.dataset.theme; localStorage.removeItem("foreglow-theme"); }
}"""


def known(path: str) -> bool:
    """Whether there is a view at this path below PREFIX."""
    return _room(path)[0] in ROOMS


class Viewer:
    """Made while the page is built; `run` goes on from when the browser has connected until it is gone."""

    def __init__(self, client: Client, api: ControlApi, path: str) -> None:
        self._client = client
        self._api = api
        self._room, self._argument = _room(path)
        self._view: View | None = None
        self._paused = False
        self._over = False
        self._refreshing = asyncio.Lock()
        self._build()

    def _build(self) -> None:
        around = self._client.content.parent_slot
        assert around is not None
        around.parent.props("role=presentation")  # the library's own <main>, which holds the header too
        Plain("a", "Skip to content", "skip", href="#content")
        with Plain("header", classes="top", role="banner"):
            Plain("a", "Foreglow", "brand", href=f"{PREFIX}/").on("click", self._followed, js_handler=FOLLOW_LINK)
            self._links: dict[str, Plain] = {}
            with Plain("nav", aria_label="Views"), Plain("ul"):
                for room, (said, _, _) in ROOMS.items():
                    with Plain("li"):
                        self._links[room] = Plain("a", said, href=_address(room))
                        self._links[room].on("click", self._followed, js_handler=FOLLOW_LINK)
            with Plain("div", classes="controls"):
                self._pause = Plain("button", "Pause", type="button", aria_pressed="false", title="Stop updating what is shown")
                self._pause.on("click", self._pressed_pause, args=[])
                Plain("button", "Theme", "theme", type="button").on("click", js_handler=NEXT_THEME)
                with Plain("form", method="post", action=f"{PREFIX}/logout"):
                    Plain("button", "Sign out", type="submit")
        self._trouble = Plain("div", classes="trouble", role="alert")
        self._trouble.show(False)
        with Plain("main", id="content", tabindex="-1"):
            self._title = Plain("h1", tabindex="-1")
            self._body = Plain("div")
        self._fill()
        ui.on("went", lambda event: self.open(str(event.args).removeprefix(PREFIX)))
        self._client.on_delete(self.close)

    async def run(self) -> None:
        """Until the page is closed. The first answers are asked for while the browser still loads."""
        await self.refresh()
        await self._client.connected()
        while not self._client.is_deleted:
            began = time.monotonic()
            if self._client.has_socket_connection and not self._paused and not self._over:
                await self.refresh()
            if self._view is not None and self._view.questions.over:  # a paused view hears of it by what is pressed
                self._end()
            await asyncio.sleep(max(0.05, BEAT_S - (time.monotonic() - began)))

    async def refresh(self) -> None:
        """Once, unless one goes on already."""
        if self._view is None or self._refreshing.locked():
            return
        async with self._refreshing:
            view = self._view
            await view.refresh()
            if view is self._view and not view.questions.over:
                self._say(sorted(set(view.questions.troubles.values())))

    def close(self) -> None:
        """Stops what the view started. Idempotent."""
        if self._view is not None:
            self._view.close()
            self._view = None

    # -- going places

    async def open(self, path: str) -> None:
        """Shows what is at a path below PREFIX."""
        room, self._argument = _room(path)
        if room not in ROOMS or self._over:
            return
        self._room = room
        self._fill()
        self._title.run_method("focus")
        await self.refresh()

    def go(self, path: str) -> None:
        """A view goes elsewhere; within itself only the address changes."""
        self._client.run_javascript(f"history.pushState({{}}, '', {json.dumps(f'{PREFIX}/{path}')})")
        room, _ = _room(path)
        if room != self._room:
            ui.timer(0.0, lambda: self.open(path), once=True)

    def _fill(self) -> None:
        self.close()
        _, title, make = ROOMS[self._room]
        self._title.say(title)
        self._client.run_javascript(f"document.title = {json.dumps(f'{title} - Foreglow')}")
        for room, link in self._links.items():
            link.set_attribute("aria-current", "page" if room == self._room else None)
        self._say([])
        self._body.clear()
        with self._body:
            self._view = make(self._api, self.go, self._argument)

    async def _followed(self, event: object) -> None:
        href = str(getattr(event, "args", ""))
        self._client.run_javascript(f"history.pushState({{}}, '', {json.dumps(href)})")
        await self.open(href.removeprefix(PREFIX))

    # -- what the frame says

    def _say(self, troubles: Sequence[str]) -> None:
        self._trouble.show(bool(troubles))
        self._trouble.say("; ".join(troubles) + ". What is shown is the last that was known." if troubles else "")

    async def _pressed_pause(self) -> None:
        self._paused = not self._paused
        self._pause.say("Go on" if self._paused else "Pause")
        self._pause.set_attribute("aria-pressed", "true" if self._paused else "false")

    def _end(self) -> None:
        self._over = True
        self.close()
        self._body.clear()
        self._trouble.show(True)
        self._trouble.say("Your session is over. Run “foreglow open” and follow the link it prints.")


def _room(path: str) -> tuple[str, str]:
    room, _, argument = path.strip("/").partition("/")
    return unquote(room) or next(iter(ROOMS)), unquote(argument)


def _address(room: str) -> str:
    return f"{PREFIX}/" if room == next(iter(ROOMS)) else f"{PREFIX}/{quote(room)}"

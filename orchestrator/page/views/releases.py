"""Releases: those on their way with their gates, and how others ended."""

import time
from typing import Any
from urllib.parse import quote

from orchestrator.page import cells, releases
from orchestrator.page.api import ControlApi
from orchestrator.page.elements import Plain, Rows
from orchestrator.page.parts import Empty, Listing, button, search, select
from orchestrator.page.questions import Questions
from orchestrator.page.views.view import Go

EVERY_S = 1.0
LIMIT = 500
AT_ONCE = 5
"""Releases on their way that are shown whole; the others are in the list, and shown when chosen."""


class Panel:
    """One release, whole."""

    def __init__(self, close: Any) -> None:
        self._shown: tuple[Any, ...] = ()
        self._section = Plain("section", classes="detail release")
        with self._section:
            with Plain("div", classes="bar"):
                self.name = Plain("h2", tabindex="-1")
                self._state = Plain("p", classes="summary")
                self._close = button("Close", close, "Close the release")
            self._reason = Plain("p", classes="reason")
            self._steps = Plain("ol", classes="ramp", aria_label="Steps of the release")
            with Plain("div", classes="traffic"):
                self._shares = Plain("div", classes="shares", aria_hidden="true")
                self._traffic = Plain("ul", classes="legend", aria_label="Who gets traffic now")
            with Plain("div", classes="hold") as self._hold:
                self._progress = Plain("progress", max="1", value="0", aria_label="How much of the hold has passed")
                self._left = Plain("p", classes="sub")
            self._gate = Rows("What the step needs ready before the route changes", releases.GATE_COLUMNS)
            self._watch = Rows("Requests since the step is in force", releases.WATCH_COLUMNS)
            self._facts = Plain("dl", classes="facts")

    def show(self, one: releases.Release, alias: dict[str, Any] | None, now: float, closable: bool) -> None:
        self._section.set_attribute("aria-label", f"Release {one['id']}")
        self.name.say(releases.heading(one))
        self._state.say(releases.state(one, now))
        self._close.show(closable)
        self._reason.say(releases.reason(one))
        steps, facts = releases.steps(one), releases.facts(one, alias)
        parts = releases.traffic(one, alias)
        if (steps, facts, parts) != self._shown:
            self._shown = (steps, facts, parts)
            self._draw(steps, facts, parts)
        held = releases.held(one, now)
        self._hold.show(held is not None)
        if held is not None:
            self._progress.set_attribute("value", f"{held[0]:.3f}")
            self._left.say(held[1])
        in_preparation = one["phase"] != "holding" and one["phase"] != "done"
        self._gate.show(releases.gate_rows(one) if in_preparation else [])
        self._watch.show(releases.watch_rows(one))

    def first(self) -> None:
        """Before its neighbours."""
        self._section.move(target_index=0)

    def delete(self) -> None:
        self._section.delete()

    def _draw(self, steps: list[tuple[str, str, str]], facts: list[tuple[str, str]], parts: list[tuple[str, float, str]]) -> None:
        for element in (self._steps, self._facts, self._shares, self._traffic):
            element.clear()
        with self._steps:
            for state, share, meaning in steps:
                tone = state.replace(" ", "-")
                with Plain("li", classes=f"step at-{tone}", **({"aria_current": "step"} if state in _HERE else {})):
                    Plain("b", share)
                    with Plain("span", classes="mark"):
                        Plain("span", cells.SIGNS.get(state, "!"), f"sign tone-{tone}", aria_hidden="true")
                        Plain("span", state, "state")
                    Plain("span", meaning, "sub")
        with self._facts:
            for what, told in facts:
                Plain("dt", what)
                Plain("dd", told)
        with self._shares:
            for which, percent, _ in parts:
                Plain("span", "", which).style(f"width: {percent}%")
        with self._traffic:
            for which, _, said in parts:
                with Plain("li", classes="mark"):
                    Plain("span", "", f"swatch {which}", aria_hidden="true")
                    Plain("span", said)


_HERE = ("preparing", "in force", "stopped", "aborted")


class ReleasesView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._go = go
        self._chosen = int(argument) if argument.isascii() and argument.isdigit() and len(argument) < 19 else 0
        self._releases: list[dict[str, Any]] = []
        self._one: dict[str, Any] | None = None  # the chosen one, when the list does not reach it
        self._wanted = ""
        self._phase = ""
        self._panels: dict[int, Panel] = {}
        self._build()

    def _build(self) -> None:
        self._whole = Plain("div", classes="whole")
        with Plain("div", classes="bar"):
            search("Filter by function", "", self._filter)
            select("State", [("", "all"), *((phase, phase) for phase in releases.PHASES)], self._filter_phase)
            self._summary = Plain("p", classes="summary", role="status")
        self._empty = Empty(
            "No release yet. Each new version of a function is one, but for its first:", "foreglow deploy FOLDER --ramp 10,30,100"
        )
        self._empty.show(False)
        self._table = Listing("Releases, newest first", releases.COLUMNS, self._pressed)

    async def refresh(self) -> None:
        answer = await self.questions.ask_every(EVERY_S, "/v1/releases", limit=LIMIT)
        if answer is not None:
            self._empty.show(not answer["releases"])
            self._releases = answer["releases"]
            self._show_list()
        await self._show_panels()

    def close(self) -> None:
        """Nothing runs beside it."""

    def _show_list(self) -> None:
        found = [
            one
            for one in self._releases
            if self._wanted in one["function"].lower() and (not self._phase or one["phase"] == self._phase)
        ]
        newest = f"; of the newest {LIMIT}" if len(self._releases) >= LIMIT else ""
        self._summary.say(releases.said(self._releases, len(found)) + newest)
        self._table.show(lambda limit: releases.list_rows(found[:limit], self._chosen), len(found), "releases")

    async def _show_panels(self) -> None:
        """The chosen one, and those on their way."""
        shown = [one for one in self._releases if one["id"] != self._chosen and one["phase"] in releases.OPEN][:AT_ONCE]
        chosen = await self._chosen_one()
        if chosen is not None:
            shown.insert(0, chosen)
        aliases = {name: await self._aliases(name) for name in dict.fromkeys(one["function"] for one in shown)}
        for gone in self._panels.keys() - {one["id"] for one in shown}:
            self._panels.pop(gone).delete()
        now = time.time()
        for one in shown:
            panel = self._panels.get(one["id"])
            if panel is None:
                with self._whole:
                    panel = self._panels[one["id"]] = Panel(lambda: self._choose(0))
                if one["id"] == self._chosen:
                    panel.first()
            panel.show(one, aliases[one["function"]].get(one["alias"]), now, one["id"] == self._chosen)

    async def _chosen_one(self) -> dict[str, Any] | None:
        if not self._chosen:
            return None
        listed = next((one for one in self._releases if one["id"] == self._chosen), None)
        if listed is None and (self._one is None or self._one["id"] != self._chosen):
            self._one = await self.questions.ask(f"/v1/releases/{self._chosen}")
        return listed or self._one

    async def _aliases(self, name: str) -> dict[str, dict[str, Any]]:
        """By name; none of a function that is gone."""
        path = f"/v1/functions/{quote(name, safe='')}/aliases"
        answer = await self.questions.ask(path)
        if answer is None:
            self.questions.troubles.pop(path, None)  # whether control answers the list says
            return {}
        return {one["name"]: one for one in answer["aliases"]}

    # -- what is pressed

    def _filter(self, wanted: str) -> None:
        self._wanted = wanted.strip().lower()
        self._show_list()

    def _filter_phase(self, phase: str) -> None:
        self._phase = phase
        self._show_list()

    async def _pressed(self, chosen: str) -> None:
        await self._choose(int(chosen))

    async def _choose(self, number: int) -> None:
        self._chosen = 0 if number == self._chosen else number
        self.questions.troubles = {path: why for path, why in self.questions.troubles.items() if "/v1/releases/" not in path}
        self._go(f"releases/{self._chosen}" if self._chosen else "releases")
        self._show_list()
        await self._show_panels()
        if self._chosen in self._panels:
            self._panels[self._chosen].name.run_method("focus")

"""Runs: the list, and one as a waterfall."""

from typing import Any

from orchestrator.page import feed, figures, waterfall
from orchestrator.page.api import ControlApi
from orchestrator.page.elements import Plain, Rows
from orchestrator.page.parts import Empty, Listing, button, search
from orchestrator.page.questions import Questions
from orchestrator.page.views.view import Go

RUNS_EVERY_S = 1.0
LIMIT = 500
TONES = (
    ("ahead", "prepared ahead"),
    ("queue", "queue"),
    ("place", "place"),
    ("clone", "clone"),
    ("code", "code"),
    ("net", "net"),
    ("init", "init"),
    ("run", "run"),
)


class RunsView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._go = go
        self._chosen = argument
        self._run: dict[str, Any] | None = None
        self._runs: list[dict[str, Any]] = []
        self._wanted = ""
        self._build()

    def _build(self) -> None:
        self._detail = Plain("section", classes="detail", aria_label="The chosen run")
        with self._detail:
            with Plain("div", classes="bar"):
                self._name = Plain("h2", tabindex="-1", id="chosen")
                self._said = Plain("p", classes="summary")
                button("Close", lambda: self._choose(""), "Close the run")
            with Plain("ul", classes="legend", aria_label="Colours of the steps"):
                for tone, text in TONES:
                    with Plain("li", classes="mark"):
                        Plain("span", "", f"swatch tone-{tone}", aria_hidden="true")
                        Plain("span", text)
            self._waterfall = Rows("The run's invocations and their steps", waterfall.COLUMNS)
            self._cut = Plain("p", classes="note")
            Plain("h3", "Decisions for this run")
            self._decisions = Rows("Decisions for this run", feed.COLUMNS)
            self._undecided = Plain("p", "None: all it needed was ready, or nothing was known of it yet.", classes="sub")
        self._detail.show(False)
        with Plain("div", classes="bar"):
            search("Filter by entry", "", self._filter)
            self._summary = Plain("p", classes="summary", role="status")
        self._empty = Empty("Nothing ran yet, or the planner has only just started.", "foreglow invoke NAME --data '{}'")
        self._empty.show(False)
        self._table = Listing("Runs, newest first", waterfall.LIST_COLUMNS, self._choose)

    async def refresh(self) -> None:
        answer = await self.questions.ask_every(RUNS_EVERY_S, "/v1/runs", limit=LIMIT)
        if answer is not None:
            self._empty.show(not answer["runs"])
            if answer["runs"] != self._runs:
                self._runs = answer["runs"]
                self._show_list()
        if self._chosen and self._run is None:
            await self._show_run()

    def close(self) -> None:
        """Nothing runs beside it."""

    def _show_list(self) -> None:
        found = [one for one in self._runs if self._wanted in one["entry"].lower()]
        self._summary.say(figures.count(len(found), "run") + (f", the newest {LIMIT}" if len(self._runs) >= LIMIT else ""))
        self._table.show(lambda limit: waterfall.list_rows(found[-limit:], self._chosen), len(found), "runs")

    async def _show_run(self) -> None:
        self._run = await self.questions.ask(f"/v1/runs/{self._chosen}") if self._chosen else None
        if not self._chosen:
            self.questions.troubles = {path: why for path, why in self.questions.troubles.items() if "/runs/" not in path}
        self._detail.show(self._run is not None)
        if self._run is None:
            return
        run = self._run
        starts = ", ".join(f"{many} {kind}" for kind, many in sorted(run["starts"].items()))
        self._name.say(f"{run['entry']}, {figures.milliseconds(run['duration_ms'])}")
        self._said.say(f"{run['status']}; {figures.count(run['invocations'], 'invocation')}: {starts}; trace {run['trace_id']}")
        self._waterfall.show(waterfall.rows(run))
        over = run["invocations"] - waterfall.INVOCATIONS
        more = f"The first {waterfall.INVOCATIONS} invocations; {over:,} more: foreglow runs {run['trace_id']}"
        self._cut.say(more if over > 0 else "")
        self._decisions.show(
            [
                {**one, "cells": [cell if not isinstance(cell, dict) else {**cell, "choose": ""} for cell in one["cells"]]}
                for one in feed.rows(run["decisions"])
            ]
        )
        self._undecided.show(not run["decisions"])

    # -- what is pressed

    def _filter(self, wanted: str) -> None:
        self._wanted = wanted.strip().lower()
        self._show_list()

    async def _choose(self, trace_id: str) -> None:
        self._chosen = "" if trace_id == self._chosen else trace_id
        self._go(f"runs/{self._chosen}" if self._chosen else "runs")
        self._show_list()
        await self._show_run()
        if self._run is not None:
            self._name.run_method("focus")

"""The decision feed, as it happens, with what it comes to."""

import asyncio
from collections.abc import Mapping
from typing import Any

from nicegui import background_tasks

from orchestrator.page import feed, reasons
from orchestrator.page.api import Absent, Away, ControlApi, SignedOut
from orchestrator.page.elements import Plain, Rows
from orchestrator.page.feed import Feed
from orchestrator.page.parts import Empty, Listing, button, search, select
from orchestrator.page.questions import Questions
from orchestrator.page.views.view import Go

TOTALS_EVERY_S = 2.0
AGAIN_S = 2.0
STREAM = "/v1/decisions/stream"
Tile = tuple[Plain, Plain, Plain]


class DecisionsView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._api = api
        self._go = go
        self._function = argument
        self._chosen = ""
        self._shown: Mapping[str, Any] | None = None
        self._outcome = ""
        self._feed = Feed()
        self._changed = True
        self._known = False
        self._build()
        self._following = background_tasks.create(self._follow(), name="decisions")

    def _build(self) -> None:
        with Plain("dl", classes="tiles"):
            self._tiles: list[Tile] = []
            for _ in range(8):
                with Plain("div", classes="tile"):
                    self._tiles.append((Plain("dt"), Plain("dd", "…", "figure"), Plain("dd", classes="sub")))
        self._reckoned = Plain("details", classes="reckoned")
        with self._reckoned:
            Plain("summary", "Per function: how predictions held, and what waiting and idling cost")
            self._functions = Listing("What prewarming comes to, by function", reasons.FUNCTION_COLUMNS)
        self._detail = Plain("section", classes="detail", aria_label="The chosen decision")
        with self._detail:
            with Plain("div", classes="bar"):
                self._name = Plain("h2", tabindex="-1", id="chosen")
                button("Close", lambda: self._choose(""), "Close the decision")
            self._facts = Plain("dl", classes="facts")
            self._weighed = Rows("What was weighed, the cheapest first", reasons.ALTERNATIVE_COLUMNS)
        self._detail.show(False)
        with Plain("div", classes="bar"):
            search("Function", self._function, self._filter)
            options = [("", "all"), *((outcome, outcome) for outcome in feed.OUTCOMES)]
            select("Outcome", options, self._filter_outcome)
            self._summary = Plain("p", classes="summary", role="status")
        self._empty = Empty("No prewarm was decided yet. Invoke a function that calls others, or warm one:", "foreglow warm NAME")
        self._empty.show(False)
        self._table = Listing("Prewarm decisions, newest first", feed.COLUMNS, self._pressed)

    async def refresh(self) -> None:
        totals = await self.questions.ask_every(TOTALS_EVERY_S, "/v1/decisions/totals")
        if totals is not None:
            self._say(self._tiles[:4], feed.tiles(totals))
        told = await self.questions.ask_every(TOTALS_EVERY_S, "/v1/calibration")
        if told is not None:
            self._say(self._tiles[4:], reasons.tiles(told))
            functions = told["functions"]
            self._functions.show(lambda limit: reasons.function_rows(functions[:limit]), len(functions), "functions")
            self._reckoned.show(bool(functions))
        if self._changed and self._known:
            self._show()

    @staticmethod
    def _say(tiles: list[Tile], texts: list[tuple[str, str, str]]) -> None:
        for elements, said in zip(tiles, texts, strict=True):
            for element, text in zip(elements, said, strict=True):
                element.say(text)

    def close(self) -> None:
        self._following.cancel()

    def _show(self) -> None:
        self._changed = False
        found = self._feed.newest(self._function, self._outcome)
        self._empty.show(not len(self._feed))
        which = " that match" if self._function or self._outcome else ""
        self._summary.say(f"{len(found):,} of the newest {len(self._feed):,} decisions{which}" if len(self._feed) else "")
        self._table.show(lambda limit: feed.rows(found[:limit]), len(found), "decisions")
        self._show_chosen()

    def _show_chosen(self) -> None:
        """All that the chosen one stands on; it changes while it is open."""
        one = self._feed.get(self._chosen)
        self._detail.show(one is not None)
        if one is None or one == self._shown:
            return
        self._shown = one
        self._name.say(reasons.heading(one))
        self._facts.clear()
        with self._facts:
            for what, told in reasons.facts(one):
                Plain("dt", what)
                Plain("dd", told)
        weighed = reasons.alternative_rows(one["evidence"])
        self._weighed.show(weighed)
        self._weighed.set_visibility(bool(weighed))

    async def _follow(self) -> None:
        """What there is, then what changes; from the start again whenever that breaks off."""
        while True:
            try:
                answer = await self._api.get("/v1/decisions", limit=feed.KEPT)
                self._feed.take(answer["decisions"])
                self._known = self._changed = True
                async for one in self._api.events(STREAM, int(answer["revision"])):
                    self.questions.troubles.pop(STREAM, None)
                    if one:
                        self._feed.take([one])
                        self._changed = True
            except (Away, Absent) as error:
                self.questions.troubles[STREAM] = str(error)
            except SignedOut:
                self.questions.over = True
                return
            await asyncio.sleep(AGAIN_S)

    # -- what is pressed

    def _filter(self, function: str) -> None:
        self._function = function.strip()
        self._show()

    def _filter_outcome(self, outcome: str) -> None:
        self._outcome = outcome
        self._show()

    def _pressed(self, chosen: str) -> None:
        what, _, ident = chosen.partition(" ")
        if what == "run":
            self._go(f"runs/{ident}")
        else:
            self._choose(ident)

    def _choose(self, decision_id: str) -> None:
        self._chosen = "" if decision_id == self._chosen else decision_id
        self._show_chosen()
        if self._chosen:
            self._name.run_method("focus")

"""The decision feed, as it happens, with what it comes to."""

import asyncio

from nicegui import background_tasks

from orchestrator.page import feed
from orchestrator.page.api import Absent, Away, ControlApi, SignedOut
from orchestrator.page.elements import Plain
from orchestrator.page.feed import Feed
from orchestrator.page.parts import Empty, Listing, search, select
from orchestrator.page.questions import Questions
from orchestrator.page.views.view import Go

TOTALS_EVERY_S = 2.0
AGAIN_S = 2.0
STREAM = "/v1/decisions/stream"


class DecisionsView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._api = api
        self._go = go
        self._function = argument
        self._outcome = ""
        self._feed = Feed()
        self._changed = True
        self._known = False
        self._over = False
        self._build()
        self._following = background_tasks.create(self._follow(), name="decisions")

    def _build(self) -> None:
        with Plain("dl", classes="tiles"):
            self._tiles = []
            for _ in range(4):
                with Plain("div", classes="tile"):
                    self._tiles.append((Plain("dt"), Plain("dd", "…", "figure"), Plain("dd", classes="sub")))
        with Plain("div", classes="bar"):
            search("Function", self._function, self._filter)
            options = [("", "all"), *((outcome, outcome) for outcome in feed.OUTCOMES)]
            select("Outcome", options, self._filter_outcome)
            self._summary = Plain("p", classes="summary", role="status")
        self._empty = Empty("No prewarm was decided yet. Invoke a function that calls others, or warm one:", "foreglow warm NAME")
        self._empty.show(False)
        self._table = Listing("Prewarm decisions, newest first", feed.COLUMNS, self._follow_run)

    async def refresh(self) -> None:
        if self._over:
            raise SignedOut
        totals = await self.questions.ask_every(TOTALS_EVERY_S, "/v1/decisions/totals")
        if totals is not None:
            for (name, figure, said), texts in zip(self._tiles, feed.tiles(totals), strict=True):
                for element, text in zip((name, figure, said), texts, strict=True):
                    element.say(text)
        if self._changed and self._known:
            self._show()

    def close(self) -> None:
        self._following.cancel()

    def _show(self) -> None:
        self._changed = False
        found = self._feed.newest(self._function, self._outcome)
        self._empty.show(not len(self._feed))
        which = " that match" if self._function or self._outcome else ""
        self._summary.say(f"{len(found):,} of the newest {len(self._feed):,} decisions{which}" if len(self._feed) else "")
        self._table.show(lambda limit: feed.rows(found[:limit]), len(found), "decisions")

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
                self._over = True
                return
            await asyncio.sleep(AGAIN_S)

    # -- what is pressed

    def _filter(self, function: str) -> None:
        self._function = function.strip()
        self._show()

    def _filter_outcome(self, outcome: str) -> None:
        self._outcome = outcome
        self._show()

    def _follow_run(self, chosen: str) -> None:
        self._go(f"runs/{chosen.removeprefix('run ')}")

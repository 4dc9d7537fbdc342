"""Scaling: instances wanted, ready and busy over time, which term decided, and why."""

from typing import Any
from urllib.parse import quote

from orchestrator.page import scaling
from orchestrator.page.api import ControlApi
from orchestrator.page.elements import Courses, Plain, Rows
from orchestrator.page.parts import Empty, Listing, button, search, select
from orchestrator.page.questions import Questions
from orchestrator.page.scaling import Chronicle, Course, Version
from orchestrator.page.views.view import Go

ALL_EVERY_S = 2.0
ORDER_EVERY = 5
"""Charts change places this many times less often than what they are sorted by is asked for."""

CHARTS, MOST_CHARTS = 24, 96  # as many functions as the API tells of at once
PATH = "/v1/scaling"
SPANS = (("300", "5 minutes"), ("1800", "30 minutes"), ("7200", "2 hours"))
SIGNS = (("wanted", "wanted"), ("ready", "ready: idle or busy"), ("busy", "busy"))


class ScalingView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._go = go
        self._chosen = argument
        self._wanted = ""
        self._span_s = float(SPANS[0][0])
        self._policy = ""
        self._functions: dict[str, list[Version]] = {}
        self._matching: list[str] = []
        self._answers = 0
        self._charts = CHARTS
        self._at = 0.0  # the planner's clock
        self._courses: dict[str, Course] = {}
        self._gone: list[str] = []
        self._chronicle = Chronicle()
        self._told: list[Version] = []
        self._every = False
        self._build()

    def _build(self) -> None:
        with Plain("div", classes="bar"):
            search("Filter functions", "", self._filter)
            select("Time", list(SPANS), self._choose_span)
            self._summary = Plain("p", classes="summary", role="status")
        with Plain("ul", classes="legend", aria_label="Signs in the charts"):
            for name, text in SIGNS:
                with Plain("li", classes="mark"):
                    Plain("span", "", f"swatch of-{name}", aria_hidden="true")
                    Plain("span", text)
            self._ends = Plain("li", classes="sub")
        self._empty = Empty(
            "No instance was wanted yet. Invoke a function, or deploy one with min_instances:", "foreglow invoke NAME"
        )
        self._empty.show(False)
        self._build_detail()
        self._grid = Courses("Instances of each function", self._choose)
        with Plain("p", classes="rest") as self._rest:
            self._said = Plain("span")
            self._more = button("Show more", self._show_more)
        self._rest.show(False)
        Plain("h2", "All functions as a table")
        self._table = Listing("Instances of each function, and who decided", scaling.COLUMNS, self._choose)
        self._say_ends()

    def _build_detail(self) -> None:
        self._detail = Plain("section", classes="detail", aria_label="The chosen function")
        with self._detail:
            with Plain("div", classes="bar"):
                self._name = Plain("h2", tabindex="-1", id="chosen")
                self._now = Plain("p", classes="summary")
                button("Close", lambda: self._choose(""), "Close the function")
            self._large = Courses("Instances of the chosen function, by version", large=True)
            Plain("h3", "What each policy asks for")
            self._terms = Rows("What each policy asks for", scaling.TERM_COLUMNS)
            self._unasked = Plain("p", "Nothing asks for an instance now.", classes="sub")
            with Plain("div", classes="bar"):
                Plain("h3", "Changes, newest first")
                options = [("wanted", "of what is wanted"), ("every", "of ready and busy, too")]
                select("Changes", options, self._choose_changes)
            self._changes = Listing("Changes of the chosen function", scaling.CHANGE_COLUMNS)
        self._detail.show(False)

    async def refresh(self) -> None:
        told = await self.questions.ask_every(ALL_EVERY_S, PATH)
        if told is not None:
            self._take(told)
        await self._draw()
        await self._show_detail()

    def close(self) -> None:
        """Nothing runs beside it."""

    # -- showing

    def _take(self, told: dict[str, Any]) -> None:
        self._policy = told["policy"]
        self._functions = scaling.by_function(told["versions"])
        self._at = self._at or told["at"]
        if self._answers % ORDER_EVERY == 0 or {*self._matching} ^ {*self._found()}:
            self._matching = self._found()
        self._answers += 1
        self._show()

    def _found(self) -> list[str]:
        return scaling.busiest(self._functions, self._wanted)

    def _show(self) -> None:
        """What is said in words, and which charts there are."""
        functions, matching = self._functions, self._matching
        self._empty.show(not functions)
        self._summary.say(scaling.said(self._policy, functions, matching) if functions else "")
        self._table.show(lambda limit: scaling.rows(matching[:limit], functions, self._chosen), len(matching), "functions")
        charts = matching[: self._charts]
        self._grid.show(scaling.cards(charts, functions, self._chosen))
        self._gone += [name for name in self._courses if name not in charts]
        for name in self._gone:
            self._courses.pop(name, None)
        self._rest.show(len(matching) > len(charts))
        most = self._charts >= MOST_CHARTS
        self._said.say(f"Charts of {len(charts):,} of {len(matching):,} functions" + ("; filter for the others" if most else ""))
        self._more.show(not most)

    async def _draw(self) -> None:
        """Asks for what the charts do not hold yet."""
        charts = self._matching[: self._charts]
        if not charts:
            return
        courses = self._courses
        known = all(name in courses for name in charts)
        told = await self.questions.ask(PATH, functions=",".join(charts), after=self._at if known else self._at - self._span_s)
        if told is None or courses is not self._courses:  # meanwhile another time is to be shown
            return
        self._at = told["at"]
        versions = scaling.by_function(told["versions"])
        points = {}
        for name in charts:
            fresh = courses.setdefault(name, Course()).take(versions.get(name, ()))
            if fresh:
                points[name] = fresh
        self._grid.tell(self._at, self._span_s, self._gone, points)
        self._gone = []
        self._functions |= versions
        self._show()

    async def _show_detail(self) -> None:
        name = self._chosen
        if not name:
            self._detail.show(False)
            return
        chronicle = self._chronicle
        after = max((points[-1]["at"] for points in chronicle.points.values() if points), default=0.0)
        told = await self.questions.ask(f"/v1/functions/{quote(name, safe='')}/scaling", after=after)
        if told is None or chronicle is not self._chronicle:
            return
        self._detail.show(True)
        self._told = told["versions"]
        self._name.say(name)
        self._now.say(scaling.said(told["policy"], {name: self._told}, [name]).partition(": ")[2] or "nothing is known of it")
        self._large.show(scaling.version_cards(self._told))
        self._large.tell(told["at"], self._span_s, [], chronicle.take(self._told))
        terms = scaling.term_rows(self._told)
        self._terms.show(terms)
        self._unasked.show(not terms)
        self._show_changes()

    def _show_changes(self) -> None:
        points, every = self._chronicle.points, self._every
        _, many = scaling.change_rows(points, every, 0)
        self._changes.show(lambda limit: scaling.change_rows(points, every, limit)[0], many, "changes")

    def _say_ends(self) -> None:
        self._ends.say(f"Each chart ends now and began {dict(SPANS)[f'{self._span_s:g}']} ago")

    # -- what is pressed

    async def _filter(self, wanted: str) -> None:
        self._wanted = wanted.strip()
        self._matching = self._found()
        self._show()
        await self._draw()

    async def _choose_span(self, span: str) -> None:
        if span not in dict(SPANS):
            return
        self._span_s = float(span)
        self._say_ends()
        self._gone += list(self._courses)
        self._courses = {}
        await self._draw()
        await self._show_detail()

    def _choose_changes(self, which: str) -> None:
        self._every = which == "every"
        self._show_changes()

    async def _show_more(self) -> None:
        self._charts = min(MOST_CHARTS, self._charts + CHARTS)
        self._show()
        await self._draw()

    async def _choose(self, name: str) -> None:
        known = list(self._chronicle.points)
        self._chosen = "" if name == self._chosen else name
        self._go(f"scaling/{quote(self._chosen, safe='')}" if self._chosen else "scaling")
        self._chronicle, self._told = Chronicle(), []
        if known:
            self._large.tell(self._at, self._span_s, known, {})
        self._show()
        await self._show_detail()
        if self._chosen:
            self._name.run_method("focus")

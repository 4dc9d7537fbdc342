"""The call graph: drawn, as a table, and one function in detail."""

from typing import Any
from urllib.parse import quote

from orchestrator.page import cells, feed, figures, picture
from orchestrator.page.api import ControlApi
from orchestrator.page.elements import CallGraphPicture, Plain, Rows
from orchestrator.page.parts import Empty, Listing, button, search
from orchestrator.page.picture import Graph
from orchestrator.page.questions import Questions
from orchestrator.page.views.view import Go

GRAPH_EVERY_S = 2.0
ROW_PX, LEAST_PX, MOST_PX = 58, 300, 760
STATES = ("warm", "preparing", "cold", "not deployed")
INSTANCE_COLUMNS = [
    cells.column("Instances on"),
    cells.column("Version", "number"),
    cells.column("Idle", "number"),
    cells.column("Busy", "number"),
    cells.column("Preparing", "number"),
]


class CallGraphView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._go = go
        self._chosen = argument
        self._wanted = ""
        self._document: dict[str, Any] | None = None
        self._instances: list[dict[str, Any]] | None = None
        self._graph: Graph | None = None
        self._states: dict[str, str] = {}
        self._build()

    def _build(self) -> None:
        with Plain("div", classes="bar"):
            search("Filter functions", "", self._filter)
            with Plain("div", classes="buttons", role="group", aria_label="Zoom"):
                button("+", lambda: self._picture.zoom(1.5), "Zoom in")
                button("−", lambda: self._picture.zoom(1 / 1.5), "Zoom out")
                button("All", lambda: self._picture.zoom(0), "Show all of the graph")
            self._summary = Plain("p", classes="summary", role="status")
        with Plain("ul", classes="legend", aria_label="Signs in the graph"):
            for state in STATES:
                with Plain("li", classes="mark"):
                    Plain("span", cells.SIGNS[state], f"sign tone-{state.replace(' ', '-')}", aria_hidden="true")
                    Plain("span", state)
            Plain("li", "A line's width is the probability of the call; dashed: declared, not seen yet", classes="sub")
        self._note = Plain("p", classes="note")
        self._empty = Empty("No function is deployed, and no call was learned yet.", "foreglow deploy FOLDER")
        self._empty.show(False)
        self._picture = CallGraphPicture(self._choose)
        self._detail = Plain("section", classes="detail", aria_label="The chosen function")
        with self._detail:
            with Plain("div", classes="bar"):
                self._name = Plain("h2", tabindex="-1", id="chosen")
                self._state = Plain("p", classes="summary")
                button("Close", lambda: self._choose(""), "Close the details")
            self._edges = Rows("Calls of the chosen function", picture.EDGE_COLUMNS, self._choose)
            self._holds = Rows("Instances of the chosen function", INSTANCE_COLUMNS)
            Plain("h3", "Latest decisions about it")
            self._decisions = Rows("Latest decisions about the chosen function", feed.COLUMNS, self._follow)
            self._undecided = Plain("p", "None yet: nothing was prepared ahead for it.", classes="sub")
        self._detail.show(False)
        Plain("h2", "The graph as a table")
        self._table = Listing("Functions, their state and their calls", picture.COLUMNS, self._choose)

    async def refresh(self) -> None:
        document = await self.questions.ask_every(GRAPH_EVERY_S, "/v1/graph")
        answer = await self.questions.ask("/v1/instances")
        self._instances = answer["instances"] if answer is not None and not self._all_away(answer) else None
        if answer is not None and answer["away"]:
            self.questions.troubles["/v1/instances"] = f"{', '.join(answer['away'])} does not answer"
        if document is not None and document != self._document:
            self._document = document
            self._show_graph()
        elif self._graph is not None:
            self._show_states()
        await self._show_detail()

    def close(self) -> None:
        """Nothing runs beside it."""

    @staticmethod
    def _all_away(answer: dict[str, Any]) -> bool:
        return bool(answer["away"]) and not answer["instances"]

    # -- showing

    def _show_graph(self) -> None:
        assert self._document is not None
        self._graph = picture.shown(self._document, self._wanted)
        self._states = picture.states(self._graph, self._instances)
        self._empty.show(not self._document["functions"])
        if not self._wanted:  # while somebody types, the page stays where it is
            self._picture.style(f"height: {self._height()}px")
        self._picture.draw(picture.drawing(self._graph, self._states), self._chosen)
        self._note.say(self._remark())
        self._show_words()

    def _remark(self) -> str:
        assert self._graph is not None
        functions, edges = self._graph.left_out
        if functions or edges:
            return f"Not drawn: {functions:,} functions and {edges:,} of the least likely calls. Filter, and they are."
        if self._wanted and not self._graph.functions:
            return f"No function's name holds “{self._wanted}”."
        if len(self._graph.functions) > picture.NAMED:
            return "Too many for their names: filter, choose one, or point at one."
        return ""

    def _show_states(self) -> None:
        assert self._graph is not None
        now = picture.states(self._graph, self._instances)
        changed = {name: state for name, state in now.items() if self._states.get(name) != state}
        if changed:
            self._states = now
            self._picture.set_states(changed, self._chosen)
            self._show_words()

    def _show_words(self) -> None:
        assert self._graph is not None
        graph, now = self._graph, self._states
        counts = [(state, sum(1 for one in graph.matches if now.get(one) == state)) for state in (*STATES, "unknown")]
        said = [figures.count(len(graph.matches), "function"), figures.count(len(graph.edges), "call")]
        self._summary.say(", ".join(said) + ": " + ", ".join(f"{many:,} {state}" for state, many in counts if many))
        self._table.show(lambda limit: picture.rows(graph, self._states, self._chosen, limit), len(graph.matches), "functions")

    def _height(self) -> int:
        assert self._graph is not None
        rows = [row for _, row in self._graph.places.values()]
        return int(min(MOST_PX, max(LEAST_PX, ROW_PX * (max(rows, default=0) - min(rows, default=0) + 2))))

    async def _show_detail(self) -> None:
        known = self._document is not None and any(one["name"] == self._chosen for one in self._document["functions"])
        self._detail.show(known)
        if not known:
            return
        assert self._document is not None
        self._name.say(self._chosen)
        self._state.say(self._states.get(self._chosen, ""))
        self._edges.show(picture.edge_rows(self._document, self._chosen))
        own = [one for one in self._instances or () if one["function"] == self._chosen]
        self._holds.show(
            [
                cells.row(
                    f"{one['node']} {one['version']}",
                    [one["node"], str(one["version"]), *(str(one[state]) for state in ("idle", "busy", "preparing"))],
                )
                for one in own
            ]
        )
        answer = await self.questions.ask_every(1.0, "/v1/decisions", function=self._chosen, limit=10)
        if answer is not None:
            self._decisions.show(feed.rows(reversed(answer["decisions"])))
            self._undecided.show(not answer["decisions"])

    # -- what is pressed

    def _filter(self, wanted: str) -> None:
        self._wanted = wanted.strip()
        if self._document is not None:
            self._show_graph()

    async def _choose(self, name: str) -> None:
        if name == self._chosen:
            name = ""
        self._chosen = name
        self._go(f"graph/{quote(name, safe='')}" if name else "")
        self.questions.at_once()
        if self._graph is not None:
            self._picture.set_states({}, name)
            self._show_words()
        await self._show_detail()
        if name:
            self._name.run_method("focus")

    def _follow(self, chosen: str) -> None:
        self._go(f"runs/{chosen.removeprefix('run ')}")

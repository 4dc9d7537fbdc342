"""Functions and nodes: what runs, what waits, what went wrong."""

from typing import Any
from urllib.parse import quote

from orchestrator.page import figures, overview
from orchestrator.page.api import ControlApi
from orchestrator.page.elements import Plain, Rows
from orchestrator.page.parts import Empty, Listing, search
from orchestrator.page.questions import Questions
from orchestrator.page.views.view import Go

SLOW_S = 2.0
NETWORKS = 20  # shown


class PlatformView:
    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        self.questions = Questions(api)
        self._go = go
        self._wanted = argument
        self._functions: list[dict[str, Any]] | None = None
        self._instances: list[dict[str, Any]] | None = None
        self._activity: dict[str, dict[str, Any]] = {}
        self._code: list[dict[str, Any]] = []
        self._build()

    def _build(self) -> None:
        with Plain("div", classes="bar"):
            search("Filter functions", self._wanted, self._filter)
            self._summary = Plain("p", classes="summary", role="status")
        self._empty = Empty("No function is deployed yet.", "foreglow deploy FOLDER")
        self._empty.show(False)
        self._table = Listing("Functions, their instances, conditions and errors", overview.FUNCTION_COLUMNS, self._choose)
        Plain("h2", "Nodes")
        self._nodes = Rows("Nodes, what they hold and how they isolate", overview.NODE_COLUMNS)
        Plain("h2", "Private networks")
        self._networks = Rows("Private networks, their proxies and the tunnels into them", overview.VPC_COLUMNS)
        Plain("h2", "Other parts")
        self._parts = Rows("Other parts of the platform", overview.PROCESS_COLUMNS)

    async def refresh(self) -> None:
        functions = await self.questions.ask_every(SLOW_S, "/v1/functions", limit=1000)
        instances = await self.questions.ask("/v1/instances")
        activity = await self.questions.ask_every(SLOW_S, "/v1/activity")
        code = await self.questions.ask_every(SLOW_S, "/v1/code")
        status = await self.questions.ask_every(SLOW_S, "/v1/status")
        vpcs = await self._vpcs()
        self._instances = instances["instances"] if instances is not None else None
        if instances is not None and instances["away"]:
            self._instances = self._instances or None
            self.questions.troubles["/v1/instances"] = f"{', '.join(instances['away'])} does not answer"
        if functions is not None:
            self._functions = functions["functions"]
            self._empty.show(not self._functions)
        if activity is not None:
            self._activity = {one["name"]: one for one in activity["functions"]}
        if code is not None:
            self._code = code["functions"]
        if status is not None:
            self._nodes.show(overview.node_rows(status))
            self._parts.show(overview.process_rows(status))
        if vpcs is not None:
            self._networks.show(overview.vpc_rows(vpcs))
        self._show()

    async def _vpcs(self) -> list[dict[str, Any]] | None:
        """Each is asked of its nodes; None: not now."""
        listed = await self.questions.ask_every(SLOW_S, "/v1/vpcs", limit=NETWORKS)
        if listed is None:
            return None
        found = [await self.questions.ask(f"/v1/vpcs/{quote(one['name'])}") for one in listed["vpcs"]]
        return [one for one in found if one is not None]

    def close(self) -> None:
        """Nothing runs beside it."""

    def _show(self) -> None:
        functions = self._functions
        if functions is None:
            return
        matching = sum(1 for one in functions if self._wanted.lower() in one["name"].lower())
        errors = sum(one["errors"] for one in self._activity.values())
        done = sum(one["invocations"] for one in self._activity.values())
        recent = f"{figures.count(done, 'invocation')} and {figures.count(errors, 'error')} in the last 15 minutes"
        self._summary.say(f"{figures.count(matching, 'function')}; {recent}")
        self._table.show(
            lambda limit: overview.function_rows(functions, self._instances, self._activity, self._wanted, limit, self._code),
            matching,
            "functions",
        )

    # -- what is pressed

    def _filter(self, wanted: str) -> None:
        self._wanted = wanted.strip()
        self._show()

    def _choose(self, chosen: str) -> None:
        self._go(f"runs/{chosen.removeprefix('run ')}")

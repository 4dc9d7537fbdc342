"""The planner's answers to control: graph, plans, decisions, runs, workflows; and the few orders that come from people."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from graph.callgraph import CallGraph
from graph.ids import FunctionId, TenantId, function_id, name_of
from graph.planning import POLICIES
from graph.prediction import predict
from graph.rendering import render
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.activity import Activity
from orchestrator.planner.answers import decision_json, plan_json
from orchestrator.planner.learning import Learner
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.loop import PlannerLoop
from orchestrator.planner.peers import Fleet
from orchestrator.planner.runs import RunBook
from orchestrator.planner.scaling import Scaling
from orchestrator.planner.totals import totals
from tracing.assembly import Assembler
from workers.rpc.connection import RpcError

MAX_LIMIT = 1000
MAX_WARM = 100


class Insight:
    """Every answer is about one tenant; `args["tenant"]` comes from control, which has authenticated it."""

    def __init__(
        self,
        graph: CallGraph,
        table: RouteTable,
        fleet: Fleet,
        loop: PlannerLoop,
        decisions: DecisionLog,
        runs: RunBook,
        learner: Learner,
        activity: Activity,
        assembler: Assembler,
        scaling: Scaling,
    ) -> None:
        self._graph = graph
        self._table = table
        self._fleet = fleet
        self._loop = loop
        self._decisions = decisions
        self._runs = runs
        self._learner = learner
        self._activity = activity
        self._assembler = assembler
        self._scaling = scaling
        self._totals: tuple[int, dict[tuple[str, str], dict[str, Any]]] = (-1, {})

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[object]]]:
        """The table of questions this process knows."""
        return {
            "graph": self.graph,
            "plan": self.plan,
            "warm": self.warm,
            "cool": self.cool,
            "decisions": self.decisions,
            "decision": self.decision,
            "calibration": self.calibration,
            "totals": self.totals,
            "scaling": self.scaling,
            "activity": self.activity,
            "runs": self.runs,
            "run": self.run,
            "workflows": self.workflows,
            "prewarm": self.prewarm,
            "state": self.state,
        }

    async def graph(self, args: Mapping[str, Any]) -> object:
        tenant = TenantId(args["tenant"])
        form = args.get("format") or "json"
        if form not in ("json", "dot", "mermaid"):
            raise RpcError(f"format: {form!r} is not one of json, dot, mermaid", 400)
        deployed = [FunctionId(one) for one in self._table.routes if one.startswith(f"{tenant}/")]
        text = render(self._graph.edges(tenant), form, deployed=deployed)
        return text.encode() if form == "json" else {"text": text}

    async def plan(self, args: Mapping[str, Any]) -> object:
        return plan_json(self._loop.show(TenantId(args["tenant"]), self._known(args)))

    async def warm(self, args: Mapping[str, Any]) -> object:
        entry = self._known(args)
        if entry not in self._table.routes:
            raise RpcError(f"function {args['name']!r} is not deployed", 404)
        count = int(args.get("count", 1))
        if not 1 <= count <= MAX_WARM:
            raise RpcError(f"count: {count} is not between 1 and {MAX_WARM}", 400)
        if not self._fleet.up():
            raise RpcError("no node is reachable")
        return plan_json(self._loop.warm(TenantId(args["tenant"]), entry, count))

    async def cool(self, args: Mapping[str, Any]) -> object:
        """Drops idle instances: of one function, or of all of the tenant's when `name` is empty."""
        names = [args["name"]] if args.get("name") else self._names(args["tenant"])
        answers = await self._fleet.ask_all("cool", tenant=args["tenant"], names=names)
        cooled = {str(function_id(args["tenant"], name)) for name in names}
        self._fleet.forget_idle(cooled)
        self._scaling.cooled(cooled)
        return {"cooled": sum(one["cooled"] for one in answers)}

    async def scaling(self, args: Mapping[str, Any]) -> object:
        tenant, after = TenantId(args["tenant"]), args.get("after")
        if args.get("name"):
            return self._scaling.told(tenant, {function_id(tenant, args["name"])}, float(after or 0.0))
        only = {function_id(tenant, name) for name in args.get("functions") or ()}
        return self._scaling.told(tenant, only or None, None if after is None else float(after))

    async def decisions(self, args: Mapping[str, Any]) -> object:
        after = args.get("after")
        found = self._decisions.read(
            args["tenant"],
            args.get("function") or "",
            args.get("run") or "",
            max(1, min(int(args.get("limit") or 100), MAX_LIMIT)),
            int(after) if after is not None else None,
        )
        return {"decisions": [decision_json(one) for one in found], "revision": self._decisions.revision}

    async def decision(self, args: Mapping[str, Any]) -> object:
        found = self._decisions.one(args["tenant"], args["decision_id"])
        if found is None:
            raise RpcError(f"no decision {args['decision_id']!r}; the log keeps the newest", 404)
        return decision_json(found)

    async def calibration(self, args: Mapping[str, Any]) -> object:
        """How predictions held, what waiting and idling cost, and what the tenant may still spend."""
        tenant = args["tenant"]
        changing = {name_of(function) for function in self._changing_of(TenantId(tenant))}
        told = self._loop.told(tenant)
        for one in told["functions"]:
            one["changing"] = one["function"] in changing
        return told

    async def totals(self, args: Mapping[str, Any]) -> object:
        """Added up once per change of the log, however many watch."""
        revision, known = self._totals
        if revision != self._decisions.revision:
            known = {}
            self._totals = (self._decisions.revision, known)
        asked = (args["tenant"], args.get("function") or "")
        if asked not in known:
            known[asked] = totals(self._decisions.entries(), *asked)
        return known[asked]

    async def activity(self, args: Mapping[str, Any]) -> object:
        return self._activity.of(args["tenant"], time.time())

    async def runs(self, args: Mapping[str, Any]) -> object:
        return {"runs": self._runs.list(args["tenant"], max(1, min(int(args.get("limit") or 50), MAX_LIMIT)))}

    async def run(self, args: Mapping[str, Any]) -> object:
        tree = self._runs.tree(args["tenant"], args["trace_id"])
        if tree is None:
            raise RpcError(f"no finished run {args['trace_id']!r}", 404)
        found = self._decisions.read(args["tenant"], run=args["trace_id"], limit=MAX_LIMIT)
        return {**tree, "decisions": [decision_json(one) for one in found]}

    async def workflows(self, args: Mapping[str, Any]) -> object:
        tenant = TenantId(args["tenant"])
        return {
            "workflows": [
                {
                    "entry": name_of(entry),
                    "deployed": entry in self._table.routes,
                    "functions": [
                        {
                            "name": name_of(one.function),
                            "reach": one.reach,
                            "samples": one.samples,
                            "source": one.source,
                            "changing": self._changing(entry, one.function),
                        }
                        for one in predict(self._graph, entry, ())
                    ],
                }
                for entry in self._graph.entries(tenant)
            ]
        }

    async def prewarm(self, args: Mapping[str, Any]) -> object:
        """Reads or sets the tenant's policy; `open`: its speculative instances that are alive."""
        policy = args.get("policy")
        if policy:
            if policy not in POLICIES:
                raise RpcError(f"policy: {policy!r} is not one of {', '.join(POLICIES)}", 400)
            self._loop.policies[args["tenant"]] = policy
        return {"policy": self._loop.policy_of(args["tenant"]), "open": len(self._decisions.open_of(args["tenant"]))}

    async def state(self, args: Mapping[str, Any]) -> object:
        return {
            "nodes": [
                {"name": one.name, "up": one.connection is not None, "free_mb": one.free_mb, "standbys": one.standbys}
                for one in self._fleet.nodes
            ],
            "learned": {name: getattr(self._learner.counters, name) for name in self._learner.counters.__slots__},
            "spans": {"received": self._assembler.received, "left_out": self._assembler.dropped.total()},
        }

    def _known(self, args: Mapping[str, Any]) -> FunctionId:
        """The function, deployed or observed. Raises RpcError 404."""
        function = function_id(args["tenant"], args["name"])
        if function not in self._table.routes and function not in self._graph.functions(TenantId(args["tenant"])):
            raise RpcError(f"no function {args['name']!r}", 404)
        return function

    def _changing_of(self, tenant: TenantId) -> set[FunctionId]:
        """What some workflow calls much more or less often than before."""
        found: set[FunctionId] = set()
        for entry in self._graph.entries(tenant):
            reach = self._graph.reach(entry)
            if reach is not None:
                found |= {function for function, held in reach.reached.items() if held.changing(reach.clock)}
        return found

    def _changing(self, entry: FunctionId, function: FunctionId) -> bool:
        """Whether only the latest runs count for it now, because it is called much more or less than before."""
        reach = self._graph.reach(entry)
        held = reach.reached.get(function) if reach is not None else None
        return reach is not None and held is not None and held.changing(reach.clock)

    def _names(self, tenant: str) -> list[str]:
        return [name_of(FunctionId(one)) for one in self._table.routes if one.startswith(f"{tenant}/")]

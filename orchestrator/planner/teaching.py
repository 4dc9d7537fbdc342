"""The planner's answers about traces of elsewhere: imported ones are taught, what came is counted, names are given."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from graph.callgraph import CallGraph
from graph.calls import Trace
from graph.ids import FunctionId, TenantId, name_of
from orchestrator.catalog.watch import RouteTable
from orchestrator.planner.learning import Learner
from orchestrator.planner.naming import Names, TooManyNames
from tracing.assembly import Assembler
from workers.rpc.connection import RpcError

MAX_LIMIT = 1000

_decode_traces = msgspec.msgpack.Decoder(list[Trace]).decode


class Teaching:
    """Every answer is about one tenant; `args["tenant"]` comes from control, which has authenticated it."""

    def __init__(self, graph: CallGraph, table: RouteTable, learner: Learner, assembler: Assembler, names: Names) -> None:
        self._graph = graph
        self._table = table
        self._learner = learner
        self._assembler = assembler
        self._names = names

    def answers(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[object]]]:
        """The table of questions about traces."""
        return {"observe": self.observe, "intake": self.intake, "names": self.names, "name": self.name}

    async def observe(self, args: Mapping[str, Any]) -> object:
        """Imported traces. They are the caller's tenant's, whatever they say. `left_out`: what its reading left out, to count."""
        tenant = TenantId(args["tenant"])
        traces = _decode_traces(args["traces"])
        if any(trace.tenant != tenant for trace in traces):
            raise RpcError("a trace names another tenant", 400)
        learned = self._learner.observe(traces, time.time(), bool(args.get("decay", True)))
        intake = self._assembler.intake(tenant)
        intake.spans += int(args.get("spans", 0))
        intake.traces += len(traces)
        intake.left_out.update({str(reason): int(count) for reason, count in args.get("left_out", {}).items()})
        if learned < len(traces):
            intake.left_out["nothing to learn from"] += len(traces) - learned
        return {"observed": learned}

    async def intake(self, args: Mapping[str, Any]) -> object:
        """What came of the tenant since this planner started, and what waits."""
        tenant = TenantId(args["tenant"])
        intake = self._assembler.intake(tenant)
        return {
            "spans": intake.spans,
            "traces": intake.traces,
            "early": intake.early,
            "waiting_spans": self._assembler.held(tenant),
            "left_out": dict(intake.left_out),
        }

    async def names(self, args: Mapping[str, Any]) -> object:
        """Functions known from traces that are not deployed, and all names that are given, sorted."""
        tenant = TenantId(args["tenant"])
        given = self._names.of.get(tenant, {})
        observed = {name_of(one) for one in self._graph.functions(tenant) if one not in self._table.routes}
        after = str(args.get("after") or "")
        limit = max(1, min(int(args.get("limit") or 100), MAX_LIMIT))
        shown = sorted(name for name in observed | given.keys() if name > after)[:limit]
        return {
            "names": [
                {
                    "observed": name,
                    "function": given.get(name),
                    "deployed": name in given and FunctionId(f"{tenant}/{given[name]}") in self._table.routes,
                    "learned": name in observed,
                }
                for name in shown
            ],
            "map": {name: given[name] for name in shown if name in given} if not args.get("all") else given,
        }

    async def name(self, args: Mapping[str, Any]) -> object:
        """Gives names, or takes them away; answers as `names`."""
        try:
            self._names.change(TenantId(args["tenant"]), dict(args["map"]))
        except TooManyNames as error:
            raise RpcError(f"map: {error}", 400) from error
        return await self.names({**args, "after": ""})

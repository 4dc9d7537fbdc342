"""What a node answers when it is asked: logs, isolation, counts, templates, code, tunnels, what it is. And `cool`, an order that
is asked for as a question, because who gives it wants to know what came of it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from graph.ids import function_id
from workers.decisions import DecisionBook
from workers.execution import Execution
from workers.logs import LogStore
from workers.ports import CodeTier, IsolationReport
from workers.rpc.connection import Answerer
from workers.templating import FunctionTemplates
from workers.tunnelling import Tunnels


class Questions:
    """`answers`: by what is asked for. Arguments that are missing or no good raise KeyError, TypeError or ValueError: the
    connection tells so."""

    def __init__(
        self,
        name: str,
        report: IsolationReport,
        idle_s: float,
        execution: Execution,
        decisions: DecisionBook,
        templates: FunctionTemplates,
        code: CodeTier,
        tunnels: Tunnels,
        logs: LogStore,
        standbys: Callable[[], int],
    ) -> None:
        self._name = name
        self._report = report
        self._idle_s = idle_s
        self._instances = execution.instances
        self._idling = execution.idling
        self._decisions = decisions
        self._templates = templates
        self._code = code
        self._tunnels = tunnels
        self._logs = logs
        self._standbys = standbys
        self.answers: Mapping[str, Answerer] = {
            "logs": self._logs_of,
            "isolation": self._isolation,
            "state": self._state,
            "cool": self._cool,
            "counts": self._counts,
            "templates": self._templates_of,
            "code": self._code_of,
            "tunnels": self._tunnels_of,
        }

    async def _logs_of(self, args: Mapping[str, Any]) -> object:
        function = function_id(args["tenant"], args["function"])
        return self._logs.read(function, args.get("invocation", ""), int(args.get("limit", 100)), time.time())

    async def _isolation(self, args: Mapping[str, Any]) -> object:
        return msgspec.to_builtins(self._report)

    async def _counts(self, args: Mapping[str, Any]) -> object:
        tenant, now = f"{args['tenant']}/", time.monotonic()
        return [
            {**msgspec.structs.asdict(count), "keep_s": self._kept_s(count.version, now)}
            for count in self._instances.table.counts()
            if count.version.startswith(tenant)
        ]

    def _kept_s(self, version: str, now: float) -> float:
        worth_s = self._idling.keeps.of(version, now)
        return self._idle_s if worth_s is None else min(worth_s, self._idle_s)

    async def _templates_of(self, args: Mapping[str, Any]) -> object:
        return [
            {
                "version": one.version,
                "standing": one.standing.value,
                "reason": one.reason,
                "init_ms": round(one.init_ms, 1),
                "memory_mb": one.memory_mb,
                "clones": one.made,
            }
            for one in self._templates.of(args["tenant"])
        ]

    async def _code_of(self, args: Mapping[str, Any]) -> object:
        return {name: msgspec.to_builtins(one) for name, one in self._code.report_of(str(args["tenant"])).items()}

    async def _tunnels_of(self, args: Mapping[str, Any]) -> object:
        await self._tunnels.settled()
        return {"node": self._name, **self._tunnels.told_to(str(args["tenant"])), "reached": self._tunnels.reached()}

    async def _cool(self, args: Mapping[str, Any]) -> object:
        functions = {str(function_id(args["tenant"], name)) for name in args["names"]}
        return {"cooled": self._idling.cool(functions)}

    async def _state(self, args: Mapping[str, Any]) -> object:
        memory = self._instances.memory
        return {
            "name": self._name,
            "isolation": msgspec.to_builtins(self._report),
            "instances": len(self._instances.table),
            "standbys": self._standbys(),
            "memory_mb": {"total": memory.total_mb, "promised": memory.used_mb},
            "open_decisions": len(self._decisions),
            "code": msgspec.to_builtins(self._code.report()),
            "templates": {**self._templates.standings, "memory_mb": self._templates.held_mb},
            "tunnels": {"backend": self._tunnels.plane.backend, "reason": self._tunnels.plane.reason, **self._tunnels.counts()},
        }

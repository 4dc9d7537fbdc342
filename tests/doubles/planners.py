"""A planner between a gateway and its nodes, over their real sockets; the clock of its learning is the test's."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from doubles.gateways import Gate, route
from doubles.loop import until
from doubles.nodes import SECRET, Rig

from orchestrator.planner.insight import Insight
from orchestrator.planner.serving import Planner
from orchestrator.settings import Settings
from workers.rpc.connection import listen
from workers.versions import VersionSpec


class Mind:
    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.insight = Insight(
            planner.graph,
            planner.table,
            planner.fleet,
            planner.loop,
            planner.decisions,
            planner.runs,
            planner.learner,
            planner.activity,
            planner.assembler,
            planner.scaling,
        )

    def settle(self) -> None:
        """Everything heard so far is learned, as if its grace were over."""
        self.planner.tick(1e12)
        self.planner.loop.forecasts.forget()

    async def heard(self, runs: int) -> None:
        """`runs` runs were told whole."""
        await until(lambda: len(self.planner.runs.list("acme", 1000)) >= runs, f"{runs} runs: {self.planner.runs.all()}")

    def outcomes(self) -> dict[str, list[str]]:
        """function name -> how its decisions ended so far, in the order they were made."""
        found: dict[str, list[str]] = {}
        for one in self.planner.decisions.entries():
            found.setdefault(one.function.partition("/")[2], []).append(one.outcome)
        return found


def deploy(gate: Gate, mind: Mind, *specs: VersionSpec, calls: dict[str, list[str]] | None = None) -> None:
    """The same routes at the gateway and at the planner; `calls` are the declared callees by name."""
    for one in specs:
        function = one.version.rpartition(":")[0]
        found = route(one, calls=(calls or {}).get(function.partition("/")[2], []))
        gate.table.put(function, found)
        mind.planner.table.put(function, found)


@contextlib.asynccontextmanager
async def running_planner(gate: Gate, folder: Path, *rigs: Rig, **settings: object) -> AsyncIterator[Mind]:
    """Connected to the gateway and all nodes. Learning happens in `Mind.settle` only."""
    socket = folder / "gw.sock"
    server = await listen(socket, gate.reports, SECRET, "gw")
    whole = Settings(
        state=folder / "state",
        nodes=",".join(str(rig.path) for rig in rigs),
        gateways=str(socket),
        **settings,  # type: ignore[arg-type]
    )
    planner = Planner(whole, SECRET, "planner-1")
    planner.connect()
    try:
        await until(lambda: len(planner.fleet.up()) == len(rigs) and gate.reports._subscribers, "all are connected")
        await until(lambda: all(node.free_mb for node in planner.fleet.nodes), "the first inventories")
        yield Mind(planner)
    finally:
        await planner.disconnect()
        server.close()
        await until(lambda: not gate.reports._subscribers)
        planner.exporter.close()

"""A planner whose clock is set while it works, and one whose tenant is removed under what still comes of it."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles.fleets import ACME, Bench, fid
from doubles.nodes import SECRET

from graph.plans import Budget
from orchestrator.catalog.routes import TenantRoute
from orchestrator.planner import loop as loops
from orchestrator.planner import serving
from orchestrator.planner.serving import Planner
from orchestrator.settings import Settings
from tracing.incoming import AssemblyBounds
from tracing.spans import Span, SpanKind
from workers.rpc.messages import DecisionUpdate

AN_HOUR = 3600.0
AFTER_S = AssemblyBounds().idle_s + 1.0


def span(trace: str = "a" * 32) -> Span:
    return Span(trace, "b" * 16, "", "shop", "checkout", SpanKind.SERVER, 10**18, 10**18 + 10**9)


def planner_in(folder: Path) -> Planner:
    return Planner(Settings(state=folder, _env_file=None), SECRET, "planner-1")  # type: ignore[call-arg]


@pytest.mark.parametrize("moved", [-AN_HOUR, AN_HOUR])
def test_traces_complete_in_time_whichever_way_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: float
) -> None:
    planner = planner_in(tmp_path)
    planner.accept_spans(ACME, [span()])
    set_clock = SimpleNamespace(time=lambda: time.time() + moved, monotonic=lambda: time.monotonic() + 1.0)
    monkeypatch.setattr(serving, "time", set_clock)
    asyncio.run(planner.catch_up())
    assert planner.assembler.traces == 1, "its other spans may be on their way"
    set_clock.monotonic = lambda: time.monotonic() + AFTER_S
    asyncio.run(planner.catch_up())
    assert planner.assembler.traces == 0
    assert planner.learner.counters.observed == 1


def test_an_order_that_is_given_again_waits_no_longer_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(policy="priced", nodes=2)
    for name in ("entry", "late"):
        bench.deploy(name)
        bench.takes(name, 0.2)
    for _ in range(30):
        bench.learn("entry", "first", "late", every_s=4.0)
    bench.starts("entry")
    (entry,) = bench.log.entries()
    assert entry.start_in_s > 1.0
    gone = next(node for node in bench.nodes if node.name == entry.node)
    gone.connection = None
    monkeypatch.setattr(loops, "time", SimpleNamespace(time=lambda: time.time() - AN_HOUR, monotonic=time.monotonic))
    bench.loop.decide_again(bench.log.lost_node(entry.node, time.time()), entry.node)
    other = next(node for node in bench.nodes if node is not gone)
    assert [item.delay_s <= entry.start_in_s for item in other.ordered] == [True]


def test_nothing_is_left_of_a_removed_tenant_whose_runs_and_spans_still_end(tmp_path: Path) -> None:
    bench = Bench(Budget(), "priced")
    bench.deploy("entry", "a")
    bench.deploy("a")
    bench.starts("entry")
    for number in range(2):
        bench.loop.accounts.setbacks.failed("acme/a:1", f"secret of acme {number}", time.monotonic())
    bench.loop.forget_tenant("acme")
    bench.ends()
    assert bench.loop.promises.total(fid("a")) == 0
    assert bench.loop.accounts.setbacks.resting("acme/a:1", time.monotonic()) == ""
    assert not any(str(one).startswith("acme") for one in bench.loop.learned().arrivals)
    assert not bench.loop.learned().books.predictions

    planner = planner_in(tmp_path)
    planner.table.change("tenant", "acme", TenantRoute("acme", 1, removed=True))
    assert planner.accept_spans(ACME, [span()]) == 0
    assert len(planner.assembler) == 0
    planner.on_outcomes("n1", [DecisionUpdate("none", "ready", 1.0, 0.0)])

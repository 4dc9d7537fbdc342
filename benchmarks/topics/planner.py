"""Topic planner: how long it takes to plan a large path, and to learn one call, in a graph of 100,000 functions."""

import gc
import random
import time
from collections.abc import Callable

from benchmarks.estimates import quantile
from benchmarks.report import Report
from graph.callgraph import CallGraph
from graph.calls import Call, StartKind, Trace
from graph.ids import FunctionId, TenantId, function_id
from graph.planning import plan, revise
from graph.plans import Budget, Held, PrewarmPlan, Prices, Standbys, Trigger
from graph.prediction import predict
from tracing.assembly import records_to_trace
from tracing.records import InvocationRecord, Timings

TENANT = TenantId("bench")
WORKFLOWS, STAGES = 1_060, 100  # some stages are below one that no run reached
RUNS = 300  # of the workflow that is planned; of the others enough to be acted on
SEED = 20261127
TIER = "process/tier1"
NO_BOUND = Budget(instances=10_000, memory_mb=10_000_000)


def run(report: Report, full: bool) -> None:
    rounds = 400 if full else 80
    source = random.Random(SEED)
    report.progress(f"learning {WORKFLOWS * STAGES} functions")
    graph = taught(source)
    functions, records = graph.size()
    size = {"functions": functions, "records": records}
    gc.freeze()  # what a planner has learned is not looked through again and again
    entry, expected = name(0, -1), STAGES
    report.progress("planning")
    for policy, detail, standbys in (
        ("priced", "", None),
        ("priced", "standbys", Standbys(0.005)),
        ("path", "", None),
    ):
        taken, cpu, made = timed(rounds, lambda policy=policy, standbys=standbys: planned(graph, entry, policy, standbys))
        decided = {"policy": policy, "held": detail or "instances", "expected": expected, "decisions": len(made.decisions)}
        metric = "planner.plan100_ms" if policy == "priced" and not detail else "planner.plan_ms"
        report.emit(metric, quantile([seconds * 1e3 for seconds in taken], 0.5), **decided, **size)
        report.emit("planner.plan_cpu_ms", quantile([seconds * 1e3 for seconds in cpu], 0.5), **decided)
    taken, cpu, _ = timed(rounds, revision(graph, entry))
    decided = {"policy": "priced", "held": "revision", "expected": expected - 5}
    report.emit("planner.plan_ms", quantile([seconds * 1e3 for seconds in taken], 0.5), **decided, **size)
    report.emit("planner.plan_cpu_ms", quantile([seconds * 1e3 for seconds in cpu], 0.5), **decided)
    report.progress("observing")
    observe(report, graph, source, rounds * 10, size)


def name(workflow: int, stage: int) -> FunctionId:
    return function_id(TENANT, f"w{workflow}" if stage < 0 else f"w{workflow}-{stage}")


def taught(source: random.Random) -> CallGraph:
    """1,060 workflows of 100 stages each, called one after the other by stages at random above them, nine in ten of a run."""
    graph = CallGraph()
    for workflow in range(WORKFLOWS):
        above = [source.randrange(-1, stage) if stage else -1 for stage in range(STAGES)]
        for number in range(RUNS if workflow == 0 else 3):
            graph.observe(trace(source, workflow, above, f"{workflow:016x}{number:016x}"), float(number))
    for stage in range(STAGES):
        for _ in range(64):
            graph.set_start_time(name(0, stage), source.lognormvariate(-3.5, 0.3), TIER)
        graph.set_start_time(name(0, stage), 0.003, "process/standby")
    return graph


def trace(source: random.Random, workflow: int, above: list[int], trace_id: str) -> Trace:
    at, calls, placed = 0.0, list[Call](), {-1: -1}
    for stage in range(STAGES):
        at += source.lognormvariate(-3.0, 0.5)
        if above[stage] in placed and source.random() < 0.9:
            placed[stage] = len(calls)
            caller = name(workflow, above[stage])
            calls.append(Call(caller, name(workflow, stage), placed[above[stage]], at, 0.02))
    return Trace(TENANT, trace_id, name(workflow, -1), at + 0.1, tuple(calls))


def planned(graph: CallGraph, entry: FunctionId, policy: str, standbys: Standbys | None) -> PrewarmPlan:
    tiers = {name(0, stage): TIER for stage in range(STAGES)}
    expected = predict(graph, entry, tiers=tiers)
    return plan(
        expected,
        Prices(),
        NO_BOUND,
        {},
        0.0,
        tenant=TENANT,
        entry=entry,
        trigger=Trigger.INVOCATION,
        policy=policy,
        plan_id="p",
        standbys=standbys,
    )


def revision(graph: CallGraph, entry: FunctionId) -> Callable[[], PrewarmPlan]:
    """What a stage start costs: a prediction from the stages seen, and all open decisions weighed again."""
    first = planned(graph, entry, "priced", None)
    held = [Held(decision, 0.0) for decision in first.decisions[5:]]
    seen = [decision.function for decision in first.decisions[:5]]
    at = [0.05 * number for number in range(5)]

    def again() -> PrewarmPlan:
        expected = predict(graph, entry, seen, seen_at_s=at)
        return revise(
            held,
            expected,
            Prices(),
            NO_BOUND,
            {},
            0.2,
            tenant=TENANT,
            entry=entry,
            trigger=Trigger.INVOCATION,
            policy="priced",
            plan_id="q",
            elapsed_s=0.2,
            seen=seen,
        ).plan

    return again


def timed(rounds: int, work: Callable[[], PrewarmPlan]) -> tuple[list[float], list[float], PrewarmPlan]:
    """Seconds and CPU seconds of each round, and what the last one came to."""
    taken, cpu, made = list[float](), list[float](), work()
    for _ in range(rounds):
        began, used = time.perf_counter(), time.thread_time()
        made = work()
        taken.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - used)
    return taken, cpu, made


def observe(report: Report, graph: CallGraph, source: random.Random, runs: int, size: dict[str, int]) -> None:
    """Records of runs of ten calls, three deep, of all workflows in turn, made into traces and learned."""
    parents = [-1, -1, 0, 0, 1, 1, 2, 2, 3, 4]
    per_call, assembled = list[float](), list[float]()
    for number in range(runs):
        workflow = source.randrange(WORKFLOWS)
        records = [record(number, -1, name(workflow, -1), "", 0.0)]
        for index, parent in enumerate(parents):
            records.append(record(number, index, name(workflow, index * 7), ident(number, parent), 0.01 * (index + 1)))
        began = time.perf_counter()
        made = records_to_trace(records)
        between = time.perf_counter()
        graph.observe(made, float(number))
        ended = time.perf_counter()
        per_call.append((ended - began) * 1e6 / len(parents))
        assembled.append((between - began) * 1e6 / len(parents))
    report.emit("planner.observe_us", quantile(per_call, 0.5), calls=len(parents), **size)
    report.emit("planner.assemble_us", quantile(assembled, 0.5), calls=len(parents), **size)


def ident(number: int, index: int) -> str:
    return f"{number * 16 + index + 2:016x}"


def record(number: int, index: int, function: FunctionId, parent: str, at: float) -> InvocationRecord:
    return InvocationRecord(
        tenant=TENANT,
        trace_id=f"{number:032x}",
        invocation_id=ident(number, index),
        parent_id=parent,
        function=function,
        version=1,
        sent_at=1_700_000_000.0 + at,
        ended_at=1_700_000_000.3 + at,
        start=StartKind.WARM,
        status="ok",
        timings=Timings(run=5.0),
    )

"""What decisions came to, and how much functions did lately."""

from graph.calls import StartKind
from graph.ids import FunctionId, TenantId
from graph.plans import EdgeSource, Evidence, PrewarmDecision, PrewarmPlan, Trigger
from orchestrator.planner.activity import BUCKET_S, Activity
from orchestrator.planner.answers import decision_json
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.totals import totals
from tracing.records import InvocationRecord, Timings
from workers.rpc.messages import DecisionUpdate


def decided(log: DecisionLog, ident: str, function: str = "acme/pay", tenant: str = "acme", at: float = 100.0) -> None:
    evidence = Evidence(EdgeSource.LEARNED, 1.0, 1.0, 5)
    decision = PrewarmDecision(ident, FunctionId(function), 1, 128, 0.0, 60.0, "why", evidence)
    plan = PrewarmPlan("p", TenantId(tenant), FunctionId(f"{tenant}/entry"), Trigger.INVOCATION, "path", at, "t1")
    log.add(plan, decision, f"{function}:1", "node")


def ended() -> DecisionLog:
    log = DecisionLog()
    for ident in ("hit", "late", "wasted", "cancelled", "open"):
        decided(log, ident)
    for update in (
        DecisionUpdate("hit", "ready", 101.0, start_s=0.5), DecisionUpdate("hit", "hit", 105.0, start_s=5.0),
        DecisionUpdate("late", "late", 100.2, start_s=0.2),
        DecisionUpdate("wasted", "ready", 101.0, start_s=0.9), DecisionUpdate("wasted", "wasted", 161.0),
        DecisionUpdate("cancelled", "cancelled", 100.1),
    ):  # fmt: skip
        log.update(update)
    return log


def test_totals_follow_their_definition() -> None:
    found = totals(ended().entries(), "acme")
    assert found["outcomes"] == {"pending": 1, "ready": 0, "hit": 1, "late": 1, "wasted": 1, "cancelled": 1}
    assert (found["decisions"], found["since"]) == (5, 100.0)
    assert found["hit_ratio"] == 1 / 3
    assert found["saved_s"] == 0.7
    assert found["wasted_instance_s"] == 60.0


def test_totals_are_of_one_tenant_and_one_function() -> None:
    log = ended()
    decided(log, "theirs", "rival/pay", "rival")
    decided(log, "other", "acme/stock")
    assert totals(log.entries(), "acme")["decisions"] == 6
    assert totals(log.entries(), "acme", "stock")["decisions"] == 1
    nothing = totals(log.entries(), "nobody")
    assert (nothing["decisions"], nothing["since"], nothing["hit_ratio"], nothing["saved_s"]) == (0, None, None, 0.0)


def test_a_decision_says_what_it_saved() -> None:
    saved = {one.decision_id: decision_json(one)["saved_ms"] for one in ended().entries()}
    assert saved == {"hit": 500.0, "late": 200.0, "wasted": 0.0, "cancelled": 0.0, "open": 0.0}


def test_who_is_up_to_date_is_told_nothing() -> None:
    log = ended()
    assert log.read("acme", after=log.revision) == []
    assert [one.decision_id for one in log.read("acme", after=log.revision - 1)] == ["cancelled"]


def record(function: str, at: float, status: str = "ok", error: str = "") -> InvocationRecord:
    return InvocationRecord("acme", "t1", "i1", "", function, 1, at - 1, at, StartKind.WARM, status, Timings(), error_type=error)


def test_activity_counts_the_last_minutes_by_function_and_status() -> None:
    activity = Activity()
    now = 1_000_000.0
    activity.add(
        [
            record("acme/pay", now - 20 * BUCKET_S, "error", "Old"), record("acme/pay", now - BUCKET_S), record("acme/pay", now),
            record("acme/pay", now, "error", "ValueError"), record("acme/stock", now), record("rival/pay", now),
        ]
    )  # fmt: skip
    pay, stock = activity.of("acme", now)["functions"]
    assert (pay["name"], pay["invocations"], pay["errors"], pay["by_status"]) == ("pay", 3, 1, {"ok": 2, "error": 1})
    assert pay["last_error"] == {"status": "error", "type": "ValueError", "at": now, "trace_id": "t1"}
    assert (stock["name"], stock["errors"], stock["last_error"]) == ("stock", 0, None)
    assert activity.of("acme", now + 16 * BUCKET_S)["functions"] == []


def test_a_record_that_comes_late_is_counted() -> None:
    activity = Activity()
    activity.add([record("acme/pay", 1000 * BUCKET_S), record("acme/pay", 999 * BUCKET_S)])
    assert activity.of("acme", 1000 * BUCKET_S)["functions"][0]["invocations"] == 2

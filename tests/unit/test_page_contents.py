"""What the page says: graph, feed, waterfall, functions and nodes, out of the API's documents."""

from typing import Any

import pytest

from orchestrator.page import cells, feed, figures, overview, picture, reasons, waterfall


def edge(caller: str, callee: str, probability: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"caller": caller, "callee": callee, "probability": probability, "fan_out": 1.0, "weight": 3.0, "traces": 3,
            "source": "learned", "offset_p50_s": 0.012} | more  # fmt: skip


GRAPH = {
    "functions": [{"name": name, "deployed": name != "legacy"} for name in ("checkout", "legacy", "pay", "stock")],
    "edges": [edge("checkout", "pay"), edge("checkout", "stock", 0.25), edge("pay", "legacy", 1.0, source="declared")],
}


def count(function: str, idle: int = 0, busy: int = 0, preparing: int = 0, node: str = "node") -> dict[str, Any]:
    return {"function": function, "version": 1, "node": node, "idle": idle, "busy": busy, "preparing": preparing}


# -- the graph


def test_a_function_is_warm_preparing_cold_not_deployed_or_unknown() -> None:
    graph = picture.shown(GRAPH)
    now = picture.states(graph, [count("checkout", busy=1, preparing=1), count("pay", preparing=1), count("pay", node="b")])
    assert now == {"checkout": "warm", "pay": "preparing", "stock": "cold", "legacy": "not deployed"}
    assert set(picture.states(graph, None).values()) == {"unknown"}
    assert len({cells.SIGNS[state] for state in ("warm", "preparing", "cold", "not deployed", "unknown")}) == 5


def test_the_drawing_holds_every_function_and_call() -> None:
    graph = picture.shown(GRAPH)
    drawn = picture.drawing(graph, picture.states(graph, []))
    names = [node[0] for node in drawn["nodes"]]
    assert sorted(names) == ["checkout", "legacy", "pay", "stock"]
    assert {(names[one], names[other], probability, declared) for one, other, probability, declared in drawn["edges"]} == {
        ("checkout", "pay", 1.0, False), ("checkout", "stock", 0.25, False), ("pay", "legacy", 1.0, True),
    }  # fmt: skip


def test_the_filter_keeps_what_matches_and_its_neighbours() -> None:
    graph = picture.shown(GRAPH, "PAY")
    assert set(graph.functions) == {"checkout", "pay", "legacy"}
    assert graph.matches == {"pay"}
    assert [one["callee"] for one in graph.edges] == ["pay", "legacy"]
    assert picture.shown(GRAPH, "nobody").functions == ()


def test_more_than_can_be_drawn_is_counted_and_the_likeliest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "EDGES_DRAWN", 2)
    graph = picture.shown(GRAPH)
    assert {one["callee"] for one in graph.edges} == {"pay", "legacy"}
    assert graph.left_out == (0, 1)
    monkeypatch.setattr(picture, "FUNCTIONS_DRAWN", 2)
    graph = picture.shown(GRAPH)
    assert (len(graph.functions), graph.left_out) == (2, (2, 3))


def test_the_table_says_what_the_drawing_shows() -> None:
    graph = picture.shown(GRAPH)
    rows = picture.rows(graph, picture.states(graph, []), "pay", 100)
    assert rows[0]["key"] == "checkout"
    said = {row["key"]: row["cells"][2:] for row in rows}
    assert said["checkout"] == ["pay 100 %, stock 25 %", ""]
    assert said["legacy"] == ["", "pay"]
    assert [row["key"] for row in rows if row["chosen"]] == ["pay"]
    assert len(picture.rows(graph, picture.states(graph, []), "", 2)) == 2


def test_the_edges_of_one_function_have_its_own_calls_first() -> None:
    rows = picture.edge_rows(GRAPH, "pay")
    assert [row["cells"][0]["text"] for row in rows] == ["calls legacy", "called by checkout"]
    assert rows[1]["cells"][1:] == ["100 %", "1.0", "3", "learned", "12.0 ms"]


# -- decisions


def decision(number: int, outcome: str = "hit", function: str = "pay", **more: Any) -> dict[str, Any]:
    return {
        "decision_id": f"d{number}", "revision": number, "function": function, "ordinal": 1, "entry": "checkout",
        "trigger": "invocation", "trace_id": "t1", "reason": "always called", "detail": "", "outcome": outcome,
        "evidence": {"source": "learned", "reach": 0.954, "concurrent": 1.0, "samples": 12, "lead_ms": 40.0, "start_ms": 150.0,
                     "price": 0.0, "trace_ids": [], "lead_quantiles_ms": [], "wait_cost": 0.0, "idle_cost": 0.0, "idle_ms": 0.0,
                     "kappa": 0.0, "alternatives": []},
        "level": "ready", "covers": [], "start_in_ms": 0.0, "expires_s": 60.0, "idle_ms": 0.0, "source": "", "became": "",
        "version": 1, "node": "n",
        "created_at": 1000.0 + number, "ready_at": 1000.2 + number, "ended_at": None, "start_ms": 150.0, "saved_ms": 150.0,
    } | more  # fmt: skip


def test_the_feed_keeps_the_newest_state_of_each_decision_and_filters() -> None:
    kept = feed.Feed()
    kept.take([decision(1, "pending"), decision(2, "late", "stock")])
    kept.take([decision(1, "hit")])
    assert [(one["decision_id"], one["outcome"]) for one in kept.newest()] == [("d2", "late"), ("d1", "hit")]
    assert [one["decision_id"] for one in kept.newest("PA")] == ["d1"]
    assert [one["decision_id"] for one in kept.newest(outcome="late")] == ["d2"]
    assert kept.newest("pay", "late") == []


def test_the_feed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "KEPT", 3)
    kept = feed.Feed()
    kept.take(decision(number) for number in range(10))
    assert [one["decision_id"] for one in kept.newest()] == ["d9", "d8", "d7"]


def test_a_decision_says_reason_evidence_and_outcome() -> None:
    (row,) = feed.rows([decision(1, "cancelled", detail="the branch was not taken")])
    _, function, outcome, why, evidence, took, saved = row["cells"]
    assert (function["choose"], outcome["text"]) == ("run t1", "cancelled")
    assert (why["text"], why["sub"]) == ("always called", "the branch was not taken")
    assert evidence == "reach 95 % · learned, 12 traces · needed in 40.0 ms"
    assert (took, saved) == ("150 ms", "150 ms")


def test_what_a_decision_stands_on_is_listed() -> None:
    plain = dict(reasons.facts(decision(1)))
    assert plain["Probability"] == "100 % (learned, 12 traces)"
    assert plain["Ready"] == "after 150 ms, from what was there; idle for 0.0 ms"
    assert "Expected cost" not in plain, "it was not priced"
    evidence = decision(1)["evidence"] | {
        "lead_quantiles_ms": [10.0, 20.0, 30.0, 40.0, 50.0], "wait_cost": 0.5, "idle_cost": 0.25, "idle_ms": 12.0, "price": -3.0,
        "kappa": 0.04, "trace_ids": ["a", "b", "c"],
        "alternatives": [{"what": "now", "cost": 1.0, "start_in_ms": 0.0}, {"what": "never", "cost": 3.5, "start_in_ms": None}],
    }  # fmt: skip
    standby = decision(2, level="standby", covers=["left", "right"], evidence=evidence, start_in_ms=64.0, became="left:3")
    facts = dict(reasons.facts(standby))
    assert facts["Needed in (5 / 25 / 50 / 75 / 95 %)"] == "10.0 ms / 20.0 ms / 30.0 ms / 40.0 ms / 50.0 ms"
    assert facts["Expected cost"] == "0.5 of waiting, 0.25 of idling (12.0 ms of idling expected)"
    assert facts["Against never"] == "-3; does not pay under 4 %"
    assert facts["Decided"].endswith("begun 64.0 ms after it was decided")
    assert facts["Ready"].endswith("became left:3")
    assert facts["Seen in"] == "a, b, c"
    assert reasons.heading(standby) == "A standby for left, right"
    assert [row["cells"] for row in reasons.alternative_rows(evidence)] == [["now", "0.0 ms", "1"], ["never", "never", "3.5"]]
    assert feed.rows([standby])[0]["cells"][1]["text"] == "standby for 2"


def test_what_prewarming_comes_to_is_said_by_function_and_in_all() -> None:
    one = {"function": "pay", "runs": 20, "predicted": 0.5, "observed": 0.55, "invocations": 11, "cold": 2, "waited_s": 0.5,
           "idle_s": 1.5, "wait_cost": 9.5, "idle_cost": 0.1875, "resting": "", "changing": True,
           "keep_s": 12.0, "keep_why": "90% of next calls (20 seen) come within 10 minutes"}  # fmt: skip
    rests = one | {"function": "broken", "predicted": None, "observed": None, "resting": "its init failed", "changing": False}
    told = {"functions": [one, rests], "error": 0.02,
            "spending": {"left_s": 41.5, "idle_s_per_busy_s": 1.0, "dearer": 4.0}}  # fmt: skip
    assert [(name, figure) for name, figure, _ in reasons.tiles(told)] == [
        ("Calibration error", "2 %"), ("Cost of waiting", "19"), ("Cost of idling", "0.375"), ("Idle budget", "42 s"),
    ]  # fmt: skip
    assert "4 times as dear" in reasons.tiles(told)[3][2]
    assert reasons.tiles(told | {"error": None})[0][1] == "no figure yet"
    pay, broken = (row["cells"] for row in reasons.function_rows([one, rests]))
    kept = "kept idle 12 s: 90% of next calls (20 seen) come within 10 minutes"
    assert pay[0] == {"text": "pay", "sub": f"called much more or less than before; {kept}"}
    assert (pay[1], pay[2], broken[1]) == ("50 %", "55 %", "")
    assert broken[0]["sub"] == f"its init failed; {kept}"
    assert (
        reasons.function_rows([one | {"keep_s": None, "keep_why": ""}])[0]["cells"][0]["sub"]
        == "called much more or less than before"
    )


def test_totals_as_tiles() -> None:
    outcomes = {"hit": 9, "late": 1, "wasted": 0, "cancelled": 2, "pending": 0, "ready": 0}
    totals = {"decisions": 12, "outcomes": outcomes, "hit_ratio": 0.9, "saved_s": 12.34, "wasted_instance_s": 0.0}
    assert [(name, figure) for name, figure, _ in feed.tiles(totals)] == [
        ("Hit ratio", "90 %"), ("Time saved", "12 s"), ("Wasted", "0.0 s"), ("Decisions", "12"),
    ]  # fmt: skip
    assert feed.tiles(totals | {"hit_ratio": None})[0][1] == "no figure yet"


# -- a run


def invocation(name: str, at: float, took: float, start: str = "warm", *children: Any, **steps: float) -> dict[str, Any]:
    timings = dict.fromkeys(waterfall.STEPS, 0.0) | steps
    return {"invocation_id": name, "function": name, "version": 1, "start": start, "status": "ok", "error_type": "", "node": "n",
            "offset_ms": at, "duration_ms": took, "wait_ms": 0.0, "timings_ms": timings, "decision_id": f"d-{name}",
            "children": list(children)}  # fmt: skip


def run_of(root: dict[str, Any], *decisions: dict[str, Any]) -> dict[str, Any]:
    return {"trace_id": "t1", "entry": root["function"], "started_at": 1000.0, "duration_ms": root["duration_ms"],
            "status": "ok", "invocations": 2, "starts": {}, "root": root, "decisions": list(decisions)}  # fmt: skip


def test_a_cold_start_shows_its_steps_where_they_happened() -> None:
    child = invocation("pay", 50, 40, "prewarmed", run=40)
    root = invocation("checkout", 0, 100, "cold", child, queue=2, clone=8, code=5, init=20, run=65)
    prepared = decision(1) | {"decision_id": "d-pay", "created_at": 1000.0, "ready_at": 1000.03, "start_ms": 30.0}
    entry, paid = waterfall.rows(run_of(root, prepared))
    steps = {piece["tone"]: (piece["left"], piece["width"]) for piece in entry["cells"][3]["track"]}
    assert steps == {"whole": (0, 100), "queue": (0, 2), "clone": (2, 8), "code": (10, 5), "init": (15, 20), "run": (35, 65)}
    assert entry["cells"][3]["text"] == "at 0.0 ms · queue 2.0 ms · clone 8.0 ms · code 5.0 ms · init 20.0 ms · run 65.0 ms"
    assert (entry["cells"][0]["depth"], paid["cells"][0]["depth"]) == (0, 1)
    ahead = {piece["tone"]: (piece["left"], piece["width"]) for piece in paid["cells"][3]["track"]}
    assert (ahead["ahead"], ahead["run"]) == ((0, 30), (50, 40))
    assert paid["cells"][3]["text"].endswith("ready since 30.0 ms, prepared in 30.0 ms")


def test_no_piece_leaves_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    late = invocation("pay", 90, 500, "warm", run=900)
    rows = waterfall.rows(run_of(invocation("checkout", 0, 100, "warm", late)))
    assert all(
        piece["left"] >= 0 and piece["left"] + piece["width"] <= 100.01 for row in rows for piece in row["cells"][3]["track"]
    )
    monkeypatch.setattr(waterfall, "INVOCATIONS", 1)
    assert len(waterfall.rows(run_of(invocation("checkout", 0, 100, "warm", late)))) == 1


def test_runs_are_listed_newest_first() -> None:
    runs = [{"trace_id": f"t{one}", "entry": "checkout", "started_at": 1.0, "duration_ms": 12_345.0, "invocations": 7,
             "starts": {"warm": 6, "cold": 1}, "status": "error"} for one in (1, 2)]  # fmt: skip
    rows = waterfall.list_rows(runs, "t1")
    assert [(row["key"], row["chosen"]) for row in rows] == [("t2", False), ("t1", True)]
    assert rows[0]["cells"][2:5] == ["12.3 s", "7", "1 cold, 6 warm"]


# -- functions and nodes

STATUS = {
    "version": "1", "redis": "ok", "events": {"open": 2, "parked": 1},
    "planner": {"nodes": [], "learned": {"observed": 3}},
    "node": {"name": "host", "isolation": {"driver": "process", "tier": "root", "limits": {}, "missing": ["no cgroups"]},
             "instances": 4, "standbys": 2, "memory_mb": {"total": 4096, "promised": 1024}, "open_decisions": 0,
             "code": {"bytes": 300 << 20, "requests": {"tier1": 98, "tier2": 1, "origin": 1}, "ms": {}, "evictions": 1},
             "templates": {"held": 3, "refused": 1, "memory_mb": 120},
             "tunnels": {"backend": "portable", "reason": "kernel: it needs root", "ready": 2, "not-ready": 1, "attached": 5}},
    "node-2": "away",
    "zone_caches": [{"name": "z1", "zone": "west", "state": "up"}, {"name": "z2", "zone": "east", "state": "silent"}],
}  # fmt: skip


def test_nodes_say_what_they_hold_and_which_isolation_is_not_in_force() -> None:
    here, away = overview.node_rows(STATUS)
    assert [cell["text"] if isinstance(cell, dict) else cell for cell in here["cells"]] == [
        "node", "up", "4", "2", "1.0 GB of 4.0 GB", "process: root",
        "98 % at hand", "3 held, 120 MB", "portable: 1 not open, 2 open, 5 instances attached",
    ]  # fmt: skip
    assert here["cells"][7]["sub"] == "1 refused"
    assert here["cells"][8]["sub"] == "kernel: it needs root"
    assert here["cells"][5]["sub"] == "not in force: no cgroups"
    assert here["cells"][6]["sub"] == "1 from the zone, 1 from the origin, 300 MB held, 1 layer evicted"
    assert away["cells"][1]["text"] == "away"


def test_parts_that_are_away_say_what_that_means() -> None:
    rows = {row["key"]: row["cells"] for row in overview.process_rows(STATUS | {"planner": "away", "redis": "away"})}
    assert (rows["planner"][1]["text"], rows["redis"][1]["text"], rows["flow"][1]["text"]) == ("away", "away", "parked")
    assert "cold" in rows["planner"][2]
    assert [rows[f"cache {name}"][2] for name in ("z1", "z2")] == ["code for zone west", "nodes of zone east go to the origin"]
    assert len(overview.node_rows(STATUS | {"planner": "away"})) == 2


def function(name: str, *conditions: tuple[str, str, str], latest: int | None = 1) -> dict[str, Any]:
    found = [{"name": one, "status": status, "reason": reason} for one, status, reason in conditions]
    return {"name": name, "latest": latest, "versions": [{"number": 2, "memory_mb": 256, "conditions": found}]}


def test_functions_say_instances_conditions_and_errors() -> None:
    functions = [
        function("pay", ("code", "true", ""), ("network", "not needed", "")),
        function("stock", ("code", "false", "six==99 does not exist"), latest=None),
    ]
    error = {"status": "error", "type": "ValueError", "at": 5.0, "trace_id": "t9"}
    done = {"pay": {"invocations": 1200, "errors": 3, "last_error": error}}
    held = [count("pay", idle=1, busy=2), count("pay", idle=1, node="b")]
    asked = [{"function": "pay", "node": node, "requests": {"tier1": many}, "ms": {}, "bytes": 1 << 20, "evictions": 0}
             for node, many in (("a", 3), ("b", 0))]  # fmt: skip
    pay, stock = overview.function_rows(functions, held, done, "", 10, asked)
    assert (pay["cells"][7], stock["cells"][7]) == ({"text": "100 % at hand", "sub": "2 MB brought"}, "")
    assert pay["cells"][1]["text"] == "warm"
    assert (pay["cells"][2]["text"], pay["cells"][2]["sub"]) == ("2 idle, 2 busy", "on b, node")
    assert (pay["cells"][3]["text"], pay["cells"][3]["sub"]) == ("hold", "code")
    assert pay["cells"][4:6] == ["1,200", "3"]
    assert pay["cells"][6] == {"text": "error ValueError", "at": 5.0, "choose": "run t9"}
    assert stock["cells"][0]["sub"].startswith("no version serves yet")
    assert (stock["cells"][3]["text"], stock["cells"][3]["sub"]) == ("version 2 failed", "code false: six==99 does not exist")
    assert [row["key"] for row in overview.function_rows(functions, None, {}, "STO", 10)] == ["stock"]
    assert overview.function_rows(functions, None, {}, "", 1)[0]["cells"][1]["text"] == "unknown"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (figures.milliseconds(None), ""), (figures.milliseconds(0.04), "0.0 ms"), (figures.milliseconds(123.4), "123 ms"),
        (figures.seconds(7200), "2.0 h"), (figures.seconds(150), "2.5 min"), (figures.percent(0.004), "< 1 %"),
        (figures.percent(0.999), "> 99 %"), (figures.percent(1), "100 %"), (figures.percent(0), "0 %"),
        (figures.count(1, "function"), "1 function"), (figures.count(2000, "function"), "2,000 functions"),
        (figures.megabytes(512), "512 MB"), (figures.megabytes(2048), "2.0 GB"),
    ],
)  # fmt: skip
def test_figures(made: str, said: str) -> None:
    assert made == said


def test_private_networks_say_who_reaches_them_and_why_others_do_not() -> None:
    tunnels = [
        {"node": "n1", "backend": "kernel", "ready": True, "generation": 2, "reason": "by p1", "attached": 3},
        {"node": "n2", "backend": "none", "ready": False, "generation": 0, "reason": "no user namespaces", "attached": 0},
    ]
    shop = {
        "name": "shop", "cidrs": ["10.0.0.0/16"], "rules": ["tcp:10.0.1.0/24:5432"], "functions": ["order"], "away": ["n3"],
        "proxies": [{"name": "p1", "role": "primary", "address": "p:1"}], "tunnels": tunnels,
    }  # fmt: skip
    reached, lost = overview.vpc_rows([shop, {**shop, "name": "lost", "rules": [], "tunnels": tunnels[1:], "proxies": []}])
    assert len(reached["cells"]) == len(overview.VPC_COLUMNS)
    assert reached["cells"][1]["text"] == "reached"
    assert reached["cells"][4] == {"text": "n1 (kernel, 3 attached)", "sub": "n2: no user namespaces; n3: does not answer"}
    assert lost["cells"][1]["text"] == "not reached"
    assert lost["cells"][2]["sub"] == "all of it may be reached"
    assert lost["cells"][3] == "none has joined"

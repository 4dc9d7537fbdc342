"""The commands that show and teach, against an API that answers as the contract says."""

import json
from pathlib import Path
from typing import Any

import pytest
from doubles.canned_api import Api, described, version

INVOCATION = {
    "invocation_id": "i1",
    "function": "shop",
    "version": 2,
    "start": "cold",
    "status": "ok",
    "error_type": "",
    "node": "n",
    "offset_ms": 0.0,
    "duration_ms": 120.4,
    "wait_ms": 88.0,
    "timings_ms": {"clone": 3.0},
    "decision_id": "",
    "children": [],
}
CHILD = INVOCATION | {"function": "pay", "start": "prewarmed", "wait_ms": 0.0, "status": "error", "error_type": "ValueError"}
RUN = {
    "trace_id": "t1",
    "entry": "shop",
    "started_at": 1.0,
    "duration_ms": 120.4,
    "status": "ok",
    "invocations": 2,
    "starts": {"cold": 1, "prewarmed": 1},
    "link": "",
}
DECISION = {
    "revision": 3,
    "decision_id": "d1",
    "plan_id": "p1",
    "function": "pay",
    "version": 1,
    "ordinal": 1,
    "entry": "shop",
    "node": "n",
    "trigger": "invocation",
    "trace_id": "t1",
    "reason": "reached in [98 %] of runs",
    "evidence": {
        "source": "learned",
        "reach": 0.98,
        "concurrent": 0.97,
        "samples": 41,
        "lead_ms": 120.0,
        "start_ms": 30.0,
        "price": -2.5,
        "trace_ids": ["t7", "t8", "t9"],
        "lead_quantiles_ms": [80.0, 100.0, 120.0, 140.0, 200.0],
        "wait_cost": 0.02,
        "idle_cost": 0.01,
        "idle_ms": 14.0,
        "kappa": 0.0065,
        "alternatives": [
            {"what": "now", "cost": 0.03, "start_in_ms": 0.0},
            {"what": "never", "cost": 2.53, "start_in_ms": None},
        ],
    },
    "memory_mb": 128,
    "level": "ready",
    "covers": [],
    "start_in_ms": 64.0,
    "expires_s": 3.0,
    "created_at": 1.0,
    "outcome": "hit",
    "ready_at": 1.1,
    "ended_at": 1.2,
    "start_ms": 88.2,
    "idle_ms": 20.0,
    "source": "clone",
    "became": "",
    "detail": "",
}


RECKONED = {
    "function": "pay",
    "runs": 20,
    "predicted": 0.5,
    "observed": 0.55,
    "brier": 0.2,
    "invocations": 11,
    "cold": 2,
    "outcomes": {"hit": 8, "late": 1, "wasted": 3, "cancelled": 0},
    "unprepared": 1,
    "waited_s": 0.5,
    "saved_s": 2.0,
    "idle_s": 1.5,
    "wasted_s": 1.0,
    "wait_cost": 9.5,
    "idle_cost": 0.1875,
    "resting": "",
    "keep_s": 12.0,
    "keep_why": "90% of next calls (20 seen) come within 10 minutes",
    "changing": True,
}
CALIBRATION = {
    "policy": "priced",
    "prices": {"idle_gb_s": 1.0, "late_s": 19.0},
    "spending": {"idle_s_per_busy_s": 1.0, "left_s": 41.5, "spent_s": 8.0, "busy_s": 3.0, "dearer": 1.0},
    "error": 0.012,
    "brier": 0.2,
    "bins": [{"predicted": 0.5, "observed": 0.55, "count": 20}],
    "functions": [RECKONED, RECKONED | {"function": "broken", "resting": "its init failed 2 times in a row", "predicted": None}],
}
STATUS = {
    "version": "0.1.0",
    "redis": "ok",
    "events": {"open": 0, "parked": 0},
    "planner": "away",
    "node": {
        "name": "n",
        "isolation": {"driver": "process", "tier": "userns", "limits": {"memory": "rlimit"}, "missing": ["memory limit"]},
        "instances": 2,
        "standbys": 1,
        "memory_mb": {"total": 1000, "promised": 256},
        "open_decisions": 0,
        "templates": {"held": 3, "making": 1, "memory_mb": 120},
    },
    "zone_caches": [{"name": "z1", "zone": "west", "state": "up"}, {"name": "z2", "zone": "east", "state": "silent"}],
}


def test_status_tells_of_zone_caches_and_function_templates(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/status", STATUS)
    code, out, _ = foreglow("status")
    told = " ".join(out.split())
    assert code == 0
    assert "function templates: 3 held in 120 MB, 1 making" in told
    assert "zone cache z1 up, zone west" in told
    assert "zone cache z2 silent: nodes of its zone go to the origin, zone east" in told


def test_a_run_is_a_tree_with_start_kinds_and_times(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/runs/t1", RUN | {"root": INVOCATION | {"children": [CHILD]}, "decisions": [DECISION]})
    code, out, _ = foreglow("runs", "t1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "shop:2  cold  120 ms (waited 88.0, at +0.0)"
    assert lines[1] == "└── pay:2  prewarmed  120 ms (waited 0.0, at +0.0)  error ValueError"
    assert "reached in [98 %] of runs" in out


def test_lists_are_tables_and_json_is_passed_through(api: Api, foreglow: Any) -> None:
    edge = {
        "caller": "shop",
        "callee": "pay",
        "probability": 0.98,
        "fan_out": 1.0,
        "weight": 4,
        "traces": 41,
        "offset_p50_s": 0.0123,
        "source": "learned",
    }
    plan = {
        "plan_id": "p",
        "entry": "shop",
        "trigger": "invocation",
        "policy": "path",
        "created_at": 1.0,
        "decisions": [DECISION | {"start_in_ms": 0.0, "expires_s": 60.0}],
        "ready": ["price"],
        "skipped": [{"function": "gift", "why": "reach under 5 %", "reach": 0.01}],
    }
    log = {
        "invocation_id": "i1",
        "version": "default/pay:3",
        "at": 1.0,
        "cut": False,
        "output": [{"stream": "out", "text": "hello\n"}],
    }
    calls = ({"name": "b", "deployed": False},)
    answers = {
        ("list",): ("/v1/functions", {"functions": [described("a", version(1), calls=calls)]}, "a "),
        ("describe", "a"): ("/v1/functions/a", described("a", version(1), calls=calls), "b (declared, not deployed)"),
        ("graph",): ("/v1/graph?format=json", {"functions": [], "edges": [edge]}, "98 %       1.0       41   learned       12.3"),
        ("plan", "shop"): ("/v1/plans/shop", plan, "left out: gift, reach 1.0 %: reach under 5 %"),
        ("decisions",): ("/v1/decisions?limit=50", {"decisions": [DECISION], "revision": 3}, "reached in [98 %] of runs"),
        ("calibration",): ("/v1/calibration", CALIBRATION, "broken rests: its init failed 2 times in a row"),
        ("prewarm",): ("/v1/prewarm", {"policy": "priced"}, "priced"),
        ("runs",): ("/v1/runs?limit=20", {"runs": [RUN]}, "1 cold, 1 prewarmed"),
        ("logs", "pay"): ("/v1/functions/pay/logs?limit=20", {"logs": [log]}, "version 3\nhello"),
        ("status",): ("/v1/status", STATUS, "not in force: memory limit"),
    }
    held = {
        "function": "a",
        "version": 1,
        "node": "n1",
        "standing": "refused",
        "reason": "threads it started still run: 2 (pool)",
    }
    held |= {"init_ms": 412.0, "memory_mb": 0, "clones": 0}
    api.on("GET", "/v1/instances", {"instances": [], "templates": [held, held | {"function": "z"}], "away": []})
    api.on("GET", "/v1/calibration", CALIBRATION | {"functions": [RECKONED | {"function": "a"}]})
    for arguments, (path, document, shown) in answers.items():
        api.on("GET", path, document)
        code, out, err = foreglow(*arguments)
        assert (code, err) == (0, ""), arguments
        assert shown in out, arguments
        if arguments == ("describe", "a"):
            assert out.count("412 ms") == 1
            assert "threads it started still run" in out
            assert "idle instances are kept 12 s: 90% of next calls (20 seen) come within 10 minutes" in out
        code, out, err = foreglow(*arguments, "--json")
        assert (code, json.loads(out)) == (0, document), arguments


def test_why_tells_all_a_decision_stands_on_by_its_id_or_of_a_function_the_newest(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/decisions?function=d1&limit=1", {"decisions": [], "revision": 3})
    api.on("GET", "/v1/decisions/d1", DECISION)
    api.on("GET", "/v1/decisions?function=pay&limit=1", {"decisions": [DECISION], "revision": 3})
    code, out, err = foreglow("why", "d1")
    assert (code, err) == (0, "")
    for said in (
        "begun 64.0 ms later",
        "probability 97 % (learned, 41 traces)",
        "needed in 80.0 / 100 / 120 / 140 / 200 ms",
        "against never -2.5",
        "ready after 88.2 ms (clone), idle for 20.0 ms",
        "seen in t7, t8, t9",
        "never",
    ):
        assert said in out, said
    assert foreglow("why", "pay")[1] == out
    standby = DECISION | {"level": "standby", "covers": ["left", "right"], "became": "left:1"}
    api.on("GET", "/v1/decisions/d1", standby)
    out = foreglow("why", "d1")[1]
    assert "a standby for left, right" in out
    assert "became left:1" in out


def test_the_policy_is_set_by_one_word(api: Api, foreglow: Any) -> None:
    api.on("PUT", "/v1/prewarm", {"policy": "priced"})
    assert foreglow("prewarm", "priced")[1] == "priced\n"
    assert json.loads(api.asked[-1][2]) == {"policy": "priced"}
    code, _, err = foreglow("prewarm", "cheap")
    assert code == 1
    assert "'cheap' is not one of path, priced, off" in err


def test_graph_as_dot_is_printed_as_it_comes(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/graph?format=dot", b"digraph { a -> b }\n")
    assert foreglow("graph", "--format", "dot")[1] == "digraph { a -> b }\n"
    assert foreglow("graph", "--format", "svg")[2] == "foreglow: --format: 'svg' is not one of table, dot, mermaid\n"


def test_decisions_can_be_followed(api: Api, foreglow: Any) -> None:
    stream = f": hello\n\ndata: {json.dumps(DECISION)}\n\n".encode()
    api.on("GET", "/v1/decisions/stream?function=pay", stream, content_type="text/event-stream")
    code, out, _ = foreglow("decisions", "--follow", "--function", "pay")
    assert code == 0
    assert "pay  hit  reached in [98 %] of runs" in out


SPANS_CSV = (
    "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
    "{trace},01,root,shop-7f8c-x2k4p,/buy,{start},1700000000120000000,120000\n"
)


def test_traces_are_sent_whole_with_the_map(api: Api, foreglow: Any, tmp_path: Path) -> None:
    import gzip

    late = SPANS_CSV.format(trace="ab", start=1_700_000_000_000_000_000)
    early = SPANS_CSV.format(trace="cd", start=1_600_000_000_000_000_000)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(late.encode()))
    (tmp_path / "u.csv").write_text(early)
    (tmp_path / "map.json").write_text('{"old": "new"}')
    api.on("POST", "/v1/traces/import", {"traces": 1, "calls": 4, "spans": 2, "left_out": 3, "reasons": {"orphan": 3}})
    files = (str(tmp_path / "t.csv.gz"), str(tmp_path / "u.csv"))
    code, out, err = foreglow("traces", "import", *files, "--map", str(tmp_path / "map.json"), "--no-decay")
    assert code == 0
    assert out == f"{files[0]}: 1 spans\n{files[1]}: 1 spans\ntaught: 1 traces, 4 calls, 2 spans\nleft out: 3 orphan\n"
    assert err == "", "no progress where nobody sees it"
    (asked,) = api.asked
    sent = json.loads(asked[2])
    assert (sent["format"], sent["map"], sent["decay"]) == ("spans", {"old": "new"}, False)
    assert [json.loads(line)[0] for line in sent["text"].splitlines()] == ["cd", "ab"], "in the order of time, over all files"
    code, out, _ = foreglow("traces", "import", *files, "--json")
    assert (code, json.loads(out)["files"][0]["spans"], json.loads(out)["reasons"]) == (0, 1, {"orphan": 3})


def test_many_spans_are_sent_in_requests_of_whole_traces(
    api: Api, foreglow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.cli import teaching

    monkeypatch.setattr(teaching, "SPANS_AT_ONCE", 4)
    head, line = SPANS_CSV.format(trace="ab", start=1_700_000_000_000_000_000).splitlines()
    lines = [line.replace("ab,01", f"{trace:02x},{span:02x}") for span in range(1, 4) for trace in range(1, 6)]
    (tmp_path / "t.csv").write_text("\n".join([head, *lines]))
    api.on("POST", "/v1/traces/import", {"traces": 1, "calls": 0, "spans": 3, "left_out": 0, "reasons": {}})
    assert foreglow("traces", "import", str(tmp_path / "t.csv"))[0] == 0
    sent = [[json.loads(line)[0] for line in json.loads(asked[2])["text"].splitlines()] for asked in api.asked]
    assert sent == [[f"{trace:02x}"] * 3 for trace in range(1, 6)]


def test_a_file_of_no_known_form_is_named_with_place_and_form(api: Api, foreglow: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for content, says in (
        ("hello", f"{bad}: line 1: none of the known forms (otlp, jaeger, zipkin, xray, csv, spans): it begins with 'hello'"),
        ('{"data":\n[{"traceID": "ab", "spans": 1}]}', f"{bad}: Jaeger JSON: line 2, character "),
        ('[{"traceId": "ab", "id": ]', f"{bad}: Zipkin JSON: line 1, character 26: not JSON: Expecting value"),
        ('{"resourceSpans": [{"scopeSpans": 3}]}', f"{bad}: OTLP JSON: line 1, character "),
    ):
        bad.write_text(content)
        code, out, err = foreglow("traces", "import", str(bad))
        assert (code, out) == (1, "")
        assert err.startswith(f"foreglow: {says}"), err
    assert foreglow("traces", "import", str(bad), "--format", "xml")[2].startswith(
        "foreglow: --format: 'xml' is not one of auto,"
    )
    code, _, err = foreglow("traces", "import", str(tmp_path / "none.json"))
    assert (code, err) == (1, f"foreglow: cannot read {tmp_path / 'none.json'}: No such file or directory\n")
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    assert "gzip: damaged or cut off" in foreglow("traces", "import", str(tmp_path / "cut.gz"))[2]
    assert api.asked == []


def test_names_of_observed_functions_are_shown_and_given(api: Api, foreglow: Any) -> None:
    observed = {"observed": "svc/op", "function": "pay", "deployed": False, "learned": True}
    api.on("GET", "/v1/traces/names?limit=1000", {"names": [observed], "map": {"svc/op": "pay"}})
    api.on("PUT", "/v1/traces/names", {"names": [], "map": {}})
    code, out, _ = foreglow("traces", "names")
    assert code == 0
    assert "svc/op" in out
    assert "not deployed" in out
    assert foreglow("traces", "name", "svc/op", "pay") == (0, "svc/op is pay\n", "")
    assert json.loads(api.asked[-1][2]) == {"map": {"svc/op": "pay"}}
    assert foreglow("traces", "name", "svc/op")[0] == 0
    assert json.loads(api.asked[-1][2]) == {"map": {"svc/op": None}}


def test_what_was_left_out_is_shown_by_reason(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/traces", {"spans": 90, "traces": 7, "early": 1, "waiting_spans": 5, "left_out": {"orphan": 3, "late": 9}})
    code, out, _ = foreglow("traces", "status")
    assert code == 0
    assert "90 spans, 7 traces; 5 spans wait" in out
    assert out.index("late") < out.index("orphan")

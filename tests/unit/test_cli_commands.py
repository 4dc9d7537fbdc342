"""The client commands against an API that answers as the contract says: what they send, print, and say when it goes wrong."""

import io
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main

KEY = "test-key"


class Api:
    """Canned answers by (method, path); what was asked is kept."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str, bytes, str]] = []

    def on(self, method: str, path: str, document: Any = None, status: int = 200, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        named = {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[method, path] = (status, named, body)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    known = Api()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            known.asked.append((self.command, self.path, body, self.headers.get("authorization", "")))
            missing = (404, {"content-type": "application/problem+json"}, b'{"title":"no such page","status":404}')
            status, headers, content = known.answers.get((self.command, self.path), missing)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names the server calls

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "addresses.json").write_text(json.dumps({"functions": address, "control": address, "otlp": address}))
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv("FOREGLOW_HOME", str(tmp_path))
    for name in ("FOREGLOW_STATE", "FOREGLOW_KEY", "FOREGLOW_CONTROL_URL", "FOREGLOW_FUNCTIONS_URL"):
        monkeypatch.delenv(name, raising=False)
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def foreglow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foreglow", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def version(number: int, state: str = "ready", reason: str = "", **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "state": state,
        "created_at": 1.0,
        "handler": "app:handle",
        "runtime": "python3.11",
        "memory_mb": 128,
        "timeout_s": 30.0,
        "concurrency": 1,
        "environment": {},
        "calls": [],
        "package": "sha256:1",
        "conditions": [{"name": "code", "status": "false" if reason else "true", "reason": reason}],
        **more,
    }


def described(name: str, *versions: dict[str, Any], calls: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"name": name, "kind": "event", "latest": 1, "versions": list(versions), "calls": list(calls)}


# -- deploy


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.py").write_text("def handle(event, context):\n    return 1\n")
    (folder / "foreglow.toml").write_text(
        '[functions.a]\nhandler = "app:handle"\ncalls = ["b"]\n[functions.b]\nhandler = "app:handle"\nmemory_mb = 256\n'
    )
    return folder


def test_deploy_uploads_a_shared_package_once_and_waits_until_ready(api: Api, foreglow: Any, project: Path) -> None:
    api.on("POST", "/v1/packages", {"digest": "sha256:1", "files": 1, "bytes": 10, "requirements": False}, 201)
    for name in ("a", "b"):
        api.on("PUT", f"/v1/functions/{name}", described(name, version(1), version(2, "pending")), 202)
        api.on("GET", f"/v1/functions/{name}/versions/2", version(2))
    code, out, err = foreglow("deploy", str(project), "--json")
    assert (code, err) == (0, "")
    assert {name: (one["number"], one["state"]) for name, one in json.loads(out).items()} == {
        "a": (2, "ready"),
        "b": (2, "ready"),
    }
    uploads = [body for method, path, body, _ in api.asked if path == "/v1/packages"]
    assert len(uploads) == 1
    assert zipfile.ZipFile(io.BytesIO(uploads[0])).namelist() == ["app.py"]
    puts = {path: json.loads(body) for method, path, body, _ in api.asked if method == "PUT"}
    assert puts == {
        "/v1/functions/a": {"package": "sha256:1", "handler": "app:handle", "calls": ["b"]},
        "/v1/functions/b": {"package": "sha256:1", "handler": "app:handle", "memory_mb": 256},
    }
    assert {authorization for *_, authorization in api.asked} == {f"Bearer {KEY}"}


def test_a_version_that_fails_shows_its_reason(api: Api, foreglow: Any, project: Path) -> None:
    api.on("POST", "/v1/packages", {"digest": "sha256:1"}, 201)
    api.on("PUT", "/v1/functions/a", described("a", version(1)), 202)
    api.on("PUT", "/v1/functions/b", described("b", version(1, "failed", "requirements.txt: no such package")), 202)
    code, out, err = foreglow("deploy", str(project))
    assert code == 1
    assert "requirements.txt: no such package" in out
    assert err.splitlines()[-1] == "foreglow: 1 of 2 not ready: b: code: requirements.txt: no such package"


def test_a_refused_deploy_names_function_and_field(api: Api, foreglow: Any, project: Path) -> None:
    api.on("POST", "/v1/packages", {"digest": "sha256:1"}, 201)
    problem = {"type": "x", "title": "invalid", "status": 422, "detail": "no node has it", "field": "runtime"}
    api.on("PUT", "/v1/functions/a", problem, 422)
    code, _, err = foreglow("deploy", str(project), "--json")
    assert (code, err) == (1, "foreglow: functions.a: runtime: no node has it\n")


def test_a_mistake_in_the_manifest_sends_nothing(api: Api, foreglow: Any, project: Path) -> None:
    (project / "foreglow.toml").write_text('[functions.a]\nhandlr = "app:handle"\n')
    code, _, err = foreglow("deploy", str(project))
    assert (code, err) == (1, "foreglow: foreglow.toml: functions.a.handlr: unknown key; did you mean handler?\n")
    assert not api.asked


def test_init_makes_a_project_that_deploys(api: Api, foreglow: Any, tmp_path: Path) -> None:
    code, out, _ = foreglow("init", str(tmp_path / "new"))
    assert code == 0
    assert "foreglow deploy" in out
    api.on("POST", "/v1/packages", {"digest": "sha256:1"}, 201)
    for name in ("hello", "greeting"):
        api.on("PUT", f"/v1/functions/{name}", described(name, version(1)), 202)
    assert foreglow("deploy", str(tmp_path / "new"))[0] == 0
    code, _, err = foreglow("init", str(tmp_path / "new"))
    assert code == 1
    assert "is there already; nothing was written" in err


# -- invoke


def test_invoke_prints_the_answer_and_on_request_how_it_started(api: Api, foreglow: Any) -> None:
    api.on(
        "POST",
        "/function/a",
        {"n": 1},
        server_timing="clone;dur=3.10, run;dur=1.5",
        x_foreglow_start="cold",
        x_foreglow_trace="t1",
    )
    code, out, err = foreglow("invoke", "a", "--data", '{"x": 2}', "--show")
    assert (code, json.loads(out)) == (0, {"n": 1})
    assert err == "cold  clone 3.1  run 1.5  (ms)  run t1\n"
    assert api.asked[0][2] == b'{"x": 2}'


def test_a_handlers_exception_is_one_line_and_its_stack(api: Api, foreglow: Any) -> None:
    raised = {"type": "KeyError", "message": "'sku'", "stack": "Traceback ...\n  line 3"}
    api.on("POST", "/function/a", {"title": "the function raised an exception", "status": 502, "error": raised}, 502)
    code, _, err = foreglow("invoke", "a")
    assert code == 1
    assert err == "foreglow: a: the function raised an exception: KeyError: 'sku'\nTraceback ...\n  line 3\n"


def test_invoke_sends_files_and_bytes(api: Api, foreglow: Any, tmp_path: Path) -> None:
    api.on("POST", "/function/a", b"\x00\x01", content_type="application/octet-stream")
    (tmp_path / "blob").write_bytes(b"\xff\x00")
    assert foreglow("invoke", "a", "--file", str(tmp_path / "blob"), "--raw")[0] == 0
    assert api.asked[0][2] == b"\xff\x00"
    code, _, err = foreglow("invoke", "a", "--file", str(tmp_path / "blob"))
    assert code == 1
    assert err.startswith("foreglow: --file: not JSON")
    assert len(api.asked) == 1


# -- seeing

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


# -- what goes wrong


def test_no_platform_is_one_line_with_the_way_out(foreglow: Any, tmp_path: Path) -> None:
    code, out, err = foreglow("list", "--state", str(tmp_path / "nothing"))
    assert (code, out) == (1, "")
    assert err.startswith(f"foreglow: no platform runs on {tmp_path / 'nothing'}: start one with `foreglow up`")


def test_a_dead_platform_is_told_from_a_missing_one(foreglow: Any, tmp_path: Path) -> None:
    (tmp_path / "addresses.json").write_text('{"functions": "http://127.0.0.1:1", "control": "http://127.0.0.1:1"}')
    (tmp_path / "key").write_text("k")
    code, _, err = foreglow("list", "--state", str(tmp_path))
    assert code == 1
    assert err == f"foreglow: nothing answers at http://127.0.0.1:1: is `foreglow up` running on {tmp_path}?\n"


def test_a_wrong_key_says_where_the_key_comes_from(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions", {"title": "not authenticated", "status": 401, "detail": "unknown key"}, 401)
    assert foreglow("list")[2] == "foreglow: unknown key; the key is read from FOREGLOW_KEY or the state folder (--state)\n"


def test_an_answer_that_is_no_problem_document_is_shown_shortened(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions", b"<html>proxy</html>", 503)
    assert foreglow("list")[2] == "foreglow: status 503: <html>proxy</html>\n"


# -- conditions and events


def condition(name: str, status: str, reason: str = "") -> dict[str, Any]:
    return {"name": name, "status": status, "reason": reason, "since": 1.0}


def test_describe_shows_what_the_newest_version_waits_for_in_order(api: Api, foreglow: Any) -> None:
    conditions = [
        condition("capacity", "unknown", "1 of 3 instances [ready]"),
        condition("code", "true"),
        condition("network", "not needed", "it is in no private network"),
        condition("route", "unknown", "waits for the other conditions"),
    ]
    waiting = version(2, "pending", conditions=conditions, initial_instances=3)
    api.on("GET", "/v1/functions/a", described("a", version(1, reason="an old story"), waiting))
    api.on("GET", "/v1/instances", {"instances": [], "templates": [], "away": []})
    code, out, err = foreglow("describe", "a")
    assert (code, err) == (0, "")
    shown = [line.split()[:3] for line in out.splitlines() if " d ago" in line]
    assert shown == [["2", "code", "true"], ["2", "network", "not"], ["2", "capacity", "unknown"], ["2", "route", "unknown"]]
    assert "1 of 3 instances [ready]" in out


def test_the_lock_of_the_newest_version_is_shown_as_it_is(api: Api, foreglow: Any) -> None:
    lock = "six==1.17.0 \\\n    --hash=sha256:4721\n"
    api.on("GET", "/v1/functions/a", described("a", version(1), version(2)))
    api.on("GET", "/v1/functions/a/versions/2/lock", {"lock": lock})
    assert foreglow("describe", "a", "--lock") == (0, lock, "")
    code, out, _ = foreglow("describe", "a", "--lock", "--json")
    assert (code, json.loads(out)) == (0, {"lock": lock})


def test_a_version_without_a_lock_says_so_beside_the_output(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions/a", described("a", version(1)))
    api.on("GET", "/v1/functions/a/versions/1/lock", {"lock": ""})
    code, out, err = foreglow("describe", "a", "--lock")
    assert (code, out) == (0, "")
    assert "version 1 of 'a' has no lock" in err


def test_deploy_ends_when_a_condition_fails_though_the_version_is_pending(api: Api, foreglow: Any, project: Path) -> None:
    given_up = [condition("code", "true"), condition("route", "false", "given up after 10 tries: the queue is away")]
    api.on("POST", "/v1/packages", {"digest": "sha256:1"}, 201)
    api.on("PUT", "/v1/functions/a", described("a", version(1)), 202)
    api.on("PUT", "/v1/functions/b", described("b", version(1, "pending", conditions=given_up)), 202)
    code, _, err = foreglow("deploy", str(project))
    assert code == 1
    assert err.splitlines()[-1] == "foreglow: 1 of 2 not ready: b: route: given up after 10 tries: the queue is away"


def test_deploy_says_which_condition_it_waited_for(
    api: Api, foreglow: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.deploying.READY_TIMEOUT_S", 0.0)
    waiting = [condition("route", "unknown", "later"), condition("capacity", "unknown", "0 of 1 instances ready")]
    api.on("POST", "/v1/packages", {"digest": "sha256:1"}, 201)
    for name in ("a", "b"):
        api.on("PUT", f"/v1/functions/{name}", described(name, version(1, "pending", conditions=waiting)), 202)
    code, _, err = foreglow("deploy", str(project))
    assert code == 1
    assert "a waits for capacity (0 of 1 instances ready); b waits for capacity" in err


EVENT = {
    "id": 7, "kind": "deployed", "subject": "default/a", "module": "function_management", "tries": 10,
    "reason": "the [disk] is full", "created": 1.0, "due": None, "parked": 2.0,
}  # fmt: skip


def test_events_are_a_table_page_by_page(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/events?parked=true&after=0&limit=1000", {"events": [EVENT]})
    api.on("GET", "/v1/events?parked=true&after=7&limit=1000", {"events": [EVENT | {"id": 8, "parked": None, "due": 3.0}]})
    api.on("GET", "/v1/events?parked=true&after=8&limit=1000", {"events": []})
    code, out, err = foreglow("events", "--parked")
    assert (code, err) == (0, "")
    assert "parked" in out
    assert "the [disk] is full" in out
    assert [one["id"] for one in json.loads(foreglow("events", "--parked", "--json")[1])["events"]] == [7, 8]


def test_events_are_retried_by_number_or_all(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/events/7/retry", {"retried": [7]})
    api.on("POST", "/v1/events/retry", {"retried": []})
    assert foreglow("events", "retry", "7")[:2] == (0, "tried again: 7\n")
    assert foreglow("events", "retry", "--all")[:2] == (0, "tried again: none was parked\n")
    for wrong in (("events", "retry"), ("events", "retry", "7", "--all")):
        code, _, err = foreglow(*wrong)
        assert (code, err) == (1, "foreglow: name one event, or --all; `foreglow events --parked` lists them\n")


def test_a_node_is_bound_to_tenants_and_freed_again(api: Api, foreglow: Any) -> None:
    api.on("PUT", "/v1/nodes/n1/tenants", None, 204)
    assert foreglow("nodes", "allow", "n1", "acme", "globex")[1] == "n1 hosts acme, globex\n"
    assert foreglow("nodes", "allow", "n1")[1] == "n1 hosts all tenants\n"
    assert [json.loads(body) for *_, body, _ in api.asked] == [{"tenants": ["acme", "globex"]}, {"tenants": []}]
    one = {"name": "n1", "role": "node", "address": "10.0.0.2:8703", "zone": "default", "state": "up", "epoch": 1}
    api.on("GET", "/v1/nodes", {"nodes": [{**one, "joined": 1.0, "last_seen": None, "tenants": ["acme"]}]})
    assert "acme" in foreglow("nodes")[1]


# -- private networks


def network(name: str = "shop", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "number": 7,
        "cidrs": ["10.0.0.0/16"],
        "rules": ["tcp:10.0.1.0/24:5432"],
        "address": "10.0.0.10",
        "resolver": "",
        "generation": 3,
        "created": 1.0,
        "proxies": [{"name": "shop-1", "address": "p:8706", "role": "primary"}],
        "functions": ["order"],
        "tunnels": [
            {"node": "n1", "backend": "kernel", "ready": True, "generation": 3, "reason": "by shop-1", "attached": 4},
            {"node": "n2", "backend": "none", "ready": False, "generation": 0, "reason": "no user namespaces", "attached": 0},
        ],
        "away": ["n3"],
        **more,
    }


def test_a_private_network_is_made_and_what_comes_next_is_said(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/vpcs", network(), 201)
    api.on("GET", "/v1/tenant", {"name": "acme"})
    rule = "tcp:10.0.1.0/24:5432"
    code, out, _ = foreglow("vpc", "create", "shop", "--cidr", "10.0.0.0/16", "--rule", rule, "--address", "10.0.0.10")
    assert code == 0
    assert "foreglow node-token --role vpc-proxy --vpc acme/shop" in out
    sent = json.loads(api.asked[0][2])
    assert sent == {"name": "shop", "cidrs": ["10.0.0.0/16"], "rules": [rule], "address": "10.0.0.10", "resolver": ""}


def test_what_is_not_given_stays_when_a_private_network_is_changed(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/vpcs/shop", network())
    api.on("PUT", "/v1/vpcs/shop", network(rules=["tcp:10.0.1.5/32:1"]))
    code, out, _ = foreglow("vpc", "change", "shop", "--rule", "tcp:10.0.1.5/32:1")
    assert (code, "tcp:10.0.1.5/32:1" in out) == (0, True)
    sent = json.loads(api.asked[1][2])
    assert sent == {"cidrs": ["10.0.0.0/16"], "rules": ["tcp:10.0.1.5/32:1"], "address": "10.0.0.10", "resolver": ""}


def test_a_private_network_is_shown_with_each_nodes_way_there(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/vpcs/shop", network())
    api.on("GET", "/v1/vpcs", {"vpcs": [network(proxies=[])]})
    code, out, _ = foreglow("vpc", "describe", "shop")
    assert code == 0
    for said in ("number 7", "10.0.0.10", "shop-1", "primary", "kernel", "no user namespaces", "did not answer: n3", "order"):
        assert said in out, said
    code, out, _ = foreglow("vpc", "list")
    assert (code, "none" in out, "10.0.0.0/16" in out) == (0, True, True)


def test_a_refusal_of_a_private_network_names_its_field(api: Api, foreglow: Any) -> None:
    problem = {"title": "Bad Request", "status": 400, "detail": "0.0.0.0/0 is everything there is", "field": "cidrs"}
    api.on("POST", "/v1/vpcs", problem, 400)
    code, _, err = foreglow("vpc", "create", "all", "--cidr", "0.0.0.0/0")
    assert (code, "everything there is" in err) == (1, True)
    api.on("DELETE", "/v1/vpcs/shop", {"title": "Conflict", "status": 409, "detail": "used by 1 functions (order)"}, 409)
    code, _, err = foreglow("vpc", "remove", "shop")
    assert (code, "order" in err) == (1, True)


def test_a_function_says_in_which_network_it_is(api: Api, foreglow: Any) -> None:
    inside = version(
        2,
        vpc="shop",
        egress="internet",
        conditions=[
            {"name": "network", "status": "true", "reason": "acme/shop is reached by 1 of 1 nodes: n1 (kernel)", "since": 1.0}
        ],
    )
    api.on("GET", "/v1/functions/a", described("a", inside))
    api.on("GET", "/v1/instances", {"instances": [], "templates": [], "away": []})
    code, out, _ = foreglow("describe", "a")
    assert (code, "in private network shop, reaches the internet" in out, "n1 (kernel)" in out) == (0, True, True)


def test_a_proxys_token_says_for_which_network(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/join-tokens", {"token": "fgj_x.y", "role": "vpc-proxy", "expires": 1.0}, 201)
    code, out, _ = foreglow("node-token", "--role", "vpc-proxy", "--vpc", "acme/shop")
    assert (code, out.strip()) == (0, "fgj_x.y")
    assert json.loads(api.asked[0][2])["vpc"] == "acme/shop"


def test_a_proxy_that_is_nowhere_says_what_to_do(foreglow: Any, tmp_path: Path) -> None:
    code, _, err = foreglow("vpc", "proxy", "--vpc", "acme/shop", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "new"))
    assert (code, "foreglow join" in err) == (1, True)

"""The commands that deploy and invoke, against an API that answers as the contract says."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from doubles.canned_api import KEY, Api, condition, described, version


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

"""A platform as its operator sees it: its metrics are the documented ones, and no secret is anywhere one may look."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles.ports import held_port
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import valkey
from orchestrator.ops.catalogue import FAMILIES, PROCESSES
from orchestrator.settings import Settings, rpc_secret

pytestmark = pytest.mark.system

WAIT_S = 60.0
FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PASSWORD, VALUE, WRONG_KEY = "hunter2-of-redis", "swordfish-of-the-function", "fg_" + "wrong-key_" * 4

CODE = """
import os
def front(event, context):
    return context.invoke("back", event)
def back(event, context):
    return len(os.environ["SECRET_VALUE"])
def fails(event, context):
    raise ValueError("no")
"""
BROKEN = "raise ImportError('not today')\n"
MANIFEST = f"""
[functions.front]
handler = "shop:front"
calls = ["back"]
[functions.back]
handler = "shop:back"
environment = {{SECRET_VALUE = "{VALUE}"}}
[functions.fails]
handler = "shop:fails"
environment = {{SECRET_VALUE = "{VALUE}"}}
[functions.broken]
handler = "broken:handle"
environment = {{SECRET_VALUE = "{VALUE}"}}
"""


class Platform:
    """`foreglow up` over a Redis of its own that asks for a password; what it says is kept."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(state=folder / "state")
        self.folder, self.held = folder, contextlib.ExitStack()
        port = self.held.enter_context(held_port())
        server = valkey.command(folder / "r.sock", folder / "valkey")
        words = [*server, "--port", str(port), "--bind", "127.0.0.1"]
        (folder / "r.conf").write_text(f"requirepass {PASSWORD}\n")
        self.redis = subprocess.Popen([words[0], str(folder / "r.conf"), *words[1:]], stdout=subprocess.DEVNULL)
        self.environment = os.environ | {
            "FOREGLOW_STATE": str(self.settings.state),
            "FOREGLOW_REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{port}/0",
            "FOREGLOW_LOG_LEVEL": "debug",
        }
        self.said = (folder / "said").open("w")
        ports = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
        self.up = subprocess.Popen([*FOREGLOW, "up", *ports], env=self.environment, stdout=self.said, stderr=self.said)
        eventually(self.settings.addresses_file.exists)
        self.addresses = json.loads(self.settings.addresses_file.read_text())
        self.key = self.settings.admin_key_file.read_text().strip()
        self.http = httpx.Client(headers={"Authorization": f"Bearer {self.key}"}, timeout=WAIT_S)

    def foreglow(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*FOREGLOW, *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=WAIT_S, check=False)

    def control(self, path: str) -> httpx.Response:
        return self.http.get(self.addresses["control"] + path)

    def invoke(self, name: str) -> httpx.Response:
        return self.http.post(f"{self.addresses['functions']}/function/{name}", json={})

    def below(self) -> set[int]:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found, newest = set(), {self.up.pid}
        while newest:
            found |= newest
            newest = {pid for pid, parent in parents.items() if parent in newest} - found
        return found

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.http.close()
        for one in (self.up, self.redis):
            one.terminate()
            one.wait(WAIT_S)
        self.held.close()
        self.said.close()


def eventually(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := true()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    project = folder / "project"
    project.mkdir()
    for name, text in (("foreglow.toml", MANIFEST), ("shop.py", CODE), ("broken.py", BROKEN)):
        (project / name).write_text(text)
    made = Platform(folder)
    try:
        deployed = made.foreglow("deploy", str(project))
        assert deployed.returncode == 0, deployed.stderr
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


def samples(page: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for part in text_string_to_metric_families(page)
        for sample in part.samples
    }


def told(platform: Platform) -> dict[tuple[str, ...], float]:
    """What all processes count; a busy machine may keep one from answering in time."""

    def complete() -> dict[tuple[str, ...], float]:
        found = samples(platform.control("/metrics").text)
        return found if all(found["foreglow_up", f"process={name}"] for name in PROCESSES) else {}

    return dict(eventually(complete))


def test_the_metrics_of_a_running_platform_are_the_documented_ones(platform: Platform) -> None:
    assert platform.invoke("front").json() == len(VALUE)
    assert platform.invoke("front").status_code == 200
    told(platform)
    page = platform.control("/metrics").text
    shown: dict[str, set[str]] = {}
    for part in text_string_to_metric_families(page):
        if part.name.startswith("foreglow_"):
            assert part.type == FAMILIES[part.name].kind, part.name
            for sample in part.samples:
                shown.setdefault(part.name, set()).add(sample.labels["process"])
                extra = set(sample.labels) - {"process", "le"} - set(FAMILIES[part.name].labels)
                assert not extra, sample
    for name, processes in shown.items():
        allowed = set(FAMILIES[name].processes) if name != "foreglow_up" else set(PROCESSES)
        assert processes <= allowed, name
    for name in PROCESSES:  # a family without a sample yet is told all the same
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(platform.settings.ops_socket(name))), timeout=WAIT_S) as client:
            own = client.get("http://operations/metrics").text
        listed = {line.split()[2].removesuffix("_total") for line in own.splitlines() if line.startswith("# TYPE foreglow_")}
        assert listed == {one.name for one in FAMILIES.values() if name in one.processes and one.name != "foreglow_up"}, name


def test_what_happens_is_counted(platform: Platform) -> None:
    assert platform.invoke("front").status_code == 200
    before = told(platform)
    assert platform.invoke("front").status_code == 200
    assert platform.invoke("fails").status_code == 502
    assert httpx.post(f"{platform.addresses['functions']}/function/front", timeout=WAIT_S).status_code == 401

    def grown(*key: str) -> float:
        found = told(platform)
        return found.get(key, 0.0) - before.get(key, 0.0)

    assert grown("foreglow_invocations_total", "process=gateway", "result=ok") == 2
    assert grown("foreglow_invocations_total", "process=gateway", "result=error") == 1
    assert grown("foreglow_refused_total", "process=gateway", "status=401") == 1
    assert grown("foreglow_start_seconds_count", "kind=warm", "process=gateway") >= 1
    now = told(platform)
    started = [value for key, value in now.items() if key[0] == "foreglow_prepare_seconds_count"]
    assert sum(started) >= 3
    assert now["foreglow_route_sequence", "process=gateway"] == now["foreglow_route_sequence_published", "process=flow"]
    assert now["foreglow_connections", "peer=node", "process=gateway"] == 1
    assert now["foreglow_events", "module=metadata_sync", "process=flow", "state=open"] == 0


def test_starts_say_where_code_came_from_and_need_no_origin_when_it_is_here(platform: Platform) -> None:
    def asked(tier: str) -> float:
        return told(platform).get(("foreglow_code_requests_total", "process=node", f"tier={tier}"), 0.0)

    eventually(lambda: told(platform)["foreglow_code_layers", "process=node"] > 0)
    cooled = platform.http.post(platform.addresses["control"] + "/v1/cool", json={})
    assert cooled.status_code == 200, cooled.text
    origin = platform.settings.origin_folder
    away = origin.rename(origin.with_name("away"))
    try:
        before = asked("tier1")
        answer = platform.invoke("front")
        assert answer.status_code == 200, answer.text
        if answer.headers["x-foreglow-start"] in ("cold", "standby"):
            assert "code;desc=tier1;dur=" in answer.headers["server-timing"]
        assert asked("tier1") > before
        assert asked("failed") == 0
    finally:
        away.rename(origin)
    functions = platform.control("/v1/code").json()["functions"]
    (front,) = [one for one in functions if one["function"] == "front"]
    assert front["requests"]["tier1"] >= 1
    assert front["ms"]["tier1"] >= 0


def test_metrics_need_a_key(platform: Platform) -> None:
    assert httpx.get(platform.addresses["control"] + "/metrics", timeout=WAIT_S).status_code == 401


def test_a_failed_start_is_logged_with_its_run_and_without_the_functions_words(platform: Platform) -> None:
    answer = platform.invoke("broken")
    assert answer.status_code == 502
    trace = answer.headers["x-foreglow-trace"]

    def told(name: str) -> list[dict[str, object]]:
        whole = (platform.settings.state / "logs" / f"{name}.log").read_text().rpartition("\n")[0]  # the last may be half written
        return [one for one in map(json.loads, whole.splitlines()) if one.get("trace_id") == trace]

    found = [eventually(lambda name=name: told(name)) for name in ("gateway", "node")]  # type: ignore[misc]
    assert {one["process"] for lines in found for one in lines} == {"gateway", "node"}
    assert {one["invocation_id"] for lines in found for one in lines} == {answer.headers["x-foreglow-invocation"]}
    assert "not today" not in json.dumps(found)


def test_no_secret_is_in_logs_metrics_status_errors_or_command_lines(platform: Platform) -> None:
    key = platform.settings.key_file.read_bytes().strip()
    secrets = {
        "the admin key": platform.key,
        "a wrong key": WRONG_KEY,
        "the cluster key": key.decode(),
        "the rpc secret": rpc_secret(key),
        "the password of redis": PASSWORD,
        "an environment value": VALUE,
    }
    wrong = {"Authorization": f"Bearer {WRONG_KEY}"}
    functions, control, otlp = (platform.addresses[name] for name in ("functions", "control", "otlp"))
    places = {
        "bad key, gateway": httpx.post(f"{functions}/function/front", headers=wrong, timeout=WAIT_S),
        "bad key, control": httpx.get(f"{control}/v1/functions", headers=wrong, timeout=WAIT_S),
        "bad key, otlp": httpx.post(f"{otlp}/v1/traces", headers=wrong, timeout=WAIT_S),
        "bad key, metrics": httpx.get(f"{control}/metrics", headers=wrong, timeout=WAIT_S),
        "bad manifest": platform.http.post(f"{control}/v1/functions", json={"environment": {"A": VALUE}, "name": 7}),
        "failing": platform.invoke("fails"),
        "broken": platform.invoke("broken"),
        "status": platform.control("/v1/status"),
        "metrics": platform.control("/metrics"),
        "describe": platform.control("/v1/functions/back"),
    }
    texts = {name: answer.text for name, answer in places.items()}
    assert places["bad key, gateway"].status_code == 401
    for words in (("status",), ("describe", "back"), ("doctor",), ("list",)):
        done = platform.foreglow(*words)
        texts[f"foreglow {words[0]}"] = done.stdout + done.stderr
    for pid in platform.below():
        with contextlib.suppress(OSError):
            texts[f"command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    elsewhere = platform.environment | {
        "FOREGLOW_STATE": str(platform.folder / "elsewhere"),
        "FOREGLOW_DATABASE_URL": f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/x?connect_timeout=1",
    }
    done = subprocess.run([*FOREGLOW, "control"], env=elsewhere, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode != 0
    texts["control without its database"] = done.stdout + done.stderr
    platform.said.flush()
    texts["what up said"] = (platform.folder / "said").read_text()
    for log in (platform.settings.state / "logs").iterdir():
        texts[f"log {log.name}"] = log.read_text()
    assert sum(map(len, texts.values())) > 10_000
    leaks = [f"{what} in {where}" for where, text in texts.items() for what, secret in secrets.items() if secret in text]
    assert leaks == []


def test_every_log_line_of_ours_is_json_with_its_process(platform: Platform) -> None:
    for log in (platform.settings.state / "logs").glob("*.log"):
        if log.stem == "valkey":
            continue
        for line in log.read_text().splitlines():
            found = json.loads(line)
            assert (found["process"], bool(found["event"]), bool(found["level"])) == (log.stem, True, True), line
            assert re.match(r"\d{4}-\d\d-\d\dT", found["timestamp"])

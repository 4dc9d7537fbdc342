"""Foreglow as a user starts it: `foreglow up` on a folder of its own, driven through its HTTP API."""

import io
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks import processes
from benchmarks.client import Answer, request

FUNCTIONS = Path(__file__).with_name("functions")
READY_TIMEOUT_S = 120.0
DEPLOY_TIMEOUT_S = 180.0  # the first time wheels are fetched
IMAGE = Path(tempfile.gettempdir()) / f"foreglow-bench-image-{os.geteuid()}"  # of guests: benchmarks.topics.microvm makes it
PROCESSES = ("control", "gateway", "planner", "node", "flow")


@dataclass(frozen=True)
class Deployed:
    """What a function is to be: a folder below benchmarks/functions, its handler and settings as PUT takes them."""

    name: str
    folder: str
    handler: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Platform:
    """Started by `with`; ended and its folder removed at the end. `standbys` as in `foreglow up --standbys`; `templates` off:
    no version gets a function template; `environment` beside its own; `driver`: process | microvm, the latter always emulated."""

    def __init__(
        self,
        standbys: int,
        prewarm: str = "off",
        templates: bool = True,
        environment: Mapping[str, str] | None = None,
        driver: str = "process",
    ) -> None:
        templated = {} if templates else {"FOREGLOW_TEMPLATE_INIT_MS": "0"}
        driven = {"FOREGLOW_DRIVER": driver, "FOREGLOW_ACCEL": "tcg", "FOREGLOW_IMAGE": str(IMAGE)}
        self._environment = {"FOREGLOW_LOG_LEVEL": "warning", **driven, **templated, **(environment or {})}
        self._options = ["--standbys", str(standbys), "--prewarm", prewarm]
        self._packages: dict[str, str] = {}
        self.standbys = standbys

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="foreglow-bench-"))
        state = self.state = self._folder / "state"
        log = self._folder / "up.log"
        command: list[str | Path] = [sys.executable, "-P", "-m", "orchestrator.cli.main", "up", "--state", state, *self._options]
        ports = ["--functions-port", "0", "--control-port", "0", "--otlp-port", "0"]
        self.process = processes.start([*command, *ports], log, self._environment)
        try:
            addresses = self._wait_for(state / "addresses.json", log)
            self.key = (state / "key").read_text().strip()
            self.port = int(addresses["functions"].rpartition(":")[2])
            self.otlp_port = int(addresses["otlp"].rpartition(":")[2])
            self._headers = {"Authorization": f"Bearer {self.key}"}
            self.control = httpx.Client(base_url=addresses["control"], headers=self._headers, timeout=60, trust_env=False)
            self.driver, self.tier = self._isolation()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.control.close()
        self._end()

    def _end(self) -> None:
        processes.stop(self.process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for(self, addresses: Path, log: Path) -> dict[str, str]:
        until = time.monotonic() + READY_TIMEOUT_S
        while not addresses.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"foreglow up did not get ready: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        return dict(json.loads(addresses.read_text()))

    def _isolation(self) -> tuple[str, str]:
        """What the node says its driver is, and the isolation it really gives."""
        isolation = self.get("/v1/status")["node"]["isolation"]
        return str(isolation["driver"]), str(isolation["tier"])

    # -- the management API

    def get(self, path: str) -> Any:
        return self._checked(self.control.get(path))

    def post(self, path: str, document: Mapping[str, Any] | None = None) -> Any:
        return self._checked(self.control.post(path, json=document or {}))

    def deploy(self, functions: Iterable[Deployed]) -> None:
        """Uploads what is new and waits until every function's newest version serves."""
        numbers = {}
        for one in functions:
            if one.folder not in self._packages:
                upload = self.control.post(
                    "/v1/packages", content=_zip(FUNCTIONS / one.folder), headers={"Content-Type": "application/zip"}
                )
                self._packages[one.folder] = str(self._checked(upload)["digest"])
            document = {"package": self._packages[one.folder], "handler": one.handler, **one.settings}
            described = self._checked(self.control.put(f"/v1/functions/{one.name}", json=document))
            numbers[one.name] = max(version["number"] for version in described["versions"])
        until = time.monotonic() + DEPLOY_TIMEOUT_S
        for name, number in numbers.items():
            while (described := self.get(f"/v1/functions/{name}"))["latest"] != number:
                newest = next(version for version in described["versions"] if version["number"] == number)
                if newest["state"] == "failed" or time.monotonic() > until:
                    raise RuntimeError(f"{name} version {number} is {newest['state']}: {newest['conditions']}")
                time.sleep(0.02)
        self._wait_for_routes(numbers)

    def _wait_for_routes(self, names: Iterable[str]) -> None:
        """The gateway follows control within moments: until it knows the names it answers 404 to a wrong method, then 405."""
        until = time.monotonic() + 10
        for name in names:
            url = f"http://127.0.0.1:{self.port}/function/{name}"
            while httpx.get(url, headers=self._headers, trust_env=False).status_code == 404:
                if time.monotonic() > until:
                    raise RuntimeError(f"the gateway has no route to {name}")
                time.sleep(0.02)

    def cool(self, name: str = "") -> None:
        """Back to no instance: of this function, or of all."""
        self.post("/v1/cool", {"function": name} if name else {})

    def warm(self, name: str) -> Any:
        return self.post(f"/v1/functions/{name}/warm", {"count": 1})

    def prewarm(self, policy: str) -> None:
        """`off` or `path`, for everything from now on."""
        self._checked(self.control.put("/v1/prewarm", json={"policy": policy}))

    def template_held(self, name: str) -> bool:
        """Whether the function has a function template. Raises RuntimeError when it was refused one."""
        for one in self.get("/v1/instances")["templates"]:
            if one["function"] == name and one["standing"] == "refused":
                raise RuntimeError(f"{name} gets no function template: {one['reason']}")
            if one["function"] == name and one["standing"] == "held":
                return True
        return False

    def standbys_waiting(self) -> int:
        return int(self.get("/v1/status")["node"]["standbys"])

    def run_tree(self, trace_id: str) -> Any:
        """The run as control tells it, once it is there."""
        until = time.monotonic() + 5
        while True:
            answer = self.control.get(f"/v1/runs/{trace_id}")
            if answer.status_code != 404 or time.monotonic() > until:
                return self._checked(answer)
            time.sleep(0.02)

    @staticmethod
    def _checked(answer: httpx.Response) -> Any:
        if answer.is_error:
            raise RuntimeError(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    # -- invocations

    @property
    def authorization(self) -> str:
        return self._headers["Authorization"]

    def invoke(self, name: str, body: bytes = b"{}") -> Answer:
        """On a new connection. Raises NotOk, OSError."""
        return request(self.port, f"/function/{name}", body, self._headers)

    # -- its processes

    def pids(self) -> dict[str, list[int]]:
        """By name (control, gateway, planner, node, flow, and up: the rest), each with all below it."""
        left = processes.descendants(self.process.pid)
        found = {}
        for pid in list(left):
            command = processes.command_line(pid)
            if command and command[-1] in PROCESSES and "orchestrator.cli.main" in command:
                found[command[-1]] = processes.descendants(pid)
                left = [one for one in left if one not in found[command[-1]]]
        return {**found, "up": left}


def _zip(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(folder).as_posix())
    return packed.getvalue()

"""The operations listener: what it answers, who may reach it, what it leaves behind; systemd is told when the process serves."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles.loop import in_loop
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.ops import listener
from orchestrator.ops.health import Check, judge
from orchestrator.ops.listener import Operations, OperationsThread
from orchestrator.settings import Settings


class Numbers(Collector):
    def __init__(self) -> None:
        self.broken = False

    def collect(self) -> Iterable[Metric]:
        if self.broken:
            raise RuntimeError("password=hunter2")
        yield GaugeMetricFamily("answer", "of everything", 42)


class Subject:
    """What the process under the listener says of itself."""

    def __init__(self) -> None:
        self.serving = False
        self.why = ""
        self.checks: list[Check] = []
        self.numbers = Numbers()

    def operations(self, **more: Any) -> Operations:
        return Operations("gateway", lambda: self.serving, lambda: self.checks, self.numbers, alive=lambda: self.why, **more)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    made = Settings(state=folder / "state")
    made.runtime_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield made
    if made.runtime_folder.is_file():
        made.runtime_folder.unlink()
    shutil.rmtree(made.runtime_folder, ignore_errors=True)
    shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def asked(operations: Operations, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    await operations.start(settings)
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(settings.ops_socket("gateway")))
        async with httpx.AsyncClient(transport=transport, base_url="http://operations") as client:
            yield client
    finally:
        await operations.stop()


def test_a_process_is_ready_when_all_it_needs_is_there_and_only_then() -> None:
    lacking = Check("planner", False, "away", needed=False)
    assert judge("gateway", [Check("routes", True, "none"), lacking]).ready
    assert judge("gateway", [Check("routes", True, "none")]).checks[0].reason == ""
    assert not judge("gateway", [Check("routes", False, "none"), lacking]).ready


@in_loop
async def test_it_answers_health_readiness_and_metrics(settings: Settings) -> None:
    subject = Subject()
    async with asked(subject.operations(), settings) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"] == [{"name": "serving", "ok": False, "reason": "it is still starting", "needed": True}]
        subject.serving, subject.checks = True, [Check("nodes", False, "none of 2 is reachable")]
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"][1]["reason"]) == (503, "none of 2 is reachable")
        subject.checks = [Check("nodes", True)]
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        subject.why = "the relay has ended"
        assert (await client.get("/healthz")).text == "the relay has ended\n"
        page = await client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "answer 42.0" in page.text
        assert "process_resident_memory_bytes" in page.text
        assert (await client.get("/elsewhere")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
        assert (await client.head("/metrics")).content == b""


@in_loop
async def test_a_fault_in_the_numbers_is_a_500_without_their_words(settings: Settings) -> None:
    subject = Subject()
    subject.numbers.broken = True
    async with asked(subject.operations(), settings) as client:
        answer = await client.get("/metrics")
        assert answer.status_code == 500
        assert "hunter2" not in answer.text
        assert (await client.get("/healthz")).status_code == 200


@in_loop
async def test_a_question_that_blocks_is_answered_in_time_and_holds_up_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "ANSWER_S", 0.2)
    free = threading.Event()

    def slow() -> list[Check]:
        free.wait(10)
        return []

    operations = Operations("gateway", lambda: True, slow, blocking=True)
    async with asked(operations, settings) as client:
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(5)))
        free.set()
        assert {answer.status_code for answer in answers} == {503}


@in_loop
async def test_its_socket_is_this_users_alone_replaces_a_dead_one_and_goes_with_it(settings: Settings) -> None:
    path = settings.ops_socket("gateway")
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with asked(Subject().operations(), settings) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await client.get("/healthz")).status_code == 200
    assert not path.exists()


@in_loop
async def test_an_address_can_be_chosen_and_one_that_is_taken_is_named(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        taken.listen()
        operations = Subject().operations()
        with pytest.raises(OSError, match=address):
            await operations.start(settings.model_copy(update={"ops_address": address}))
        await operations.stop()
    operations = Subject().operations()
    await operations.start(settings.model_copy(update={"ops_address": address}))
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://{address}/healthz")).text == "ok\n"
    await operations.stop()
    assert not settings.ops_socket("gateway").exists()


@pytest.mark.parametrize("address", ["9000", "host", "host:", ":9000", "host:99999", "host:x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Settings(ops_address=address)


def test_a_process_whose_main_thread_blocks_answers_from_a_thread(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "GRACE_S", 20)
    subject = Subject()
    thread = OperationsThread(subject.operations, settings)
    thread.start()
    transport = httpx.HTTPTransport(uds=str(settings.ops_socket("gateway")))
    with httpx.Client(transport=transport, base_url="http://operations") as client:
        assert client.get("/healthz").text == "ok\n"
    thread.stop()
    assert not settings.ops_socket("gateway").exists()
    assert "operations" not in {one.name for one in threading.enumerate()}


def test_a_thread_that_cannot_listen_says_so(settings: Settings) -> None:
    settings.runtime_folder.rmdir()
    settings.runtime_folder.write_text("in the way")
    with pytest.raises(OSError, match=r"ops\.sock"):
        OperationsThread(Subject().operations, settings).start()


@pytest.mark.parametrize("abstract", [False, True])
@in_loop
async def test_systemd_is_told_once_when_it_serves_and_when_it_stops(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@foreglow-test-{os.getpid()}" if abstract else str(settings.runtime_folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        subject = Subject()
        async with asked(subject.operations(), settings) as client:
            await client.get("/healthz")
            with pytest.raises(BlockingIOError):
                systemd.recv(100)
            subject.serving = True
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(systemd, 100) == b"READY=1"
        assert systemd.recv(100) == b"STOPPING=1"


@in_loop
async def test_without_systemd_nothing_is_told_and_nothing_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "nonsense", "/nowhere/at/all"):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        subject = Subject()
        subject.serving = True
        async with asked(subject.operations(), settings) as client:
            assert json.loads((await client.get("/readyz")).text)["ready"]

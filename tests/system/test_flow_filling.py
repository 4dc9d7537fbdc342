"""Tier 2 before traffic: what a deploy's condition `code` says of zones that were filled, and of those that were not."""

import io
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.zones import ZoneProcess, publish, wait_for

from graph.ids import FunctionId
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import EventKind
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.store import Store
from orchestrator.flow.building import Builder
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.filling import FILLS, Filling
from orchestrator.flow.function_management import FunctionManagement
from workers.code import breaker
from workers.code import zone as tier2
from workers.code.origin import Origin
from workers.code.package import build_package

pytestmark = pytest.mark.system

F = FunctionId("acme/f")
NO_SOURCES: Any = None
"""Nothing here is built from source."""


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin((tmp_path / "origin").as_uri())


@pytest.fixture
def zone(tmp_path: Path, origin: Origin) -> Iterator[ZoneProcess]:
    with ZoneProcess((tmp_path / "origin").as_uri()) as running:
        yield running


class Zones:
    """Which caches there are; `told` may change."""

    def __init__(self, **told: Sequence[str]) -> None:
        self.told: Mapping[str, Sequence[str]] = told

    def __call__(self) -> Mapping[str, Sequence[str]]:
        return self.told


def deploy(store: Store, origin: Origin, code: str) -> OpenEvent:
    body, out = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("handler.py", code)
    package = build_package(body, out)
    out.seek(0)
    origin.put_package("acme", package.listing, out)
    store.packages.register("acme", package.digest, 1, package.listing.size, (), "", 1)
    settings = VersionSettings(package.digest, "handler:f", "event", "python3.11", 128, 30.0, 1)
    number = store.functions.put("acme", "f", settings, time.time()).versions[0].number
    return OpenEvent(number, EventKind.DEPLOYED, F, number, {"number": number}, 1)


def code_condition(store: Store, number: int) -> tuple[str, str]:
    found = {one.name: one for one in store.functions.describe_version("acme", "f", number).conditions}
    return found["code"].status, found["code"].reason


def test_a_version_is_in_every_zone_before_its_code_is_said_to_be_there(
    store: Store, origin: Origin, zone: ZoneProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier2, "FILL_READ_S", 30.0)  # a busy machine may let a cache stand still for longer than 3 s
    with ZoneProcess((tmp_path / "origin").as_uri()) as west:
        filling = Filling(origin, Zones(east=[str(zone.socket)], west=[str(west.socket)]), lambda: False)
        builder = Builder(store.packages, origin, b"key", sys.executable, tmp_path / "flow", NO_SOURCES)
        module = FunctionManagement(store, builder, filling)
        event = deploy(store, origin, "def f(e, c): return 1\n")
        module.apply(event)
        assert code_condition(store, 1) == ("true", "")
        assert zone.objects() == west.objects() != set()
        filling.close()


def test_a_zone_that_is_down_holds_nothing_up_and_the_condition_says_which_and_why(
    store: Store, origin: Origin, zone: ZoneProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_still_s = tier2.FILL_READ_S
    monkeypatch.setattr(tier2, "FILL_READ_S", 30.0)  # as above
    zones = Zones(east=[str(zone.socket)], west=[str(tmp_path / "nobody.sock")])
    filling = Filling(origin, zones, lambda: False)
    builder = Builder(store.packages, origin, b"key", sys.executable, tmp_path / "flow", NO_SOURCES)
    module = FunctionManagement(store, builder, filling)
    module.apply(deploy(store, origin, "def f(e, c): return 1\n"))
    status, reason = code_condition(store, 1)
    assert status == "true"
    assert reason.startswith("zone west: not filled, nobody.sock: FileNotFoundError")
    assert reason.endswith("its nodes are served from the origin")
    assert "east" not in reason
    monkeypatch.setattr(breaker, "FIRST_S", 8.0)  # longer than a deploy takes
    monkeypatch.setattr(tier2, "FILL_READ_S", stands_still_s)
    zone.signal(signal.SIGSTOP)
    module.apply(deploy(store, origin, "def f(e, c): return 2\n"))
    status, reason = code_condition(store, 2)
    assert status == "true"
    assert "zone east: not filled, zone-cache.sock: TimeoutError" in reason
    module.apply(deploy(store, origin, "def f(e, c): return 3\n"))
    assert "left alone" in code_condition(store, 3)[1], "the next deploy does not wait for it again"
    zone.signal(signal.SIGCONT)
    zones.told = {"east": [str(zone.socket)]}
    layer = publish(origin, "acme", {"a.py": b""})
    wait_for(lambda: filling("acme", [layer.digest]) == "", "it is filled again")
    filling.close()


def test_a_zone_killed_in_the_middle_is_told_of_and_without_zones_nothing_is_waited_for(
    store: Store, origin: Origin, zone: ZoneProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = publish(origin, "acme", {f"{number}.bin": bytes([number]) * 300_000 for number in range(100)})
    last = max(chunk.name for chunk in layer.chunks)
    (path,) = (tmp_path / "origin").rglob(last)
    path.unlink()
    os.mkfifo(path)  # whoever reads it waits: the filling is not over before the kill
    monkeypatch.setattr(tier2, "STALLED_ROUNDS", 1000)  # nor given up
    zones = Zones(east=[str(zone.socket)])
    filling = Filling(origin, zones, lambda: False)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(filling("acme", [layer.digest])))
    thread.start()
    wait_for(lambda: len(zone.objects()) >= 3, "some of it is there")
    zone.kill()
    thread.join(30)
    assert said[0].startswith("zone east: not filled, zone-cache.sock: ")
    zones.told = {}
    assert filling("acme", [layer.digest]) == ""
    filling.close()


def test_no_more_are_waited_for_at_once_than_there_are_threads_for(origin: Origin, zone: ZoneProcess) -> None:
    layer = publish(origin, "acme", {"a.py": b""})
    filling = Filling(origin, Zones(east=[str(zone.socket)]), lambda: False)
    zone.signal(signal.SIGSTOP)
    waiting = [threading.Thread(target=filling, args=("acme", [layer.digest])) for _ in range(FILLS)]
    for one in waiting:
        one.start()
    wait_for(lambda: not filling._slots._value, "all places are taken")
    with pytest.raises(Busy):
        filling("acme", [layer.digest])
    for one in waiting:
        one.join(30)
    stopping = Filling(origin, Zones(east=[str(zone.socket)]), lambda: True)
    with pytest.raises(Busy):
        stopping("acme", [layer.digest])
    for closing in (filling, stopping):
        closing.close()

"""Events through the modules' tasks, and programs under limits: no broker needed."""

import io
import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery.exceptions import Reject
from sqlalchemy.exc import SQLAlchemyError

from graph.ids import FunctionId
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, LayerRole, Module
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.outbox import MAX_TRIES, OpenEvent
from orchestrator.catalog.packages import LayerView, PackageView
from orchestrator.catalog.store import Store
from orchestrator.flow import app as flow_app
from orchestrator.flow.app import broker_url
from orchestrator.flow.bounded import Bounds, TimedOut, run_bounded
from orchestrator.flow.building import BUILDS, Builder
from orchestrator.flow.dependencies import BuildFailed, BuildInterrupted, Busy
from orchestrator.flow.function_management import FunctionManagement
from orchestrator.flow.process import guarded
from orchestrator.flow.source_builds import SourceBuilder
from workers.code.origin import Origin
from workers.code.package import build_package
from workers.drivers.process.confining import Confines
from workers.drivers.process.interpreter import find_interpreter

F = FunctionId("acme/f")
CLUSTER_KEY = b"the cluster's key"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(database_url)
    made.migrate()
    made.keys.create_tenant("acme", 1)
    yield made
    made.close()


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin((tmp_path / "origin").as_uri())


@pytest.fixture
def nudge(tmp_path: Path) -> Iterator[Nudge]:
    made = Nudge(f"unix://{tmp_path}/none.sock")  # nobody listens: nudges are lost, which does no harm
    yield made
    made.close()


def make_builder(store: Store, origin: Origin, folder: Path) -> Builder:
    sources = SourceBuilder(find_interpreter(), folder, Confines(60, 256, 64), [])
    return Builder(store.packages, origin, CLUSTER_KEY, sys.executable, folder, sources)


@pytest.fixture
def builder(store: Store, origin: Origin, tmp_path: Path) -> Builder:
    return make_builder(store, origin, tmp_path / "flow")


def upload(store: Store, origin: Origin, **files: str) -> PackageView:
    body, out = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.py", content)
    package = build_package(body, out)
    out.seek(0)
    origin.put_package("acme", package.listing, out)
    store.packages.register("acme", package.digest, len(files), package.listing.size, (), "", 1)
    found = store.packages.find("acme", package.digest)
    assert found is not None
    return found


def deploy(store: Store, package: PackageView) -> tuple[int, Module]:
    settings = VersionSettings(package.digest, "handler:f", "event", "python3.11", 128, 30.0, 1)
    store.functions.put("acme", "f", settings, time.time())
    for event, module in store.outbox.due(time.time()):
        if module is not Module.FUNCTION_MANAGEMENT:
            store.outbox.close(event, module, time.time())
    for name in (ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(F, 1, name, ConditionStatus.NOT_NEEDED, "", time.time())
    ((event, module),) = store.outbox.due(time.time())
    assert store.outbox.claim(event, module, time.time())
    return event, module


class Scripted:
    """A module that does what it is told."""

    module = Module.FUNCTION_MANAGEMENT

    def __init__(self, act: Callable[[OpenEvent], None]) -> None:
        self.act = act
        self.applied: list[int] = []
        self.given_up = 0

    def apply(self, event: OpenEvent) -> None:
        self.applied.append(event.tries)
        self.act(event)

    def give_up(self, event: OpenEvent) -> None:
        self.given_up += 1


def failing(error: Exception) -> Callable[[OpenEvent], None]:
    def act(event: OpenEvent) -> None:
        raise error

    return act


def condition(store: Store, number: int = 1) -> tuple[str, str]:
    found = {one.name: one for one in store.functions.describe_version("acme", "f", number).conditions}["code"]
    return found.status, found.reason


def test_a_finished_event_is_closed_and_a_second_delivery_does_nothing(store: Store, origin: Origin, nudge: Nudge) -> None:
    event, _ = deploy(store, upload(store, origin, handler="x = 1"))
    module = Scripted(lambda event: None)
    task = guarded(module, store, nudge)
    task(event)
    task(event)
    assert module.applied == [1]


def test_any_error_is_another_try_and_at_last_the_end(store: Store, origin: Origin, nudge: Nudge) -> None:
    event, kind = deploy(store, upload(store, origin, handler="x = 1"))
    module = Scripted(failing(OSError("disk full")))
    task = guarded(module, store, nudge)
    for _ in range(MAX_TRIES):
        task(event)
        store.outbox.resend_open(time.time())
        store.outbox.claim(event, kind, time.time() + 1)
    assert module.applied == list(range(1, MAX_TRIES + 1))
    assert module.given_up == 1
    status, reason = condition(store)
    assert status == "false"
    assert "given up after 10 tries: OSError: disk full; `foreglow events retry" in reason
    task(event)
    assert len(module.applied) == MAX_TRIES
    assert store.outbox.backlog().parked == 1


def test_busy_uses_up_no_try(store: Store, origin: Origin, nudge: Nudge) -> None:
    event, kind = deploy(store, upload(store, origin, handler="x = 1"))
    module = Scripted(failing(Busy("later")))
    task = guarded(module, store, nudge)
    for _ in range(3 * MAX_TRIES):
        task(event)
        assert store.outbox.claim(event, kind, time.time() + 1)
    assert set(module.applied) == {1}
    assert module.given_up == 0


def test_trouble_that_may_pass_is_shown_while_it_is_tried_again(store: Store, origin: Origin, builder: Builder) -> None:
    package = upload(store, origin, handler="x = 1")
    event, kind = deploy(store, package)
    open_event = store.outbox.load(event, kind)
    assert open_event is not None
    management = FunctionManagement(store, builder)

    def interrupted(*_: object) -> None:
        raise BuildInterrupted("the index is away")

    builder.code_layer = interrupted  # type: ignore[assignment, method-assign]
    with pytest.raises(BuildInterrupted):
        management.apply(open_event)
    status, reason = condition(store)
    assert status == "unknown"
    assert "the index is away; it is tried again" in reason
    assert store.functions.describe_version("acme", "f", 1).state == "pending"


def test_an_outcome_that_cannot_be_written_down_puts_the_task_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is away: acknowledged, the event would come again only after minutes."""
    monkeypatch.setattr(flow_app, "REQUEUE_S", 0)
    app = flow_app.build_app("unix:///nowhere.sock")

    def apply(event: int) -> None:
        raise SQLAlchemyError("away")

    flow_app.add_module(app, Module.METADATA_SYNC, apply)
    with pytest.raises(Reject) as caught:
        app.tasks[flow_app.task_name(Module.METADATA_SYNC)].run(1)
    assert caught.value.requeue


def test_events_of_what_is_gone_are_done(store: Store, origin: Origin, builder: Builder) -> None:
    management = FunctionManagement(store, builder)
    for kind, subject in ((EventKind.DEPLOYED, "acme/absent"), (EventKind.REMOVED, "acme/f"), (EventKind.KEY, "00")):
        management.apply(OpenEvent(1, kind, subject, 1, {"number": 1}, 1))


def test_a_build_is_done_once_and_kept(store: Store, origin: Origin, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    package = upload(store, origin, handler="x = 1", other="y = 2")
    first = builder.code_layer(package, "python3.11", "handler:f")
    monkeypatch.setattr(builder, "_compile_package", None)
    assert builder.code_layer(package, "python3.11", "other:f") == first
    assert origin.holds("acme", first.digest)
    with pytest.raises(BuildFailed, match="no module 'absent'"):
        builder.code_layer(package, "python3.11", "absent:f")


def test_who_comes_while_it_is_built_or_the_builders_are_busy_is_sent_away(
    store: Store, origin: Origin, builder: Builder
) -> None:
    """At most BUILDS at once, and nobody waits in a thread."""
    packages = [upload(store, origin, handler=f"x = {number}") for number in range(BUILDS + 1)]
    inside, go_on = threading.Semaphore(0), threading.Event()
    built: list[str] = []

    def slow(package: PackageView) -> LayerView:
        inside.release()
        assert go_on.wait(20)
        built.append(package.digest)
        return LayerView(package.digest, 1)

    builder._compile_package = slow  # type: ignore[method-assign]
    # stripes may collide for unlucky digests: choose packages that do not share one
    chosen: dict[int, PackageView] = {}
    for package in packages + [upload(store, origin, handler=f"z = {number}") for number in range(40)]:
        chosen.setdefault(hash(("acme", LayerRole.CODE, package.digest)) % len(builder._locks), package)
    running, waiting = list(chosen.values())[:BUILDS], list(chosen.values())[BUILDS]
    threads = [threading.Thread(target=builder.code_layer, args=(package, "python3.11", "handler:f")) for package in running]
    for thread in threads:
        thread.start()
    for _ in running:
        assert inside.acquire(timeout=20)
    for package in (running[0], waiting):
        with pytest.raises(Busy):
            builder.code_layer(package, "python3.11", "handler:f")
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert sorted(built) == sorted(package.digest for package in running)
    assert builder.code_layer(waiting, "python3.11", "handler:f").digest == waiting.digest


def test_what_a_dead_build_left_is_swept_and_a_huge_cache_starts_empty(
    store: Store, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "flow"
    (folder / "build-dead" / "tree").mkdir(parents=True)
    (folder / "cache").mkdir()
    (folder / "cache" / "wheel").write_bytes(b"x" * 100)
    make_builder(store, origin, folder)
    assert [path.name for path in folder.iterdir()] == ["cache"]
    monkeypatch.setattr("orchestrator.flow.building.CACHE_BYTES", 50)
    make_builder(store, origin, folder)
    assert list(folder.iterdir()) == []


def test_the_last_condition_wakes_the_routes_and_a_build_that_failed_too(store: Store, origin: Origin, builder: Builder) -> None:
    event, kind = deploy(store, upload(store, origin, handler="def f(:"))
    loaded = store.outbox.load(event, kind)
    assert loaded is not None
    FunctionManagement(store, builder).apply(loaded)
    status, reason = condition(store)
    assert status == ConditionStatus.FALSE
    assert "handler.py does not compile, line 1" in reason
    assert (event, Module.METADATA_SYNC) in store.outbox.due(time.time())
    assert ConditionName.CODE == "code"


# -- programs under limits


def run(tmp_path: Path, program: str, bounds: Bounds | None = None, watch: Callable[[], None] = lambda: None) -> tuple[int, str]:
    output = tmp_path / "output"
    code = run_bounded([sys.executable, "-c", program], {}, output, bounds or Bounds(30, 1 << 20), watch)
    return code, output.read_text()


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # not there, or gone while it was read
        return "gone"


def once_bounded(limit: str, size: int, then: str) -> str:
    """A program: it is bounded from outside, a moment after its start."""
    return f"import resource, time\nwhile resource.getrlimit(resource.{limit})[0] != {size}: time.sleep(0.01)\n{then}"


def test_the_exit_code_and_the_output_come_back(tmp_path: Path) -> None:
    assert run(tmp_path, "import sys; print('out'); sys.exit(3)") == (3, "out\n")
    assert run(tmp_path, "import os; os.abort()")[0] == -6


def test_the_environment_of_the_platform_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    assert "hunter2" not in run(tmp_path, "import os; print(dict(os.environ))")[1]


def test_time_is_bounded_and_nothing_it_started_stays(tmp_path: Path) -> None:
    program = "import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    program += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(600)"

    def started() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise Busy("enough")

    with pytest.raises(Busy):
        run(tmp_path, program, watch=started)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while state_of(child) not in ("Z", "gone"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(TimedOut):
        run(tmp_path, "while True: pass", Bounds(0.2, 1 << 20))


def test_memory_and_file_sizes_are_bounded(tmp_path: Path) -> None:
    hungry = once_bounded("RLIMIT_AS", 256 << 20, "x = bytearray(1 << 30)")
    assert "MemoryError" in run(tmp_path, hungry, Bounds(30, 1 << 20, 256 << 20))[1]
    writer = once_bounded("RLIMIT_FSIZE", 1 << 20, "open('big', 'wb').write(b'x' * (4 << 20))")
    assert run(tmp_path, writer)[0] != 0
    assert os.path.getsize(tmp_path / "big") <= 1 << 20


def test_unix_sockets_are_spelled_as_celery_wants_them() -> None:
    assert broker_url("unix:///run/v.sock") == "redis+socket:///run/v.sock"
    assert broker_url("unix:///run/v.sock?db=2") == "redis+socket:///run/v.sock?db=2"
    assert broker_url("rediss://user:pw@host:6380/1") == "rediss://user:pw@host:6380/1"

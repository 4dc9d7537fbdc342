"""Whichever module finishes when: the highest generation that holds serves, a removal counts as one, nothing goes back.

The store is real (SQLite), so are the modules and the Valkey the routes go to. Hypothesis chooses what happens between any two
steps: another module's task, a task that comes twice or late, a deploy, a removal.
"""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graph.ids import FunctionId
from orchestrator import valkey
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import Module
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.packages import LayerView, PackageView
from orchestrator.catalog.publish import GENERATIONS_KEY, Published, Publisher
from orchestrator.catalog.routes import FUNCTIONS_KEY, Route, decode_route
from orchestrator.catalog.store import Store
from orchestrator.flow.dependencies import BuildFailed, BuildInterrupted
from orchestrator.flow.function_management import FunctionManagement
from orchestrator.flow.metadata_sync import MetadataSync
from orchestrator.flow.network_deployment import NetworkDeployment
from orchestrator.flow.process import guarded
from orchestrator.flow.reaching import Reaching
from orchestrator.flow.scheduling import Scheduling
from orchestrator.flow.starting import StartFailed, StartInterrupted
from workers.rpc.messages import Hello
from workers.versions import VersionSpec

pytestmark = pytest.mark.system

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")
DEPTH = 4


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    socket = folder / "v.sock"
    with subprocess.Popen(valkey.command(socket, folder / "data"), stdout=subprocess.DEVNULL) as process:
        for _ in range(500):
            if valkey.answers(socket):
                break
            time.sleep(0.02)
        yield f"unix://{socket}"
        process.terminate()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "catalog.db"
    made = Store(f"sqlite:///{path}")
    made.migrate()
    made.keys.create_tenant("acme", 1)
    made.packages.register("acme", DIGEST, 1, 10, (), "", 1)
    made.identity()
    made.close()
    return path


class Steps:
    """What happens next, as drawn. Each module asks between its steps; the depth is bounded as threads are."""

    def __init__(self, world: "World", data: st.DataObject) -> None:
        self._world = world
        self._data = data
        self._depth = 0

    def choose(self, options: Sequence[str]) -> str:
        return self._data.draw(st.sampled_from(options))

    def between(self) -> None:
        if self._depth >= DEPTH or self._world.steps_left <= 0:
            return
        self._depth += 1
        try:
            while (what := self.choose(["go on", "go on", "task", "old task", "deploy", "remove"])) != "go on":
                self._world.act(what)
        finally:
            self._depth -= 1


class HeldBuilder:
    """Builds nothing; how it ends is drawn once a version, so that it is the version's."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def code_layer(self, package: PackageView, runtime: str, handler: str) -> LayerView:
        self._world.steps.between()
        fate = self._world.fate(int(handler.removeprefix("h:v")))
        if fate == "interrupted once" and handler not in self._world.interrupted:
            self._world.interrupted.add(handler)
            raise BuildInterrupted("the index is away")
        if fate == "does not build":
            raise BuildFailed("no such package")
        return LayerView("sha256:code", 1)

    def dependency_layer(self, package: PackageView, runtime: str, build: bool) -> LayerView | None:
        self._world.steps.between()
        return None


class HeldStarter:
    def __init__(self, world: "World") -> None:
        self._world = world

    def start(self, spec: VersionSpec, count: int, progress: Callable[[int], None]) -> None:
        progress(0)
        self._world.steps.between()
        fate = self._world.fate(int(spec.version.rpartition(":")[2]))
        if fate == "node away once" and spec.version not in self._world.interrupted:
            self._world.interrupted.add(spec.version)
            raise StartInterrupted("no node is reachable")
        if fate == "does not start":
            raise StartFailed("KeyError")

    def drain(self, versions: Sequence[str]) -> None:
        self._world.steps.between()


class HeldPublisher(Publisher):
    def __init__(self, url: str, world: "World") -> None:
        super().__init__(url)
        self._world = world

    def publish_route(self, route: Route) -> Published:
        return self._held(lambda: super(HeldPublisher, self).publish_route(route))

    def remove_route(self, function: FunctionId, generation: int) -> Published:
        return self._held(lambda: super(HeldPublisher, self).remove_route(function, generation))

    def _held(self, publish: Callable[[], Published]) -> Published:
        self._world.steps.between()
        done = publish()
        self._world.look()
        self._world.steps.between()
        return done


class World:
    """One function's life. `look` after each publication: what readers see never goes back."""

    def __init__(self, folder: Path, url: str, data: st.DataObject) -> None:
        self.store = Store(f"sqlite:///{folder / 'catalog.db'}")
        self.publisher = HeldPublisher(url, self)
        self.redis = redis.Redis.from_url(url)
        self.redis.flushall()
        nudge = Nudge(f"unix://{folder}/none.sock")
        self.steps = Steps(self, data)
        modules = [
            NetworkDeployment(self.store, Reaching(lambda _tenant: (), Hello("flow", "f", ""))),
            FunctionManagement(self.store, HeldBuilder(self)),  # type: ignore[arg-type]
            Scheduling(self.store, HeldStarter(self)),
            MetadataSync(self.store, self.publisher),
        ]
        self.tasks = {module.module: guarded(module, self.store, nudge) for module in modules}
        self.nudge = nudge
        self.interrupted: set[str] = set()
        self.fates: dict[int, str] = {}
        self.done: list[tuple[int, Module]] = []
        self.clock = itertools.count(10)
        self.deployed = 0
        self.removed_at = 0  # the number of the last version that a removal took
        self.alive = False
        self.seen = self.latest = 0
        self.steps_left = 40

    def close(self) -> None:
        for closing in (self.publisher, self.redis, self.nudge, self.store):
            closing.close()

    def fate(self, number: int) -> str:
        fates = ("serves", "serves", "does not build", "does not start", "interrupted once", "node away once")
        return self.fates.setdefault(number, self.steps.choose(fates))

    def act(self, what: str) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            return
        if what == "deploy" and self.deployed < 4:
            self.deploy()
        elif what == "remove" and self.alive:
            self.alive, self.removed_at = False, self.deployed
            self.store.functions.remove("acme", "f", next(self.clock))
        elif what == "task":
            self.run_one()
        elif what == "old task" and self.done:
            event, module = self.done[-1]
            self.tasks[module](event)

    def deploy(self) -> None:
        number = self.deployed + 1
        instances = 0 if self.fate(number) in ("serves", "does not build", "interrupted once") else 2
        settings = VersionSettings(DIGEST, f"h:v{number}", "event", "python3.11", 128, 30.0, 1, initial_instances=instances)
        self.deployed, self.alive = number, True
        assert self.store.functions.put("acme", "f", settings, next(self.clock)).versions[0].number == number

    def run_one(self) -> bool:
        """The task of one due delivery."""
        due = self.store.outbox.due(1e12)
        if not due:
            return False
        event, module = due[int(self.steps.choose([str(index) for index in range(len(due))]))]
        assert self.store.outbox.claim(event, module, 1e12)
        self.done.append((event, module))
        self.tasks[module](event)
        return True

    def route(self) -> Route | None:
        value = self.redis.hget(FUNCTIONS_KEY, F)
        return decode_route(value) if value else None

    def look(self) -> None:
        known = int(self.redis.hget(GENERATIONS_KEY, f"function {F}") or 0)
        assert known >= self.seen, "the routes went back"
        self.seen = known
        route = self.route()
        serving = self.store.functions.route(F)
        if route is not None and serving is not None and route.generation == serving.generation:
            assert route == serving
        if route is not None:
            assert route.latest >= self.latest, "the older one won"
            self.latest = route.latest

    def best(self) -> int | None:
        """The version that must serve in the end."""
        good = [
            number for number in range(self.removed_at + 1, self.deployed + 1)
            if self.fates.get(number) not in ("does not build", "does not start")
        ]  # fmt: skip
        return max(good) if self.alive and good else None


@settings(
    max_examples=400 if os.environ.get("FULL") else 25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_the_newest_that_holds_serves_whoever_finishes_when(data: st.DataObject, empty: Path, server: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fg-") as folder:
        shutil.copy(empty, Path(folder) / "catalog.db")
        world = World(Path(folder), server, data)
        try:
            world.publisher.rebuild(world.store)
            world.deploy()
            world.deploy()
            while world.steps_left > 0 and data.draw(st.booleans()):
                world.steps.between()
            world.steps_left = 0  # from here on nothing new comes
            while world.run_one():
                pass
            _check(world)
            for event, module in world.done:  # late ones change nothing
                world.tasks[module](event)
            _check(world)
        finally:
            world.close()


def _check(world: World) -> None:
    assert world.store.outbox.unfinished(None, parked=False) == []
    best, route = world.best(), world.route()
    assert (route.latest if route is not None else None) == best, world.fates
    assert route == world.store.functions.route(F)
    if not world.alive:
        assert route is None
        return
    described = world.store.functions.describe("acme", "f")
    assert described.latest == best
    for version in described.versions:
        failed = world.fates[version.number] in ("does not build", "does not start")
        superseded = any(one.reason == "a newer version serves already" for one in version.conditions)
        assert version.state == ("failed" if failed and not superseded else "ready"), (version, world.fates)
        assert all(one.status != "unknown" for one in version.conditions)

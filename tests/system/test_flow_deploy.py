"""From a deploy to the route: a real Celery worker in a process of its own, real builds; on what comes along (SQLite, Valkey) and
on what a fleet has (PostgreSQL, Redis)."""

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from doubles.package_indexes import source
from doubles.servers import redis_command
from doubles.thread_nodes import ThreadNode
from sqlalchemy import create_engine, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from graph.ids import FunctionId
from orchestrator import valkey
from orchestrator.catalog.errors import NotFound
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import Delivery, Module
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.postgresql import spoken
from orchestrator.catalog.routes import FUNCTIONS_KEY, KEYS_KEY, SEQUENCE_KEY, Route, decode_route
from orchestrator.catalog.store import Store
from orchestrator.catalog.views import FunctionView
from orchestrator.flow.locks import read_lock
from orchestrator.settings import Settings, rpc_secret
from workers.code.chunks import chunk_key, unpack
from workers.code.layers import assemble
from workers.code.origin import Origin
from workers.code.package import build_package
from workers.code.requirements import requirements_digest
from workers.ports import InitFailed
from workers.sealing import load_key

pytestmark = pytest.mark.system

PATIENCE_S = 60.0
HANDLER = {"handler.py": b"def f(event, context):\n    return event\n"}


Legs = Callable[[], tuple[str, str]]


class Platform:
    """Valkey or Redis, flow and the catalog of one state folder."""

    def __init__(self, folder: Path, redis_kind: str, database_url: str) -> None:
        self.redis_kind = redis_kind
        self.settings = Settings(state=folder / "state", database_url=database_url)
        self.settings.state.mkdir()
        self.settings.runtime_folder.mkdir(mode=0o700)
        self.index = folder / "index"
        self.index.mkdir()
        self.store = Store(self.settings.effective_database_url)
        self.store.migrate()
        self.store.keys.create_tenant("acme", 1)
        self.origin = Origin(self.settings.effective_origin_url)
        self.nudge = Nudge(self.settings.effective_redis_url)
        self.redis = redis.Redis.from_url(self.settings.effective_redis_url)
        self.valkey: subprocess.Popen[bytes] | None = None
        self.flow: subprocess.Popen[bytes] | None = None
        self.log = folder / "flow.log"

    def start_valkey(self) -> None:
        socket = self.settings.socket("valkey")
        command = redis_command(self.redis_kind, socket, self.settings.state / "valkey")
        self.valkey = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.wait(lambda: valkey.answers(socket), "Valkey")

    def start_flow(self) -> None:
        environment = {
            **os.environ,
            "FOREGLOW_STATE": str(self.settings.state),
            "FOREGLOW_DATABASE_URL": self.settings.database_url,
            "UV_DEFAULT_INDEX": self.index.as_uri(),  # no test asks a network
            "SECRET_OF_THE_PLATFORM": "hunter2",
            "PYTHONFAULTHANDLER": "1",
        }
        with self.log.open("ab") as log:
            command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "flow"]
            self.flow = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def stop(self, number: int, *processes: "subprocess.Popen[bytes] | None") -> None:
        for process in processes:
            if process is not None and process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGABRT)  # writes where it stands
                    process.wait(10)
                    pytest.fail(f"did not end within 30 s of signal {number}\n{self.log.read_text()[-8000:]}")

    def close(self) -> None:
        self.stop(signal.SIGTERM, self.flow, self.valkey)
        for closing in (self.redis, self.nudge, self.store):
            closing.close()
        shutil.rmtree(self.settings.runtime_folder)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {PATIENCE_S:.0f} s\n{self.log.read_text() if self.log.exists() else ''}")
            time.sleep(0.01)

    def upload(self, files: dict[str, bytes]) -> str:
        body, out = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        package = build_package(body, out)
        out.seek(0)
        self.origin.put_package("acme", package.listing, out)
        digest = requirements_digest(package.requirements)
        size = package.listing.size
        self.store.packages.register("acme", package.digest, len(files), size, package.requirements, digest, time.time())
        return package.digest

    def deploy(
        self, name: str, files: dict[str, bytes], handler: str = "handler:f", instances: int = 0, build: bool = False
    ) -> int:
        package = self.upload(files)
        settings = VersionSettings(
            package, handler, "event", "python3.11", 128, 30.0, 1, initial_instances=instances, build=build
        )
        number = self.store.functions.put("acme", name, settings, time.time()).versions[0].number
        self.nudge.give()
        return number

    def settled(self, name: str, number: int) -> FunctionView:
        def version_state() -> str:
            return self.store.functions.describe_version("acme", name, number).state

        self.wait(lambda: version_state() != "pending", f"version {number} of {name}")
        return self.store.functions.describe("acme", name)

    def route(self, name: str) -> Route | None:
        value = self.redis.hget(FUNCTIONS_KEY, f"acme/{name}")
        return decode_route(value) if value else None

    def reason(self, name: str, number: int) -> str:
        version = self.settled(name, number)
        return next(one.reason for one in version.versions[0].conditions if one.name == "code")

    def condition(self, name: str, number: int, condition: str) -> tuple[str, str]:
        version = self.store.functions.describe_version("acme", name, number)
        return next((one.status, one.reason) for one in version.conditions if one.name == condition)

    def all_closed(self) -> None:
        def unfinished() -> object:
            return self.store.outbox.unfinished(None, parked=False)

        self.wait(lambda: not unfinished(), "all events closed")

    def restart_flow(self) -> None:
        self.stop(signal.SIGKILL, self.flow)
        self.start_flow()

    def node(self) -> ThreadNode:
        """The real node where flow looks for it, its driver in the test's hand."""
        return ThreadNode(self.settings.runtime_folder, rpc_secret(load_key(self.settings.key_file)))

    def layer(self, digest: str, into: Path) -> Path:
        key = chunk_key(load_key(self.settings.key_file), "acme")
        into.mkdir()
        manifest = self.origin.manifest("acme", digest)
        assemble(manifest, lambda chunk: unpack(key, chunk.name, self.origin.chunk("acme", digest, chunk.name)), into)
        return into

    def add_wheel(self, name: str, files: dict[str, str], version: str = "1.0") -> None:
        described = f"{name}-{version}.dist-info"
        everything = {
            **files,
            f"{described}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{described}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in [*everything, f"{described}/RECORD"])
        with zipfile.ZipFile(self.listed(name, f"{name}-{version}-py3-none-any.whl"), "w") as wheel:
            for path, content in {**everything, f"{described}/RECORD": record}.items():
                wheel.writestr(path, content)

    def listed(self, project: str, file: str) -> Path:
        """Where to put `file`; the package index names it."""
        folder = self.index / project
        folder.mkdir()
        (folder / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{file}">{file}</a></body></html>')
        return folder / file


@contextlib.contextmanager
def running(legs: Legs) -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="fg-flow-"))
    made = Platform(folder, *legs())
    try:
        made.start_valkey()
        made.start_flow()
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["embedded", "fleet"])
def legs(request: pytest.FixtureRequest) -> Legs:
    """What Redis to start and the URL of an empty database ("": the embedded one)."""
    if request.param == "embedded":
        return lambda: ("valkey", "")
    postgres = request.getfixturevalue("postgres")
    return lambda: ("redis", postgres.fresh())


@pytest.fixture(scope="module")
def shared(legs: Legs) -> Iterator[Platform]:
    """One platform for all tests that break nothing; each uses function names of its own."""
    with running(legs) as made:
        yield made


@pytest.fixture
def platform(legs: Legs) -> Iterator[Platform]:
    with running(legs) as made:
        yield made


def test_a_deploy_becomes_a_route(shared: Platform, tmp_path: Path) -> None:
    number = shared.deploy("plain", HANDLER)
    assert shared.settled("plain", number).latest == number
    route = shared.route("plain")
    assert route is not None
    assert route.latest == number
    layer = shared.layer(route.versions[0].package.code, tmp_path / "layer")
    assert (layer / "handler.py").read_bytes() == HANDLER["handler.py"]
    bytecode = (layer / "__pycache__" / "handler.cpython-311.pyc").read_bytes()
    assert bytecode[4:8] == (1).to_bytes(4, "little"), "hash-based and never checked"
    shared.wait(lambda: shared.store.outbox.backlog().open == 0, "all events closed")


def test_of_two_quick_deploys_the_older_never_wins(shared: Platform) -> None:
    for round_number in range(3):
        older = shared.deploy("quick", {"handler.py": f"def f(e, c): return {round_number}".encode()})
        newer = shared.deploy("quick", HANDLER)
        assert newer == older + 1
        shared.settled("quick", older)
        described = shared.settled("quick", newer)
        shared.wait(lambda: shared.store.outbox.backlog().open == 0, "all events closed")
        route = shared.route("quick")
        assert route is not None
        assert route.latest == newer
        assert shared.store.functions.describe("acme", "quick").latest == newer, described


def test_dependencies_become_a_layer_built_once(shared: Platform, tmp_path: Path) -> None:
    shared.add_wheel("tinydep", {"tinydep/__init__.py": "VALUE = 7\n"})
    for name in ("first", "second"):
        shared.deploy(name, {**HANDLER, "requirements.txt": b"tinydep==1.0\n", "name.txt": name.encode()})
    first, second = (shared.settled(name, 1) and shared.route(name) for name in ("first", "second"))
    assert first
    assert second
    dependencies = first.versions[0].package.dependencies
    assert dependencies
    assert second.versions[0].package.dependencies == dependencies
    layer = shared.layer(dependencies, tmp_path / "layer")
    assert (layer / "tinydep" / "__init__.py").exists()
    assert list(layer.glob("tinydep/__pycache__/*.pyc"))


def test_requirements_that_cannot_be_had_leave_the_old_version_serving(shared: Platform) -> None:
    first = shared.deploy("needy", HANDLER)
    shared.settled("needy", first)
    before = shared.route("needy")
    second = shared.deploy("needy", {**HANDLER, "requirements.txt": b"no-such-package==9\n"})
    reason = shared.reason("needy", second)
    assert "no-such-package" in reason
    assert str(shared.settings.state) not in reason
    described = shared.settled("needy", second)
    assert (described.latest, described.versions[0].state) == (first, "failed")
    assert shared.route("needy") == before
    third = shared.deploy("needy", HANDLER)
    assert shared.settled("needy", third).latest == third


def test_nothing_of_a_tenant_is_executed_while_building(shared: Platform, tmp_path: Path) -> None:
    """Building a source distribution would run its backend; a .pth file would run if the target were a site folder."""
    proof = tmp_path / "executed"
    attack = f"import pathlib; pathlib.Path({str(proof)!r}).touch()\n"
    source = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        "backend.py": attack,
        "setup.py": attack,
    }
    with tarfile.open(shared.listed("evil", "evil-1.0.tar.gz"), "w:gz") as archive:
        for name, content in source.items():
            entry = tarfile.TarInfo(f"evil-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    shared.add_wheel("pthdep", {"pthdep.py": attack, "pthdep.pth": attack, "sitecustomize.py": attack})
    refused = shared.deploy("evil", {**HANDLER, "requirements.txt": b"evil==1.0\n"})
    assert shared.settled("evil", refused).versions[0].state == "failed"
    built = shared.deploy("pth", {"handler.py": attack.encode() + HANDLER["handler.py"], "requirements.txt": b"pthdep\n"})
    assert shared.settled("pth", built).latest == built
    assert not proof.exists()


def test_the_lock_of_what_was_installed_is_kept_with_the_layer(shared: Platform) -> None:
    shared.add_wheel("lockdep", {"lockdep.py": "VALUE = 7\n"})
    number = shared.deploy("locked", {**HANDLER, "requirements.txt": b"lockdep>=0.5  # any\n"})
    shared.settled("locked", number)
    wheel = shared.index / "lockdep" / "lockdep-1.0-py3-none-any.whl"
    (pin,) = read_lock(shared.store.functions.lock("acme", "locked", number))
    assert (pin.name, pin.version) == ("lockdep", "1.0")
    assert pin.hashes == (f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}",)
    shared.settled("locked", shared.deploy("locked", HANDLER))
    assert shared.store.functions.lock("acme", "locked", number + 1) == ""
    with pytest.raises(NotFound):
        shared.store.functions.lock("globex", "locked", number)


def test_hashes_of_the_user_hold(shared: Platform) -> None:
    shared.add_wheel("hashdep", {"hashdep.py": ""})
    digest = hashlib.sha256((shared.index / "hashdep" / "hashdep-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    right = shared.deploy("hashed", {**HANDLER, "requirements.txt": f"hashdep==1.0 --hash=sha256:{digest}\n".encode()})
    assert shared.settled("hashed", right).latest == right
    wrong = shared.deploy("hashed", {**HANDLER, "requirements.txt": f"hashdep==1.0 --hash=sha256:{'0' * 64}\n".encode()})
    assert "none of its files has a hash" in shared.reason("hashed", wrong)
    assert shared.settled("hashed", wrong).latest == right


def test_sources_are_built_when_the_version_says_so(shared: Platform, tmp_path: Path) -> None:
    shared.listed("sourced", "sourced-1.0.tar.gz").write_bytes(
        source("sourced", "def work(folder):\n    return {'extra.py': ''}\n")
    )
    files = {**HANDLER, "requirements.txt": b"sourced\n"}
    refused = shared.deploy("sources", files)
    assert "build = true" in shared.reason("sources", refused)
    built = shared.deploy("sources", files, build=True)
    assert shared.settled("sources", built).latest == built, shared.reason("sources", built)
    route = shared.route("sources")
    assert route
    layer = shared.layer(route.versions[0].package.dependencies, tmp_path / "layer")
    assert (layer / "extra.py").exists()
    assert (layer / "__pycache__" / "sourced.cpython-311.pyc").exists()
    assert "built here: sourced==1.0 sourced-1.0.tar.gz" in shared.store.functions.lock("acme", "sources", built)


def test_a_source_that_does_not_build_leaves_the_old_version_serving(shared: Platform) -> None:
    spy = "import os, json\ndef work(folder):\n    raise SystemExit('saw ' + json.dumps(dict(os.environ)))\n"
    shared.listed("spying", "spying-1.0.tar.gz").write_bytes(source("spying", spy))
    first = shared.deploy("spies", HANDLER)
    shared.settled("spies", first)
    second = shared.deploy("spies", {**HANDLER, "requirements.txt": b"spying\n"}, build=True)
    reason = shared.reason("spies", second)
    assert "saw {" in reason
    assert "hunter2" not in reason
    assert str(shared.settings.state) not in reason
    assert shared.settled("spies", second).latest == first


def test_sources_that_do_not_compile_are_told_by_line(shared: Platform) -> None:
    broken = shared.deploy("broken", {"handler.py": b"def f(e, c):\n    return (\n", "fine.py": b""})
    assert "handler.py does not compile, line" in shared.reason("broken", broken)
    elsewhere = shared.deploy("broken", {**HANDLER, "old_python.py": b"print 'two'\n"})
    assert shared.settled("broken", elsewhere).latest == elsewhere


def test_a_source_made_to_break_the_compiler_breaks_nothing_else(shared: Platform) -> None:
    deep = b"x = " + b"(" * 100_000 + b")" * 100_000
    number = shared.deploy("deep", {**HANDLER, "deep.py": deep, "long.py": b"x = " + b"-" * 3_000_000 + b"1"})
    assert shared.settled("deep", number).latest == number


def test_a_handler_that_is_not_there_fails_the_version(shared: Platform) -> None:
    number = shared.deploy("absent", HANDLER, handler="absent:f")
    assert "no module 'absent'" in shared.reason("absent", number)


def test_removal_and_keys_reach_the_routes(shared: Platform) -> None:
    made = shared.store.keys.make_key("acme", "ci", time.time())
    shared.wait(lambda: shared.redis.hlen(KEYS_KEY) == 1, "the key")
    shared.store.keys.revoke_key("acme", made.key_id, time.time())
    shared.wait(lambda: shared.redis.hlen(KEYS_KEY) == 0, "the key's end")
    shared.settled("removed", shared.deploy("removed", HANDLER))
    shared.store.functions.remove("acme", "removed", time.time())
    shared.wait(lambda: shared.route("removed") is None, "the removal")
    again = shared.deploy("removed", HANDLER)
    assert shared.settled("removed", again).latest == again == 2
    assert shared.route("removed") is not None


def test_a_valkey_that_dies_and_comes_back_loses_no_deploy(platform: Platform) -> None:
    platform.settled("f", platform.deploy("f", HANDLER))
    platform.stop(signal.SIGKILL, platform.valkey)
    number = platform.deploy("f", {**HANDLER, "x.py": b""})
    platform.start_valkey()
    assert platform.settled("f", number).latest == number
    route = platform.route("f")
    assert route is not None
    assert route.latest == number


def test_a_valkey_that_comes_back_empty_gets_its_routes_again(platform: Platform) -> None:
    for name in ("f", "g"):
        platform.settled(name, platform.deploy(name, HANDLER))
    platform.store.keys.make_key("acme", "ci", time.time())
    platform.wait(lambda: platform.redis.hlen(KEYS_KEY) == 1, "the key")
    platform.redis.flushall()
    platform.wait(lambda: platform.redis.exists(SEQUENCE_KEY), "the routes again")
    assert platform.route("f") is not None
    assert platform.route("g") is not None
    assert platform.redis.hlen(KEYS_KEY) == 1
    number = platform.deploy("f", {**HANDLER, "x.py": b""})
    assert platform.settled("f", number).latest == number


def test_a_flow_that_is_killed_in_the_middle_goes_on_where_it_was(platform: Platform) -> None:
    platform.settled("warm-up", platform.deploy("warm-up", HANDLER))
    numbers = {name: platform.deploy(name, {**HANDLER, "big.py": b"x = 1\n" * 200_000}) for name in ("f", "g", "h")}
    platform.wait(lambda: list((platform.settings.state / "flow").glob("build-*")), "a build")
    platform.stop(signal.SIGKILL, platform.flow)
    platform.start_flow()
    for name, number in numbers.items():
        assert platform.settled(name, number).latest == number
    platform.wait(lambda: not list((platform.settings.state / "flow").glob("build-*")), "nothing left of the dead builds")


def test_a_flow_that_is_killed_while_it_builds_a_source_leaves_nothing_and_builds_again(platform: Platform) -> None:
    mark = f"built-{time.monotonic_ns()}"
    work = f"""
import os, subprocess, sys
def work(folder):
    subprocess.run([sys.executable, "-c", "import time; time.sleep(6)", {mark!r}])
    return {{}}
"""
    platform.listed("lasting", "lasting-1.0.tar.gz").write_bytes(source("lasting", work))
    number = platform.deploy("f", {**HANDLER, "requirements.txt": b"lasting\n"}, build=True)

    def building() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark.encode() in path.read_bytes():
                    found.append(path.parent.name)
        return found

    platform.wait(building, "the build")
    first = set(building())
    platform.stop(signal.SIGKILL, platform.flow)
    platform.wait(lambda: not first & set(building()), "the build's end")
    platform.start_flow()
    assert platform.settled("f", number).latest == number, platform.reason("f", number)
    platform.wait(lambda: not list((platform.settings.state / "flow").glob("build-*")), "nothing left of the dead build")
    assert not building()


def test_sigterm_ends_flow_well_even_while_valkey_is_away(platform: Platform) -> None:
    platform.settled("f", platform.deploy("f", HANDLER))
    platform.stop(signal.SIGTERM, platform.flow)
    assert platform.flow is not None
    assert platform.flow.returncode == 0
    platform.start_flow()
    platform.settled("f", platform.deploy("f", {**HANDLER, "x.py": b""}))
    platform.stop(signal.SIGKILL, platform.valkey)
    platform.wait(lambda: "broker.away" in platform.log.read_text(), "flow notices")
    platform.stop(signal.SIGTERM, platform.flow)
    assert platform.flow.returncode == 0


def test_sigterm_while_flow_starts_ends_it(platform: Platform) -> None:
    for pause_s in (0.2, 0.4, 0.6, 0.8, 1.0):
        platform.stop(signal.SIGTERM, platform.flow)
        platform.start_flow()
        time.sleep(pause_s)
        platform.stop(signal.SIGTERM, platform.flow)
        assert platform.flow is not None
        assert platform.flow.returncode in (0, -signal.SIGTERM), "before Python runs our first line, the signal itself ends it"


def test_no_secret_reaches_the_log(platform: Platform) -> None:
    made = platform.store.keys.make_key("acme", "ci", time.time())
    platform.wait(lambda: platform.redis.hlen(KEYS_KEY) == 1, "the key")
    text = platform.log.read_text()
    assert made.token not in text
    assert "hunter2" not in text
    assert FunctionId("acme/f") not in platform.redis.hgetall(KEYS_KEY)


# -- instances before traffic


def test_the_route_waits_for_the_instances_a_version_asks_for(shared: Platform) -> None:
    with shared.node() as node:
        node.call(node.rig.driver.init_turn.close)
        number = shared.deploy("ahead", HANDLER, instances=2)
        shared.wait(lambda: shared.condition("ahead", number, "capacity")[1] == "0 of 2 instances ready", "two are started")
        assert shared.condition("ahead", number, "code")[0] == "true"
        assert shared.route("ahead") is None
        node.call(node.rig.driver.init_turn.open)
        assert shared.settled("ahead", number).latest == number
        assert shared.condition("ahead", number, "capacity") == ("true", "2 instances started")
        assert node.count(f"acme/ahead:{number}").idle == 2
        shared.all_closed()
        shared.store.functions.remove("acme", "ahead", time.time())
        shared.nudge.give()
        shared.wait(lambda: node.count(f"acme/ahead:{number}").idle == 0, "they go with the function")


def test_an_init_that_fails_leaves_the_old_version_serving(shared: Platform) -> None:
    with shared.node() as node:
        old = shared.deploy("failing", HANDLER, instances=1)
        assert shared.settled("failing", old).latest == old
        node.rig.driver.init_error = InitFailed({"type": "KeyError", "message": "'TOKEN'", "stack": ""})
        new = shared.deploy("failing", {**HANDLER, "x.py": b""}, instances=2)
        described = shared.settled("failing", new)
        assert (described.latest, described.versions[0].state) == (old, "failed")
        assert shared.condition("failing", new, "capacity") == ("false", "an instance did not start: KeyError: 'TOKEN'")
        shared.all_closed()
        assert node.count(f"acme/failing:{old}").idle == 1
        shared.wait(lambda: len(node.rig.driver.instances) == 1, "nothing of the new one stays")


def test_a_node_that_is_away_is_waited_for(shared: Platform) -> None:
    number = shared.deploy("patient", HANDLER, instances=1)
    shared.wait(lambda: "no node is reachable" in shared.condition("patient", number, "capacity")[1], "it is told")
    with shared.node():
        assert shared.settled("patient", number).latest == number


# -- in the middle


CLAIMED = text("SELECT 1 FROM deliveries WHERE module = :module AND tries > 0 AND done IS NULL")
HELD = "LOCK TABLE conditions, deliveries, events, functions, versions IN EXCLUSIVE MODE NOWAIT"


def killed_in_a_task_of(platform: Platform, module: Module) -> bool:
    """Kills flow while a task of the module stands at its first write, which another transaction keeps it from.

    False when the task was quicker, or something else was writing; flow goes on then.
    """
    assert platform.flow is not None
    url = spoken(platform.settings.effective_database_url)
    sqlite = url.get_backend_name() == "sqlite"
    options = {"timeout": 0.2, "isolation_level": None} if sqlite else {}
    engine = create_engine(url, connect_args=options, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as writer:

        def claimed() -> bool:
            return writer.execute(CLAIMED, {"module": module.value}).first() is not None

        deadline = time.monotonic() + 5
        while not claimed():
            if time.monotonic() > deadline:
                return False
        platform.flow.send_signal(signal.SIGSTOP)
        try:
            writer.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
            if not sqlite:
                writer.exec_driver_sql(HELD)
            held = claimed()
        except DBAPIError:
            held = False
        platform.flow.send_signal(signal.SIGCONT)
        if held:
            time.sleep(0.3)  # whatever it does before its first write is done
            platform.stop(signal.SIGKILL, platform.flow)
            held = claimed()
        with contextlib.suppress(DBAPIError):
            writer.exec_driver_sql("ROLLBACK")
    return held


def test_a_flow_that_is_killed_in_a_task_of_any_module_does_it_again(platform: Platform) -> None:
    platform.settled("warm-up", platform.deploy("warm-up", HANDLER))
    for module in Module:
        for attempt in range(20):
            platform.all_closed()
            number = platform.deploy("f", {**HANDLER, "x.py": f"{module}{attempt}".encode()})
            if killed_in_a_task_of(platform, module):
                break
        else:
            pytest.fail(f"never caught a task of {module}")
        platform.start_flow()
        assert platform.settled("f", number).latest == number
        platform.all_closed()
        route = platform.route("f")
        assert route is not None
        assert route.latest == number


def test_instances_a_killed_flow_had_begun_are_not_begun_again(platform: Platform) -> None:
    with platform.node() as node:
        driver = node.rig.driver
        node.call(driver.init_turn.close)
        number = platform.deploy("f", HANDLER, instances=3)
        platform.wait(lambda: driver.init_turn.waiting == 3, "three are started")
        node.call(driver.init_turn.pass_one)
        platform.wait(lambda: node.count(f"acme/f:{number}").idle == 1, "one is ready")
        platform.restart_flow()
        platform.wait(lambda: platform.condition("f", number, "capacity")[1] == "1 of 3 instances ready", "it goes on")
        node.call(driver.init_turn.open)
        assert platform.settled("f", number).latest == number
        platform.all_closed()
        assert node.count(f"acme/f:{number}").idle == 3
        assert len(driver.clones) == 3


def test_a_removal_while_instances_are_started_leaves_none(platform: Platform) -> None:
    with platform.node() as node:
        driver = node.rig.driver
        node.call(driver.init_turn.close)
        platform.deploy("f", HANDLER, instances=2)
        platform.wait(lambda: driver.init_turn.waiting == 2, "two are started")
        platform.store.functions.remove("acme", "f", time.time())
        platform.nudge.give()
        platform.wait(lambda: not driver.instances, "they are given up")
        again = platform.deploy("f", HANDLER, instances=1)
        node.call(driver.init_turn.open)
        assert platform.settled("f", again).latest == again == 2
        platform.all_closed()
        assert len(driver.instances) == 1


def test_a_flow_that_is_killed_while_a_removal_gives_up_instances_gives_them_up(platform: Platform) -> None:
    with platform.node() as node:
        number = platform.deploy("f", HANDLER, instances=2)
        platform.settled("f", number)
        platform.stop(signal.SIGKILL, platform.flow)
        platform.store.functions.remove("acme", "f", time.time())
        platform.start_flow()
        platform.wait(lambda: not node.rig.driver.instances, "they are given up")
        platform.all_closed()
        assert platform.route("f") is None


def test_removals_and_deploys_while_everything_is_in_flight(shared: Platform) -> None:
    slow = {**HANDLER, "big.py": b"y = 2\n" * 100_000}
    for round_number in range(3):
        shared.deploy("flight", {**slow, "x.py": str(round_number).encode()})
        if round_number == 1:
            shared.deploy("flight", HANDLER)
        shared.store.functions.remove("acme", "flight", time.time())
        last = shared.deploy("flight", {**HANDLER, "x.py": b"last"})
        shared.nudge.give()
        assert shared.settled("flight", last).latest == last
        shared.all_closed()
        route = shared.route("flight")
        assert route is not None
        assert [spec.version for spec in route.versions] == [f"acme/flight:{last}"]
        shared.store.functions.remove("acme", "flight", time.time())
        shared.nudge.give()
        shared.wait(lambda: shared.route("flight") is None, "the removal")


def test_a_flow_that_is_killed_at_any_moment_ends_right(platform: Platform) -> None:
    platform.settled("warm-up", platform.deploy("warm-up", HANDLER))
    moments = random.Random(20)
    newest: dict[str, int] = {}
    for round_number in range(5):
        for name in ("f", "g"):
            newest[name] = platform.deploy(name, {**HANDLER, "x.py": str(round_number).encode()})
        if round_number == 2:
            platform.store.functions.remove("acme", "g", time.time())
            newest["g"] = platform.deploy("g", HANDLER)
        time.sleep(moments.uniform(0, 0.4))
        platform.restart_flow()
    for name, number in newest.items():
        assert platform.settled(name, number).latest == number
        route = platform.route(name)
        assert route is not None
        assert route.latest == number
    platform.all_closed()


# -- given up


def test_a_poison_event_is_parked_and_told_and_a_retry_ends_it(platform: Platform) -> None:
    """The code store loses the package; it comes back after the event was given up."""
    kept = platform.settings.state / "kept"
    package = platform.upload({**HANDLER, "x.py": b"poison"})
    platform.settings.origin_folder.rename(kept)
    settings = VersionSettings(package, "handler:f", "event", "python3.11", 128, 30.0, 1)
    platform.store.functions.put("acme", "f", settings, time.time())
    platform.nudge.give()

    def parked() -> object:
        with platform.store.database.write() as session:  # time passes: the pauses between the tries are left out
            tried = (Delivery.module == Module.FUNCTION_MANAGEMENT, Delivery.tries < 10, Delivery.reason != "")
            session.execute(update(Delivery).where(*tried).values(due=1))
        time.sleep(0.05)
        return platform.store.outbox.unfinished("acme", parked=True)

    platform.wait(parked, "it is parked")
    (event,) = platform.store.outbox.unfinished("acme", parked=True)
    status, reason = platform.condition("f", 1, "code")
    assert status == "false"
    assert f"`foreglow events retry {event.id}`" in reason
    assert event.reason in reason
    platform.wait(lambda: "event.parked" in platform.log.read_text(), "it is told")  # after it was written down
    shutil.rmtree(platform.settings.origin_folder, ignore_errors=True)
    kept.rename(platform.settings.origin_folder)
    assert platform.store.outbox.redrive(time.time(), "acme") == [event.id]
    platform.nudge.give()
    assert platform.settled("f", 1).latest == 1
    platform.all_closed()

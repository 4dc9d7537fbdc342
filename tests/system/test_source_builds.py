"""Source builds in real sandboxes, as every tier this user can have: what is built works, what attacks gets nothing and leaves
nothing."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.package_indexes import PackageIndex, package_index, source, wheel

from orchestrator.flow.dependencies import BuildFailed, BuildInterrupted, Busy, Installer, NoWheels
from orchestrator.flow.source_builds import SourceBuilder
from orchestrator.flow.wheels import Wheels
from workers.code.layers import Limits
from workers.drivers.process import confinement, tiers
from workers.drivers.process.confining import Confines
from workers.drivers.process.interpreter import Interpreter, find_interpreter
from workers.drivers.process.tiers import Tier

pytestmark = pytest.mark.system

SECRET = "hunter2-of-the-platform"
CONFINES = Confines(seconds=60, memory_mb=512, disk_mb=256)
GONE_S = 20.0
BEGUN_S = 120.0


class Workshop:
    """A builder on an index of the test's own, with what an attacker would like beside it."""

    def __init__(self, folder: Path, index: PackageIndex, interpreter: Interpreter) -> None:
        self.folder = folder
        self.index = index
        self.interpreter = interpreter
        self.state = folder / "state"
        self.state.mkdir()
        (self.state / "cluster.key").write_text(SECRET)
        self._builders: list[SourceBuilder] = []

    def builder(self, confines: Confines = CONFINES, hosts: tuple[str, ...] = (), url: str = "") -> SourceBuilder:
        environment = {"UV_DEFAULT_INDEX": url or self.index.url, "SECRET": SECRET}
        made = SourceBuilder(self.interpreter, self.folder, confines, hosts, environment)
        self._builders.append(made)
        return made

    def build(self, name: str, work: str = "", confines: Confines = CONFINES, tenant: str = "acme") -> Wheels:
        if work:
            self.index.add(name, f"{name}-1.0.tar.gz", source(name, work))
        return self.builder(confines).build(tenant, [name], self.fresh())

    def fresh(self) -> Path:
        into = Path(tempfile.mkdtemp(dir=self.folder)) / "wheels"
        into.mkdir()
        return into

    def close(self) -> None:
        for builder in self._builders:
            builder.close()


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    return find_interpreter()


@pytest.fixture(params=[pytest.param("root", marks=pytest.mark.needs_root), "userns"])
def workshop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, interpreter: Interpreter) -> Iterator[Workshop]:
    possible = [tier for tier in tiers.candidates() if tier.name == request.param]
    assert possible, request.param
    monkeypatch.setattr(confinement.tiers, "candidates", lambda: possible)
    folder = Path(tempfile.mkdtemp(prefix="fg-build-"))
    with package_index() as index:
        made = Workshop(folder, index, interpreter)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(folder)
    assert folder.name not in Path("/proc/self/mountinfo").read_text()


def processes_with(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def eventually(condition: Callable[[], object], what: str, limit_s: float = GONE_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def inside(wheels: Wheels, file: str) -> str:
    """A file of the one wheel that was built."""
    (path,) = wheels.folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.read(file).decode()


def test_what_has_no_wheel_is_built_locked_and_installed(workshop: Workshop, tmp_path: Path) -> None:
    digest = workshop.index.add("sourced", "sourced-1.0.tar.gz", source("sourced", requires="Requires-Dist: wheeled\n"))
    workshop.index.add("wheeled", "wheeled-2.0-py3-none-any.whl", wheel("wheeled", "2.0"))
    wheels = workshop.builder().build("acme", ["sourced"], workshop.fresh())
    assert list(wheels.pins) == ["sourced==1.0", "wheeled==2.0"]
    assert list(wheels.built) == [f"sourced==1.0 sourced-1.0.tar.gz {digest}"]
    assert [path.name for path in wheels.folder.iterdir()] == ["sourced-1.0-py3-none-any.whl"]


def test_the_lock_holds_what_was_built_and_installs(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", workshop.index.url)
    digest = workshop.index.add("sourced", "sourced-1.0.tar.gz", source("sourced", requires="Requires-Dist: wheeled\n"))
    workshop.index.add("wheeled", "wheeled-2.0-py3-none-any.whl", wheel("wheeled", "2.0"))
    installer = Installer(workshop.interpreter.executable, tmp_path / "cache")
    with pytest.raises(NoWheels):
        installer.resolve(["sourced"], tmp_path)
    wheels = workshop.builder().build("acme", ["sourced"], workshop.fresh())
    lock = installer.resolve(["sourced"], tmp_path, wheels)
    assert f"# built here: sourced==1.0 sourced-1.0.tar.gz {digest}" in lock
    assert "wheeled==2.0 \\\n    --hash=sha256:" in lock
    installer.install(lock, tmp_path / "target", Limits(), wheels)
    assert sorted(path.name for path in (tmp_path / "target").glob("*.py")) == ["sourced.py", "wheeled.py"]
    with (wheels.folder / "sourced-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BuildFailed, match=r"[Hh]ash"):
        installer.install(lock, tmp_path / "again", Limits(), wheels)


HOSTILE = """
import ctypes, json, os, socket, urllib.request

def attempt(do):
    try:
        return repr(do())[:300]
    except BaseException as error:
        return "refused " + type(error).__name__

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(3)
        s.connect(address)
        return "connected"

def reached(path):
    with open(path, "rb") as file:
        return file.read(200)

def work(folder):
    libc = ctypes.CDLL(None, use_errno=True)
    seen = " ".join(
        reached(f"/proc/{pid}/{name}").decode(errors="replace")
        for pid in os.listdir("/proc") if pid.isdigit()
        for name in ("environ", "cmdline")
    )
    told = {
        "key": attempt(lambda: reached(STATE + "/cluster.key")),
        "key by the init's root": attempt(lambda: reached("/proc/1/root" + STATE + "/cluster.key")),
        "state": attempt(lambda: os.listdir(STATE)),
        "loopback": attempt(lambda: connect(socket.AF_INET, ("127.0.0.1", PORT))),
        "loopback 6": attempt(lambda: connect(socket.AF_INET6, ("::1", PORT))),
        "metadata": attempt(lambda: connect(socket.AF_INET, ("169.254.169.254", 80))),
        "elsewhere": attempt(lambda: connect(socket.AF_INET, ("192.0.2.1", 443))),
        "abstract": attempt(lambda: connect(socket.AF_UNIX, ABSTRACT)),
        "unix": attempt(lambda: connect(socket.AF_UNIX, STATE + "/control.sock")),
        "vsock": attempt(lambda: socket.socket(40, socket.SOCK_STREAM)),
        "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
        "packet": attempt(lambda: socket.socket(17, socket.SOCK_RAW)),
        "door, another host": attempt(lambda: urllib.request.urlopen(
            urllib.request.Request("http://127.0.0.1:3141/", headers={"Host": "169.254.169.254"}), timeout=5)),
        "door, another path": attempt(lambda: urllib.request.urlopen("http://127.0.0.1:3141/api/v1/secrets", timeout=5)),
        "door, up": attempt(lambda: urllib.request.urlopen("http://127.0.0.1:3141/0/../../etc/passwd", timeout=5)),
        "door, as a proxy": attempt(lambda: urllib.request.build_opener(urllib.request.ProxyHandler(
            {"http": "http://127.0.0.1:3141"})).open("http://169.254.169.254/latest/meta-data", timeout=5)),
        "door, posting": attempt(lambda: urllib.request.urlopen("http://127.0.0.1:3141/0/evil/", data=b"x", timeout=5)),
        "write /": attempt(lambda: open("/proof", "w")),
        "write /usr": attempt(lambda: open("/usr/bin/proof", "w")),
        "write the tools": attempt(lambda: open("/opt/build/uv", "r+b")),
        "sysctl": attempt(lambda: open("/proc/sys/kernel/core_pattern", "w")),
        "sysrq": attempt(lambda: open("/proc/sysrq-trigger", "w")),
        "setuid": attempt(lambda: os.setuid(0)),
        "chroot": attempt(lambda: os.chroot("/tmp")),
        "mount": attempt(lambda: os.strerror(ctypes.get_errno()) if libc.mount(b"t", b"/mnt", b"tmpfs", 0, None) else 1 / 0),
        "unshare": attempt(lambda: os.strerror(ctypes.get_errno()) if libc.unshare(0x10000000) else 1 / 0),
        "kill the init": attempt(lambda: os.kill(1, 9)),
        "kill all": attempt(lambda: os.kill(-1, 0)),
    }
    return {"told.json": json.dumps(told), "seen.txt": seen, "mine.json": json.dumps(dict(os.environ)),
            "others.json": json.dumps([p for p in os.listdir("/proc") if p.isdigit()]), "root.json": json.dumps(os.listdir("/"))}
"""
LOUD = {"mount": "'Operation not permitted'", "unshare": "'Operation not permitted'"}


def test_a_hostile_build_sees_and_reaches_nothing(workshop: Workshop) -> None:
    abstract = f"\0fg-{os.getpid()}-{time.monotonic_ns()}"
    workshop.state.chmod(0o755)
    with (
        socket.create_server(("127.0.0.1", 0)) as control,
        socket.socket(socket.AF_UNIX) as hidden,
        socket.socket(socket.AF_UNIX) as named,
    ):
        hidden.bind(abstract)
        hidden.listen()
        named.bind(f"{workshop.state}/control.sock")
        named.listen()
        values = {"STATE": str(workshop.state), "PORT": control.getsockname()[1], "ABSTRACT": abstract}
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        wheels = workshop.build("evil", given + HOSTILE)
    told = json.loads(inside(wheels, "told.json"))
    told.pop("kill the init"), told.pop("kill all")  # allowed, and of no effect: the wheel is here
    for what, answer in told.items():
        assert answer == LOUD.get(what, answer), what
        assert answer.startswith("refused") or what in LOUD, (what, answer)
    everything = inside(wheels, "seen.txt") + inside(wheels, "mine.json")
    assert SECRET not in everything
    assert str(workshop.folder) not in everything
    assert len(json.loads(inside(wheels, "others.json"))) < 10, "its own processes only"
    assert not {"work", "home", "root", "srv", "var/lib"} & set(json.loads(inside(wheels, "root.json")))
    assert not {path for path, _ in workshop.index.asked} - {"/simple/evil/", "/files/evil/evil-1.0.tar.gz"}


def test_credentials_of_the_index_are_used_and_never_seen(workshop: Workshop) -> None:
    look = """
import json, os, urllib.request
def work(folder):
    page = urllib.request.urlopen("http://127.0.0.1:3141/0/private/", timeout=5)
    return {"seen.txt": page.read().decode() + str(page.headers) + json.dumps(dict(os.environ)) + os.popen("mount").read()}
"""
    workshop.index.credentials = f"operator:{SECRET}"
    workshop.index.add("private", "private-1.0.tar.gz", source("private", look))
    url = workshop.index.url.replace("://", f"://operator:{SECRET}@")
    wheels = workshop.builder(url=url).build("acme", ["private"], workshop.fresh())
    seen = inside(wheels, "seen.txt")
    assert "/file/" in seen
    for hidden in (SECRET, "operator", str(workshop.index.port)):
        assert hidden not in seen
    assert all(right for _, right in workshop.index.asked)


def test_files_elsewhere_are_refused_unless_the_operator_names_the_host(workshop: Workshop) -> None:
    with package_index() as other:
        other.add("far", "far-1.0.tar.gz", b"")
        workshop.index.add("far", "far-1.0.tar.gz", source("far"))
        workshop.index.elsewhere["far-1.0.tar.gz"] = f"http://127.0.0.1:{other.port}/files/far/far-1.0.tar.gz"
        builder = workshop.builder()
        with pytest.raises(BuildFailed, match=r"127\.0\.0\.1, which is not among the build_hosts"):
            builder.build("acme", ["far"], workshop.fresh())
        workshop.index.elsewhere.clear()
        workshop.index.moved["/files/far/far-1.0.tar.gz"] = f"http://127.0.0.1:{other.port}/files/far/far-1.0.tar.gz"
        with pytest.raises(BuildFailed, match="sends this elsewhere"):
            builder.build("acme", ["far"], workshop.fresh())
        assert other.asked == []


BOMB = """
import os, time
def work(folder):
    made = 0
    while True:
        try:
            if os.fork() == 0:
                os.closerange(0, 256)  # else whoever reads its output waits for these, and the build for its limit of time
                time.sleep(600)
        except OSError:
            time.sleep(10)  # its keeper looks at it once a second at the latest
            raise
"""
FILL = """
def work(folder):
    with open("/tmp/fill", "wb") as file:
        try:
            while True:
                file.write(b"x" * (1 << 20))
        finally:
            import time
            time.sleep(10)
"""
EAT = """
def work(folder):
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 16) * 160))
"""
SLEEP = "import time\ndef work(folder):\n    time.sleep(10_000)\n"
SHOUT = """
def work(folder):
    for _ in range(20_000):
        print("x" * 1000, flush=True)
    raise SystemExit("error: shouted enough")
"""


@pytest.mark.parametrize(
    ("work", "confines", "reason"),
    [
        (BOMB, CONFINES, "processes: it started more than 128"),
        (FILL, CONFINES, "disk: it wrote more than 256 MB"),
        (EAT, CONFINES, "memory: it needed more than 512 MB"),
        (SLEEP, Confines(4, 512, 256), "it was not done within 4 s"),
        (SHOUT, CONFINES, "shouted enough"),
    ],
    ids=["fork bomb", "full disk", "memory", "sleep", "output"],
)
def test_limits_end_a_build_and_the_reason_is_told(workshop: Workshop, work: str, confines: Confines, reason: str) -> None:
    mark = "/opt/build/wheelwright.py"
    before = set(processes_with(mark))
    with pytest.raises(BuildFailed) as failed:
        workshop.build("greedy", work, confines)
    assert reason in str(failed.value)
    assert len(str(failed.value)) < 5000
    eventually(lambda: not set(processes_with(mark)) - before, "a process is left")


def test_a_daemon_does_not_outlive_its_build(workshop: Workshop) -> None:
    mark = f"daemon-{time.monotonic_ns()}"
    wheels = workshop.build(
        "daemons",
        f"""
import os, signal, subprocess, sys
def work(folder):
    for number in (1, 2, 15):
        signal.signal(number, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", {mark!r}], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {{"here.txt": "yes"}}
""",
    )
    assert inside(wheels, "here.txt") == "yes"
    assert processes_with(mark) == []


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        ("os.symlink('/etc/passwd', OUT + '/linked-1.0-py3-none-any.whl')", "linked"),
        ("os.link('/tmp/wheels/' + os.listdir('/tmp/wheels')[0], OUT + '/hard-1.0-py3-none-any.whl') or time.sleep(0)", "plain"),
        ("os.mkfifo(OUT + '/fifo-1.0-py3-none-any.whl')", "Operation not permitted"),
        ("os.mkdir(OUT + '/folder-1.0-py3-none-any.whl')", "folder"),
        ("open(OUT + '/evil.pth', 'w').write('import os')", "no wheel"),
        ("open(OUT + '/../up-1.0-py3-none-any.whl', 'w')", ""),
        ("open(OUT + '/huge-1.0-py3-none-any.whl', 'w').truncate(200 << 20) "
         "and [os.link(OUT + '/huge-1.0-py3-none-any.whl', OUT + f'/h{n}-1.0-py3-none-any.whl') for n in range(5)]", "plain"),
        ("[open(OUT + f'/n{n}-1.0-py3-none-any.whl', 'w') for n in range(600)]", "603 files, the limit is 500"),
    ],
)  # fmt: skip
def test_only_plain_wheels_come_out(workshop: Workshop, leave: str, reason: str) -> None:
    work = (
        "import os, subprocess, sys, time\nOUT = '/tmp/out'\nopen('/tmp/wheels/spare', 'w')\n"
        f"def work(folder):\n    {leave}\n    return {{}}\n"
    )
    if not reason:
        assert workshop.build("leaver", work)
        assert not list(workshop.folder.rglob("up-1.0*"))
        return
    with pytest.raises(BuildFailed, match=reason):
        workshop.build("leaver", work)


def test_a_c_extension_is_compiled_where_there_is_a_compiler(workshop: Workshop) -> None:
    headers = subprocess.run(
        [workshop.interpreter.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if shutil.which("gcc", path="/usr/bin") is None or not os.path.exists(f"{headers}/Python.h"):
        pytest.skip("no C compiler or no headers of the runtime here")
    tag = f"cp311-cp311-linux_{os.uname().machine}"
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if sys.version_info[:2] == (3, 11) else ".cpython-311-x86_64-linux-gnu.so"
    code = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native_part", 0, -1, 0};
PyMODINIT_FUNC PyInit_native_part(void) { return PyModule_Create(&module); }
"""
    work = f"""
import subprocess
def work(folder):
    open("/tmp/n.c", "w").write({code!r})
    subprocess.run(["gcc", "-shared", "-fPIC", "-I", {headers!r}, "-o", "/tmp/n.so", "/tmp/n.c"], check=True)
    return {{"native_part{suffix}": open("/tmp/n.so", "rb").read()}}
"""
    workshop.index.add("native", "native-1.0.tar.gz", source("native", work, tag=tag))
    wheels = workshop.builder().build("acme", ["native"], workshop.fresh())
    (built,) = wheels.folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(wheels.folder / "x")
    command = [
        workshop.interpreter.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(wheels.folder / 'x')!r}); import native_part",
    ]
    assert subprocess.run(command, check=False).returncode == 0


def test_an_index_that_is_away_is_tried_again_later(workshop: Workshop) -> None:
    workshop.index.broken = True
    with pytest.raises(BuildInterrupted, match="HTTP 503"):
        workshop.build("absent")


WAIT = """
import time, urllib.request
def work(folder):
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:3141/0/enough/", timeout=60)
        except OSError:
            time.sleep(0.1)  # the index has no such project yet
        else:
            raise SystemExit("error: waited enough")
"""


def test_one_build_a_tenant_at_a_time(workshop: Workshop) -> None:
    workshop.index.add("slow", "slow-1.0.tar.gz", source("slow", WAIT))
    workshop.index.add("quick", "quick-1.0.tar.gz", source("quick"))
    builder = workshop.builder(Confines(300, 512, 256))  # one for all: it is what keeps a tenant's builds apart
    told: list[str] = []

    def build_slowly() -> None:
        with pytest.raises(BuildFailed) as failed:
            builder.build("acme", ["slow"], workshop.fresh())
        told.append(str(failed.value))

    first = threading.Thread(target=build_slowly)
    first.start()
    try:
        eventually(lambda: any("slow-1.0" in path for path, _ in workshop.index.asked), "the slow one began", BEGUN_S)
        with pytest.raises(Busy):
            builder.build("acme", ["quick"], workshop.fresh())
        assert builder.build("globex", ["quick"], workshop.fresh()).pins == ["quick==1.0"]
        assert not told, "the slow one goes on meanwhile"
    finally:
        workshop.index.add("enough", "enough-1.0.tar.gz", b"")
        first.join()
    assert "waited enough" in told[0]
    assert builder.build("acme", ["quick"], workshop.fresh()).pins == ["quick==1.0"]


def test_who_is_told_to_stop_does_not_wait_for_a_build(workshop: Workshop) -> None:
    workshop.index.add("slow", "slow-1.0.tar.gz", source("slow", SLEEP))
    environment = {"UV_DEFAULT_INDEX": workshop.index.url}
    builder = SourceBuilder(
        workshop.interpreter, workshop.folder, CONFINES, [], environment, lambda: len(workshop.index.asked) > 1
    )
    try:
        with pytest.raises(Busy):
            builder.build("acme", ["slow"], workshop.fresh())
    finally:
        builder.close()
    assert len(workshop.index.asked) > 1


def test_without_isolation_nothing_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interpreter: Interpreter) -> None:
    monkeypatch.setattr(confinement.tiers, "candidates", lambda: [Tier("none")])
    builder = SourceBuilder(interpreter, tmp_path, CONFINES, [], {})
    (tmp_path / "wheels").mkdir()
    with pytest.raises(BuildFailed, match="cannot isolate source builds"):
        builder.build("acme", ["anything"], tmp_path / "wheels")
    builder.close()


KILLED = """
import sys
from pathlib import Path
from orchestrator.flow.source_builds import SourceBuilder
from workers.drivers.process.confining import Confines
from workers.drivers.process.interpreter import find_interpreter

builder = SourceBuilder(find_interpreter(), Path(sys.argv[1]), Confines(300, 512, 256), [], {"UV_DEFAULT_INDEX": sys.argv[2]})
builder.build("acme", ["lasting"], Path(sys.argv[1]) / "wheels")
"""


def test_whoever_builds_is_killed_and_nothing_is_left(workshop: Workshop) -> None:
    mark = f"lasting-{time.monotonic_ns()}"
    work = f"""
import subprocess, sys
def work(folder):
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)", {mark!r}])
"""
    workshop.index.add("lasting", "lasting-1.0.tar.gz", source("lasting", work))
    (workshop.folder / "wheels").mkdir()
    process = subprocess.Popen([sys.executable, "-P", "-c", KILLED, str(workshop.folder), workshop.index.url])
    try:
        eventually(lambda: processes_with(mark), "the build began", BEGUN_S)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: not processes_with(mark), "the build goes on")
    eventually(lambda: not processes_with("confined.py"), "the keeper is left")
    assert workshop.build("again", "def work(folder):\n    return {}\n").pins == ["again==1.0"]

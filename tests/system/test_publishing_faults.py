"""Publishing while things break: killed at each step, the disk full, the origin away. Nothing half shows, and it completes."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from graph.ids import FunctionId
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, LayerRole, Module
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.packages import LayerView
from orchestrator.catalog.store import Store
from orchestrator.flow.building import Builder
from orchestrator.flow.dependencies import BuildInterrupted
from orchestrator.flow.function_management import FunctionManagement
from workers.code.archive import encode_listing, write_archive
from workers.code.chunks import chunk_key, unpack
from workers.code.layers import Source, assemble, verify
from workers.code.manifest import CHUNK_BYTES, hex_of
from workers.code.origin import Origin, OriginError
from workers.code.package import build_package
from workers.code.publishing import publish_layer

CLUSTER_KEY = b"the cluster's key"
KEY = chunk_key(CLUSTER_KEY, "acme")
F = FunctionId("acme/f")
NO_SOURCES: Any = None
"""Nothing here is built from source."""

pytestmark = pytest.mark.system

KILLED_AT_STEP = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.catalog.store import Store
from orchestrator.flow.building import Builder
from workers.code.objects import Objects

folder, step = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def dying(name):
    really = getattr(Objects, name)
    def counted(self, *args):
        global steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)  # what came before it has happened
        return really(self, *args)
    setattr(Objects, name, counted)

for one in ("put", "settle", "delete", "look", "list"):
    dying(one)
from workers.code.origin import Origin

store = Store(f"sqlite:///{folder / 'catalog.db'}")
origin = Origin((folder / "origin").as_uri())
builder = Builder(store.packages, origin, sys.argv[4].encode(), sys.executable, folder / "flow", None)
(package,) = [store.packages.find("acme", sys.argv[3])]
layer = builder.code_layer(package, "python3.11", "handler:f")
print(layer.digest)
"""


def upload(store: Store, origin: Origin, **files: bytes) -> str:
    body, out = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.py" if name.islower() else name, content)
    package = build_package(body, out)
    out.seek(0)
    origin.put_package("acme", package.listing, out)
    store.packages.register("acme", package.digest, len(files), package.listing.size, (), "", 1)
    return package.digest


def settings(package: str) -> VersionSettings:
    return VersionSettings(package, "handler:f", "event", "python3.11", 128, 30.0, 1)


def code(store: Store, number: int) -> tuple[ConditionStatus, str]:
    version = store.functions.describe_version("acme", "f", number)
    return next((one.status, one.reason) for one in version.conditions if one.name == ConditionName.CODE)


def deployed(number: int) -> OpenEvent:
    return OpenEvent(number, EventKind.DEPLOYED, str(F), number, {"number": number}, 1)


def whole(origin: Origin, digest: str, folder: Path) -> bool:
    manifest = origin.manifest("acme", digest)
    folder.mkdir()
    assemble(manifest, lambda chunk: unpack(KEY, chunk.name, origin.chunk("acme", digest, chunk.name)), folder)
    return verify(folder, digest, KEY)


def test_a_publish_killed_at_any_step_shows_nothing_half_and_completes(tmp_path: Path, store: Store) -> None:
    origin = Origin((tmp_path / "origin").as_uri())
    package = upload(store, origin, handler=b"def f(e, c): return e\n", BIG=os.urandom(2 * CHUNK_BYTES + 5))
    killed = 0
    for step in range(1, 60):
        run = subprocess.run(
            [sys.executable, "-c", KILLED_AT_STEP, str(tmp_path), str(step), package, CLUSTER_KEY.decode()],
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        for manifest in (tmp_path / "origin" / "layers").rglob("*.manifest"):
            assert whole(origin, f"sha256:{manifest.stem}", tmp_path / f"look{step}"), f"killed at step {step}"
        known = store.packages.find_layer("acme", LayerRole.CODE, package, "python3.11")
        assert known is None or origin.holds("acme", known.digest)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr.decode()
        killed += 1
    assert killed > 8
    assert known is not None
    assert run.stdout.decode().strip() == known.digest
    assert whole(origin, known.digest, tmp_path / "layer")
    assert not list((tmp_path / "flow").glob("build-*"))


def test_an_origin_that_is_away_makes_a_version_wait_and_says_so(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "origin"
    origin = Origin(folder.as_uri())
    package = upload(store, origin, handler=b"def f(e, c): return e\n")
    builder = Builder(store.packages, origin, CLUSTER_KEY, sys.executable, tmp_path / "flow", NO_SOURCES)
    management = FunctionManagement(store, builder)
    store.functions.put("acme", "f", settings(package), time.time())
    management.apply(deployed(1))
    assert code(store, 1)[0] == ConditionStatus.TRUE
    second = upload(store, origin, handler=b"def f(e, c): return 2\n")
    store.functions.put("acme", "f", settings(second), time.time())
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("no folder")
    with pytest.raises(BuildInterrupted):
        management.apply(deployed(2))
    status, reason = code(store, 2)
    assert status == ConditionStatus.UNKNOWN
    assert "the code store: " in reason
    assert "tried again" in reason
    assert code(store, 1)[0] == ConditionStatus.TRUE, "the version before is untouched"
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    management.apply(deployed(2))
    assert code(store, 2)[0] == ConditionStatus.TRUE


@pytest.mark.needs_root
def test_a_full_disk_ends_a_publish_with_its_reason_and_room_lets_it_complete(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        origin = Origin((folder / "origin").as_uri())
        small = publish_layer(origin, "acme", KEY, [Source("a.py", False, 1, lambda: io.BytesIO(b"1"))])
        content = os.urandom(4 << 20)
        large = [Source("large.bin", False, len(content), lambda: io.BytesIO(content))]
        with pytest.raises(OriginError, match=r"[Nn]o space"):
            publish_layer(origin, "acme", KEY, large)
        assert [path.stem for path in (folder / "origin" / "layers").rglob("*.manifest")] == [hex_of(small.digest)]
        subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
        assert whole(origin, publish_layer(origin, "acme", KEY, large).digest, tmp_path / "layer")
        assert origin.marks("acme") == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_layers_of_an_earlier_release_serve_and_come_into_todays_form_when_built_upon(tmp_path: Path, store: Store) -> None:
    """The state folder as the release before left it: packages and layers as archives, named by digests without a key."""
    origin, layers = Origin((tmp_path / "origin").as_uri()), tmp_path / "origin" / "layers" / "acme"
    layers.mkdir(parents=True)

    def leave(files: dict[str, bytes]) -> str:
        out = io.BytesIO()
        opened = [(path, content, lambda content=content: io.BytesIO(content)) for path, content in files.items()]
        listing = write_archive([Source(path, False, len(content), opener) for path, content, opener in opened], out)
        (layers / hex_of(listing.digest)).write_bytes(out.getvalue())
        (layers / f"{hex_of(listing.digest)}.manifest").write_bytes(encode_listing(listing))
        return listing.digest

    package = leave({"handler.py": b"def f(e, c): return e\n"})
    built = leave({"handler.py": b"def f(e, c): return e\n", "__pycache__/handler.cpython-311.pyc": b"bytecode"})
    store.packages.register("acme", package, 1, 22, (), "", 1)
    store.packages.add_layer("acme", LayerRole.CODE, package, "python3.11", LayerView(built, 30), 1)
    store.functions.put("acme", "f", settings(package), 1)
    store.functions.set_layers(F, 1, built, "", 30)
    builder = Builder(store.packages, origin, CLUSTER_KEY, sys.executable, tmp_path / "flow", NO_SOURCES)
    management = FunctionManagement(store, builder)
    store.functions.put("acme", "f", settings(package), 2)
    management.apply(deployed(2))
    assert code(store, 2)[0] == ConditionStatus.TRUE
    first, second = (store.functions.pending(F, number) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert first.spec.package.code == built, "a version does not change"
    assert second.spec.package.code != built
    assert whole(origin, second.spec.package.code, tmp_path / "layer")
    assert (tmp_path / "layer" / "__pycache__" / "handler.cpython-311.pyc").read_bytes() == b"bytecode"
    assert store.packages.kept("acme") == {package, built, second.spec.package.code}
    assert management.module == Module.FUNCTION_MANAGEMENT

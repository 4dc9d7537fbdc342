"""Programs that read tenants' files run apart: what one that was taken over sees, can do, and leaves."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.drivers.microvm.apart import Apart, ApartError, Limits
from workers.drivers.microvm.confinement import Confinement
from workers.drivers.microvm.disk import Disks, make_image
from workers.drivers.microvm.inline import inline

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

LIMITS = Limits(20.0, 1 << 30, 1 << 20)
PYTHON = os.path.realpath("/usr/bin/python3")
LOOKS = """
import json, os, sys
def tried(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
layer, fd = sys.argv[1], int(sys.argv[2])
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
seen = {
    "uid": status["Uid"].split(), "gid": status["Gid"].split(), "groups": status["Groups"].split(),
    "capabilities": [status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")],
    "no_new_privs": status["NoNewPrivs"].strip(),
    "root": sorted(os.listdir("/")),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "network": [line.split(":")[0].strip() for line in open("/proc/self/net/dev").readlines()[2:]],
    "read": open(layer + "/handler.py").read(),
    "write": tried(lambda: open(layer + "/new", "w")),
    "write usr": tried(lambda: open("/usr/new", "w")),
    "shadow": tried(lambda: open("/etc/shadow")),
    "environment": sorted(os.environ),
}
with open(f"/proc/self/fd/{fd}", "w") as out:
    json.dump(seen, out)
"""


@contextlib.contextmanager
def apart() -> Iterator[Apart]:
    confinement = Confinement()
    confinement.open()
    try:
        yield Apart(confinement)
    finally:
        confinement.close()


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    folder = tmp_path / "layer"
    (folder / "pack").mkdir(parents=True)
    (folder / "handler.py").write_text("x = 1\n")
    (folder / "pack" / "__init__.py").write_text("y = 'ü'\n")
    (folder / "bad.py").write_text("def (")
    tmp_path.chmod(0o700)  # as the node's folder is: nobody else gets there by its path
    return folder


def test_it_sees_what_it_is_given_and_is_nobody(layer: Path, tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with apart() as runs:
            before = len(os.listdir("/proc/self/fd"))
            runs.run([PYTHON, "-I", "-S", "-c", LOOKS, str(layer), str(out)], [layer], [out], LIMITS)
            assert len(os.listdir("/proc/self/fd")) == before
        seen = json.loads((tmp_path / "out").read_text())
        assert (os.fstat(out).st_uid, os.fstat(out).st_gid) == (0, 0)
    finally:
        os.close(out)
    assert len(set(seen["uid"])) == 1
    assert int(seen["uid"][0]) >= 100_000
    assert seen["gid"] == seen["uid"]
    assert seen["groups"] == []
    assert {int(one, 16) for one in seen["capabilities"]} == {0}
    assert seen["no_new_privs"] == "1"
    assert set(seen["root"]) <= {"usr", "dev", "proc", "etc", "bin", "lib", "lib32", "lib64", "libx32", "sbin", "tmp"}
    assert seen["processes"] == 1
    assert set(seen["network"]) <= {
        "lo",
        "sit0",
        "tunl0",
        "ip6tnl0",
        "gre0",
        "erspan0",
        "gretap0",
        "ip_vti0",
        "ip6_vti0",
        "ip6gre0",
    }
    assert seen["read"] == "x = 1\n"
    assert (seen["write"], seen["write usr"], seen["shadow"]) == ("OSError", "OSError", "FileNotFoundError")
    assert set(seen["environment"]) <= {"PATH", "LANG", "LC_CTYPE", "PWD", "OLDPWD"}


def test_disks_and_bytecode_made_apart_are_the_same(layer: Path, tmp_path: Path) -> None:
    with apart() as runs:
        make_image(layer, tmp_path / "one", runs)
        make_image(layer, tmp_path / "other")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
        disks = Disks(tmp_path / "disks", 1 << 20, 1 << 30, runs)
        os.close(disks.open(layer))
        version = "3.11" if "3.11" in PYTHON else ""
        made = inline(layer, version or "3.11", 1 << 20, apart=runs)
        assert made == inline(layer, version or "3.11", 1 << 20)
        assert made is not None
        assert len([path for path, _, _ in made.files if path.endswith(".pyc")]) == 2
    (image,) = (tmp_path / "disks").iterdir()
    assert (image.stat().st_uid, image.stat().st_mode & 0o777) == (0, 0o444)


@pytest.mark.parametrize(
    ("source", "limits", "says"),
    [
        ("import time; time.sleep(60)", Limits(1.0, 1 << 30, 1 << 20), "not done within 1 s"),
        ("while True: pass", Limits(1.0, 1 << 30, 1 << 20), "not done within 1 s|signal 24|signal 9"),
        ("import os\nwhile True: os.write(2, b'x' * 65536)", LIMITS, "x{400}|signal|exit|Broken"),
        ("x = bytearray(2 << 30)", LIMITS, "MemoryError"),
        ("import os\nos.write(OUT, bytes(2 << 20)); os.write(OUT, bytes(2 << 20))", LIMITS, "File too large"),
        ("import sys; sys.exit('no such thing')", LIMITS, "no such thing"),
    ],
)
def test_what_hangs_floods_or_fails_is_ended_and_says_why(tmp_path: Path, source: str, limits: Limits, says: str) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT, 0o600)
    began = time.monotonic()
    try:
        with apart() as runs, pytest.raises(ApartError, match=says):
            runs.run([PYTHON, "-I", "-S", "-c", source.replace("OUT", str(out))], [], [out], limits)
    finally:
        os.close(out)
    assert time.monotonic() - began < 30

"""kill -9 at each step of fetching and evicting, and a disk that is full."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.layers import CLUSTER_KEY, publish, version
from doubles.loop import in_loop, until

from workers.code.origin import Origin
from workers.code.room import Bounds
from workers.code.tier1 import Tier1
from workers.ports import CodeUnavailable

MIB = 1 << 20

STORY = """
import asyncio, os, signal, sys
from pathlib import Path
from doubles.layers import CLUSTER_KEY, version
from workers.code.chunks import chunk_key
from workers.code.layers import verify
from workers.code.origin import Origin
from workers.code.room import Bounds
from workers.code.tier1 import Tier1

FOLDER, ORIGIN, FIRST, SECOND, THIRD = sys.argv[1:]
STEPS = ("open", "os.rename", "os.mkdir", "os.chmod", "os.rmdir", "os.remove")

def die_at(number):
    left = [number]
    def hook(event, arguments):
        if event in STEPS and FOLDER in str(arguments[0]):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def run(fetch):
    tier = Tier1(Path(FOLDER), [Origin(ORIGIN)], CLUSTER_KEY, Bounds(total=100_000))
    asyncio.run(fetch(tier))
    tier.close()
    return tier

async def story(tier):
    # the second has no room beside the first, and the third has two layers
    for one in (version(FIRST), version(SECOND), version(THIRD, FIRST)):
        await tier.fetch(one)

async def check(tier):
    for layer in (Path(FOLDER) / "acme").glob("*"):
        assert "." not in layer.name, f"{layer} was left"
        assert verify(layer, f"sha256:{layer.name}", chunk_key(CLUSTER_KEY, "acme")), f"{layer} is not whole"
    await story(tier)

def in_child(work):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(3)
    os._exit(0)

def killed(number):
    die_at(number)
    run(story)

number = 0
while (code := in_child(lambda: killed(number))) == -signal.SIGKILL:
    assert in_child(lambda: run(check)) == 0, f"after a kill at step {number}"
    in_child(lambda: __import__("shutil").rmtree(FOLDER))
    number += 1
assert code == 0, code
print(number)
"""


def test_kill_9_at_each_step_leaves_whole_layers_only(tmp_path: Path) -> None:
    origin = Origin((tmp_path / "origin").as_uri())
    layers = [publish(origin, {"handler.py": letter * 60_000, "pkg/mod.py": letter}) for letter in (b"a", b"b", b"c")]
    command = [sys.executable, "-c", STORY, str(tmp_path / "code"), (tmp_path / "origin").as_uri(), *layers]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": tests}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = int(done.stdout.split()[-1])
    assert steps > 30, "each file, folder, mode and rename is a step"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.needs_root
@in_loop
async def test_on_a_full_disk_the_least_valued_go_and_then_it_is_refused_with_the_way_out(
    tmp_path: Path, small_disk: Path
) -> None:
    tier = Tier1(small_disk / "code", [origin := Origin((tmp_path / "origin").as_uri())], CLUSTER_KEY, Bounds())
    try:
        one, two, three, large = (
            version(publish(origin, {"handler.py": os.urandom(size)}), name=f"f{number}")
            for number, size in enumerate((MIB, MIB + 5, MIB + 7, 3 * MIB))
        )
        for _ in range(2):
            await tier.fetch(two)
        await tier.fetch(one)
        await tier.fetch(three)
        tier.pin(two)
        with pytest.raises(CodeUnavailable, match=r"disk is full.*FOREGLOW_NODE_CODE_BYTES"):
            await tier.fetch(large)
        assert tier.held(two)
        assert not tier.held(large)
        assert [path.name for path in (small_disk / "code").glob("acme/*") if "." in path.name] == []
        tier.unpin(two)
        assert (await tier.fetch(large)).source == "origin"
        assert not tier.held(two)
        assert tier.tally.evictions["disk"] == 3
        tier.bring("acme", [one, two])
        await until(lambda: tier.hosting.stopped)
        assert tier.held(large), "what comes ahead of need makes nothing go"
    finally:
        tier.close()

"""Real microVMs for tests: an image made once, a driver that several tests share, and what must be left after: nothing."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from doubles.loop import open_descriptors
from doubles.process_bench import Bench, command_of, descendants, descriptors_since, groups_of

from workers.drivers.microvm import taps
from workers.drivers.microvm.driver import MicroVmDriver
from workers.drivers.microvm.image import GuestImage, build

T = TypeVar("T")
ACCEL = "tcg"  # by name: what hardware offers here may not work
LIMIT_S = 120.0
NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "mkfs.erofs": "erofs-utils", "apt-get": "apt", "dpkg-deb": "dpkg"}
STANDIN = Path(__file__).with_name("standin_qemu.py")


def guest_image() -> GuestImage:
    """Made by whichever run on this machine comes first; needs Debian's package servers then, and never again."""
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: install Debian's {package}")
    own = f"{os.geteuid()}-{hashlib.sha256(__file__.encode()).hexdigest()[:8]}"  # another working copy has another image
    folder = os.environ.get("FOREGLOW_TEST_IMAGE") or f"{tempfile.gettempdir()}/foreglow-test-image-{own}"
    return build(Path(folder), lambda _text: None)


@contextlib.asynccontextmanager
async def microvms(folder: Path, image: GuestImage, **more: Any) -> AsyncIterator[Bench]:
    """A started driver. When it has stopped no process, descriptor or control group of it may be left."""
    before, children, groups = open_descriptors(), descendants(), set(groups_of(os.getpid()))
    made = MicroVmDriver(folder / "driver", image, ACCEL, **more)
    report = await made.start()
    try:
        yield Bench(folder, made, report)
    finally:
        await made.stop()
    left = descendants(children)
    assert not left, f"processes left: {[command_of(pid) for pid in left]}"
    names = descriptors_since(before)
    assert not names, f"descriptors left: {names}"
    assert set(groups_of(os.getpid())) <= groups, "control groups left"


class Shared:
    """A driver on a loop in a thread of its own, for all tests of a file: to boot a template takes seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bench: Bench) -> None:
        self.loop = loop
        self.bench = bench

    @property
    def at_rest(self) -> bool:
        """Nothing of the driver's own comes or goes: namespaces are made ahead, control groups given back, both in threads."""
        places = self.bench.driver._places
        return not places._background and (places._taps is None or places._taps.ready >= taps.AHEAD)

    def run(self, test: Coroutine[Any, Any, T], limit_s: float = LIMIT_S) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(test, limit_s), self.loop).result()


def shared(folder: Path, image: GuestImage, **more: Any) -> contextlib.AbstractContextManager[Shared]:
    return living(lambda: microvms(folder, image, **more))


@contextlib.contextmanager
def living(make: Callable[[], contextlib.AbstractAsyncContextManager[Bench]]) -> Iterator[Shared]:
    loop = uvloop.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    found: list[Bench | BaseException] = []

    async def live() -> None:
        try:
            async with make() as bench:
                found.append(bench)
                started.set()
                await stop.wait()
        except BaseException as error:
            found.append(error)
        finally:
            started.set()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(live())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=work, name="microvms")
    thread.start()
    started.wait()
    try:
        if not isinstance(found[0], Bench):
            raise found[0]
        yield Shared(loop, found[0])
    finally:
        if not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
        thread.join()
    if isinstance(found[-1], BaseException):
        raise found[-1]

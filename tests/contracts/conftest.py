"""A started driver of each kind: processes anew for each test, microVMs over one driver for all, since to boot takes seconds."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from doubles.loop import in_loop
from doubles.microvms import Shared, guest_image, shared
from doubles.over_drivers import Test
from doubles.process_bench import Bench, bench

SETTLE_S = 10.0


@pytest.fixture(scope="module")
def microvms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(tmp_path_factory.mktemp("microvms"), guest_image()) as made:
        yield made


@pytest.fixture
def driven(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Test], None]:
    """Runs a test over the driver of the name that is its parameter."""
    if request.param == "process":
        return partial(_over_process, tmp_path)
    return partial(_over_microvms, request.getfixturevalue("microvms"), tmp_path)


def _over_process(folder: Path, test: Test) -> None:
    @in_loop
    async def run() -> None:
        async with bench(folder) as made:
            await test(made)

    run()


def _over_microvms(vms: Shared, folder: Path, test: Test) -> None:
    async def run() -> None:
        made = Bench(folder, vms.bench.driver, vms.bench.report)
        try:
            await test(made)
        finally:
            await made.end()
            await _at_rest(vms)

    vms.run(run())


async def _at_rest(vms: Shared) -> None:
    """The driver outlives the test, and the next one over processes looks for descriptors that are open since it began: what this
    one opens and closes in the background is awaited. A namespace that could not be made is not made again before the next is
    taken, so that nobody waits for it for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while not vms.at_rest:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

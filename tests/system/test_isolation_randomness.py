"""Clones share their template's memory, and must not share what it would have drawn next."""

import asyncio
import importlib.util
from pathlib import Path

import pytest
from doubles.loop import in_loop
from doubles.process_bench import Running, bench

from workers.ports import Specialisation
from workers.versions import Kind

pytestmark = pytest.mark.system

CLONES = 100
DRAW = """
import os, random, secrets, ssl, tempfile, uuid
import_time = random.random()
def handler(event, context):
    name = tempfile.mktemp()
    return {"at import": import_time, "random": random.random(),
            "getrandbits": random.getrandbits(64), "new": random.Random().random(),
            "ssl": ssl.RAND_bytes(16).hex(), "secrets": secrets.token_hex(8), "urandom": os.urandom(8).hex(),
            "uuid1": str(uuid.uuid1()), "uuid4": str(uuid.uuid4()), "tempfile": name}
"""
DRAW_NUMPY = """
import numpy
def handler(event, context):
    return {"legacy": float(numpy.random.rand()), "generator": float(numpy.random.default_rng().random())}
"""


@in_loop
async def test_a_hundred_clones_never_draw_the_same(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        work = made.work(DRAW)
        drawn: list[dict[str, object]] = []
        for _ in range(CLONES):
            clone = await made.driver.clone("acme", 128)
            one = Running(clone, await clone.specialise(work, 15))
            drawn.append(await one.value())
            await one.clone.kill("drawn")
        for source in drawn[0]:
            assert len({draw[source] for draw in drawn}) == CLONES, source


@in_loop
async def test_standbys_that_waited_do_not_either(tmp_path: Path) -> None:
    """A standby rehearses while it waits: that must not be what makes it differ, nor what makes it the same."""
    async with bench(tmp_path) as made:
        clones = [await made.driver.clone("acme", 128) for _ in range(8)]
        await asyncio.sleep(0.2)
        work = made.work(DRAW)
        drawn = []
        for clone in clones:
            report = await clone.specialise(work, 15)
            drawn.append(await Running(clone, report).value())
        for source in drawn[0]:
            assert len({draw[source] for draw in drawn}) == len(clones), source


@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")
def test_numpy_differs_in_every_clone(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parent.parent

    @in_loop
    async def check() -> None:
        async with bench(tmp_path) as made:
            layers = (made.layer({"handler.py": DRAW_NUMPY}), site)
            work = Specialisation("acme/shop:1", "handler:handler", Kind.EVENT, 1, 512, layers, {})
            drawn = []
            for _ in range(12):
                clone = await made.driver.clone("acme", 512)
                one = Running(clone, await clone.specialise(work, 15))
                drawn.append(await one.value())
                await clone.kill("drawn")
            for source in drawn[0]:
                assert len({draw[source] for draw in drawn}) == 12, source

    check()

"""A cold start's first answer through the gateway, its code coming from each of the tiers: three platforms of one kind, in turns.

Where nothing is to be found in tier 1, it may hold nothing (FOREGLOW_NODE_CODE_BYTES=0): what is not in use goes when other code
comes, so two functions of a shape take turns.
"""

import contextlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.client import Answer
from benchmarks.platform import Deployed, Platform
from benchmarks.report import Report
from benchmarks.tiers.packages import ENTRY, SHAPES, Shape, Words, write

SETTLE_S = 0.35
TOUCHED = 0.1
"""The part of a package that its first start imports or reads."""

NOTHING = {"FOREGLOW_NODE_CODE_BYTES": "0"}
SIDES: Mapping[str, Mapping[str, str]] = {
    "tier1": {},
    "tier2": {"FOREGLOW_ZONE_CACHE": "1", **NOTHING},
    "origin": NOTHING,
}
SEED = 20260403
SETTINGS = {"memory_mb": 512, "timeout_s": 60}


def measure(report: Report, rounds: int, shapes: Sequence[Shape] = SHAPES[:3]) -> dict[tuple[str, str], list[Answer]]:
    """Answers by tier and shape; each is a cold start. Raises RuntimeError when the code came from a nearer tier than was
    meant."""
    folder = Path(tempfile.mkdtemp(prefix="fb-"))
    found: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    try:
        functions = {shape.name: _functions(folder, shape) for shape in shapes}
        with contextlib.ExitStack() as stack:
            sides = {
                tier: stack.enter_context(Platform(standbys=0, templates=False, environment=environment))
                for tier, environment in SIDES.items()
            }
            report.driver, report.tier = sides["tier1"].driver, sides["tier1"].tier
            for platform in sides.values():
                platform.deploy([one for pair in functions.values() for one in pair])
            for number in range(-2, rounds):
                for shape, pair in functions.items():
                    for tier, platform in sides.items():
                        answer = _cold(platform, pair[number % 2].name)
                        if number >= 0:  # in the first two rounds each function comes for the first time
                            _check(answer, tier)
                            found[tier, shape].append(answer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _functions(folder: Path, shape: Shape) -> list[Deployed]:
    words, made = Words(SEED), []
    for number in range(2):
        name = f"{shape.name.replace(' ', '').lower()}-{number}"
        write(folder / name, replace(shape, touched=min(shape.touched, TOUCHED)), number, words)
        made.append(Deployed(name, str(folder / name), f"{ENTRY}:handler", SETTINGS))
    return made


def _cold(platform: Platform, name: str) -> Answer:
    platform.cool()
    time.sleep(SETTLE_S)
    answer = platform.invoke(name)
    if answer.start != "cold":
        raise RuntimeError(f"{name} started {answer.start}, not cold: this run measures something else")
    return answer


def _check(answer: Answer, tier: str) -> None:
    """Farther than meant is a finding, which the origin's share tells of."""
    order = list(SIDES)
    if order.index(answer.code_from) < order.index(tier):
        raise RuntimeError(f"the code came from {answer.code_from}, not from {tier}: this run measures something else")

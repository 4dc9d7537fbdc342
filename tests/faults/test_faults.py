"""Every process killed, stopped for a while, and in pairs, under load: what docs/failures.md allows is seen, and nothing else.

CI takes every single fault and three seeded pairs; FULL=1 (`make soak`) all pairs, stops of 16 s, and writes what it measured to
benchmarks/results/faults.jsonl.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.bench import FLUSH, FULL, KILL, STOP, Bench, Fault, recorded, settings
from faults.leaks import Traces
from faults.load import Load
from faults.running import PROCESSES, Running

pytestmark = pytest.mark.system

PAIRS = 3
SEED = 20250611
SINGLES: list[Fault] = [(name, fault) for fault in (KILL, STOP) for name in PROCESSES] + [("supervisor", STOP), ("valkey", FLUSH)]
ALL_PAIRS = [pair for pair in itertools.combinations(SINGLES, 2) if pair[0][0] != pair[1][0]]
CHOSEN = ALL_PAIRS if FULL else random.Random(SEED).sample(ALL_PAIRS, PAIRS)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Running(tmp_path_factory.mktemp("faults"), settings()) as platform, recorded(Bench(platform)) as made:
        yield made


def called(faults: tuple[Fault, ...]) -> str:
    return "+".join(f"{name}-{fault.split()[0]}" for name, fault in faults)


@pytest.mark.parametrize("fault", SINGLES, ids=lambda fault: called((fault,)))
def test_one_fault(bench: Bench, fault: Fault) -> None:
    bench.suffer([fault])


@pytest.mark.parametrize("pair", CHOSEN, ids=called)
def test_two_faults_at_once(bench: Bench, pair: tuple[Fault, Fault]) -> None:
    bench.suffer(list(pair))


def test_after_all_of_it_nothing_is_lost_and_nothing_is_left(bench: Bench) -> None:
    bench.finish()


def test_a_platform_that_is_killed_whole_comes_back_with_all_it_acknowledged(tmp_path: Path) -> None:
    """The supervisor by kill -9: all end with it, and the next `up` on the folder goes on."""
    with Running(tmp_path, settings()) as first:
        load = Load(first)
        load.prepare()
        load.start()
        while len(load.deploys) < 5 or not load.removals:
            load.pause(0.1)
        traces = Traces(first)
        traces.look()
        first.process.kill()
        first.process.wait(10)
        load.stop()
        assert traces.alive() == []
    assert {one.what for one in load.seen} <= {"refused", "reset"}
    assert load.wrong == []
    with Running(tmp_path, settings()) as second:
        load.platform = traces.platform = second
        load.check_acknowledged()
        traces.look()
        assert second.stop() == 0
        assert traces.left() == []

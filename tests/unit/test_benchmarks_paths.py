"""Paths of the chain topic: what is deployed, what is asked, and that the number of cold starts comes out as it went in."""

import json

import pytest

from benchmarks import paths
from benchmarks.client import Answer
from benchmarks.peers.served.lambda_gateway import unchunked
from benchmarks.topics.chain import cse

COLD_MS, STAGE_MS = 160.0, 11.0


class Simulated:
    """A platform on which a cold path pays `pays(length)` cold starts. No time passes."""

    def __init__(self, pays, start="cold"):
        self.pays, self.start, self.cold, self.asked = pays, start, set(), []

    def side(self):
        return paths.Side("simulated", self.invoke, self.cold.update, list, lambda init, n: paths.names(init, n)[0])

    def invoke(self, name):
        length = int(name.removeprefix("wait").split("s")[0])
        stages = set(paths.names("wait", length))
        first = stages <= self.cold
        self.cold -= stages
        self.asked.append((name, first))
        ms = STAGE_MS * length + (self.pays(length) * COLD_MS if first else 0)
        headers = {"x-foreglow-start": self.start if first else "warm"}
        return Answer(200, headers, json.dumps({"stages": length}).encode(), ms)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(paths.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("pays", [lambda n: 1.0, float, lambda n: 1 + 0.02 * (n - 1)])
def test_cold_starts_come_out_as_they_went_in(pays):
    found = {length: paths.Path() for length in (1, 2, 7)}
    paths.measure(Simulated(pays).side(), "wait", found, 3)
    for length in (2, 7):
        path, one = found[length], found[1]
        assert len(path.first) == 3
        assert len(path.warm) == 3 * paths.WARM
        assert cse(path.first, path.warm, one.first, one.warm) == pytest.approx(pays(length))


def test_each_round_starts_every_path_cold_once():
    simulated = Simulated(lambda n: 1.0)
    paths.measure(simulated.side(), "wait", {length: paths.Path() for length in (1, 3)}, 2)
    assert sorted(name for name, first in simulated.asked if first) == ["wait1s0"] * 2 + ["wait3s0"] * 2


def test_an_entry_that_was_not_cold_stops_the_run():
    with pytest.raises(RuntimeError, match="was to be cold started prewarmed"):
        paths.measure(Simulated(lambda n: 1.0, "prewarmed").side(), "wait", {1: paths.Path()}, 1)


def test_a_path_that_loses_a_stage_stops_the_run():
    simulated = Simulated(lambda n: 1.0)
    side = simulated.side()
    side.invoke = lambda name: Answer(200, {}, b'{"stages":2}', 1.0)
    with pytest.raises(RuntimeError, match="a path of 3 passed 2 stages"):
        side.ask("wait", 3)


def test_stages_declare_and_call_the_next():
    first, second, last = paths.stages("cpu", 3)
    assert (first.name, first.settings["calls"], first.settings["environment"]["NEXT"]) == ("cpu3s0", ["cpu3s1"], "cpu3s1")
    assert second.settings["environment"]["INIT"] == "cpu"
    assert (last.settings["calls"], last.settings["environment"]["NEXT"]) == ([], "")


def test_the_small_gateway_reads_chunks():
    assert unchunked(b"3\r\nabc\r\n2\r\nde\r\n") == b"abcde"
    assert unchunked(b"") == b""

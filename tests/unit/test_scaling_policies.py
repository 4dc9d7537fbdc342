"""The scaling policies: what they promise of any load."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.ids import FunctionId
from orchestrator.scaling.headroom import Headroom, HeadroomSettings, staffed
from orchestrator.scaling.kpa import Kpa, KpaSettings
from orchestrator.scaling.scaler import Scaler, maker
from orchestrator.scaling.terms import Bounds, Observed, Reactive, Source
from orchestrator.scaling.windows import MOST, Windows

BOUNDS = Bounds(maximum=100_000)
LOADS = st.lists(st.integers(0, 500), min_size=1, max_size=200)


def steady(level: float, peak: int | None = None, ready: int = 0, tick_s: float = 1.0) -> Observed:
    peak = math.ceil(level) if peak is None else peak
    return Observed(level, peak, arrivals=peak, roots=peak, ready=ready, tick_s=tick_s)


def driven(policy: Reactive, load: Sequence[float], bounds: Bounds = BOUNDS, follows: bool = True) -> list[int]:
    """Wanted after each tick of a second; what is wanted is ready at the next, when it `follows`."""
    wanted: list[int] = []
    for now, level in enumerate(load):
        ready = wanted[-1] if wanted and follows else 0
        wanted.append(policy.decide(float(now), steady(level, ready=ready), bounds).count)
    return wanted


class Sized:
    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds

    def bounds(self, version: str) -> Bounds:
        return self._bounds

    def memory_mb(self, version: str) -> int:
        return 128

    def version_of(self, function: FunctionId) -> str | None:
        return None


# -- both


@pytest.mark.parametrize("name", ["headroom", "kpa"])
@given(load=LOADS, most=st.integers(0, 50))
def test_never_over_max(name: str, load: list[int], most: int) -> None:
    scaler = Scaler(Sized(Bounds(maximum=most)), maker(name))
    for now, level in enumerate(load):
        for wanted in scaler.tick(float(now), {"t/f:1": steady(level)}):
            assert wanted.count <= most
            assert wanted.limit or wanted.count == max(term.count for term in wanted.terms)


@pytest.mark.parametrize("name", ["headroom", "kpa"])
@given(level=st.integers(1, 300), concurrency=st.integers(1, 20))
def test_a_lasting_demand_is_reached(name: str, level: int, concurrency: int) -> None:
    make = maker(name)
    assert make is not None
    wanted = driven(make(), [level] * 70, Bounds(maximum=100_000, concurrency=concurrency))
    assert wanted[-1] * concurrency >= level


@pytest.mark.parametrize("name", ["headroom", "kpa"])
@given(load=LOADS, more=st.lists(st.integers(0, 100), min_size=200, max_size=200))
def test_more_demand_never_wants_less(name: str, load: list[int], more: list[int]) -> None:
    """From the same past: at the last tick there is more of it."""
    make = maker(name)
    assert make is not None
    higher = [*load[:-1], load[-1] + more[0]]
    assert driven(make(), higher)[-1] >= driven(make(), load)[-1]


@pytest.mark.parametrize("name", ["headroom", "kpa"])
@given(load=LOADS)
def test_after_silence_nothing_is_wanted_and_nothing_remembered(name: str, load: list[int]) -> None:
    make = maker(name)
    assert make is not None
    policy = make()
    assert driven(policy, [*load, *[0] * 300])[-1] == 0
    assert policy.rests()


@pytest.mark.parametrize("name", ["headroom", "kpa"])
@given(low=st.integers(0, 100), more=st.integers(1, 200), half_s=st.integers(1, 25))
@settings(max_examples=40)
def test_alternating_peaks_do_not_flap(name: str, low: int, more: int, half_s: int) -> None:
    """Peaks closer together than the cool-down: after the first rounds it goes neither up and down with them."""
    make = maker(name)
    assert make is not None
    load = ([low + more] * half_s + [low] * half_s) * (600 // half_s)
    wanted = driven(make(), load)[150:600]
    turns = [after - before for before, after in pairwise(wanted) if after != before]
    changes = sum(1 for one, other in pairwise(turns) if one * other < 0)
    if name == "headroom":
        assert changes <= 1
        assert min(wanted) >= low + more
    else:
        assert changes <= 2 * (450 // half_s)  # it follows a stable window that is no multiple of the period


# -- headroom


@given(level=st.integers(1, 1000), before=st.integers(0, 200))
def test_a_burst_is_wanted_in_its_own_tick(level: int, before: int) -> None:
    wanted = driven(Headroom(), [before] * 30 + [level])
    assert wanted[-1] >= level


@given(level=st.integers(2, 300), quiet=st.integers(1, 59))
def test_a_count_stays_wanted_for_the_cool_down(level: int, quiet: int) -> None:
    wanted = driven(Headroom(), [level] * 5 + [0] * quiet)
    assert wanted[-1] >= level


@given(level=st.integers(2, 300))
def test_it_shrinks_by_steps(level: int) -> None:
    wanted = driven(Headroom(), [level] * 70 + [0] * 200)
    for before, after in pairwise(wanted[70:]):
        assert after >= before - max(1, math.ceil(before * HeadroomSettings().shrink))


def test_the_last_instance_is_for_keep_alive() -> None:
    wanted = driven(Headroom(HeadroomSettings(cooldown_s=60)), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert wanted[0] == 1
    assert wanted[-1] == 0


@given(demand=st.floats(0.05, 1e4), each=st.floats(0.5, 100))
def test_headroom_grows_with_the_root(demand: float, each: float) -> None:
    count = staffed(demand, each, 1.0)
    needed = demand / each
    assert needed - 1e-6 <= count <= needed + math.sqrt(needed) + 1


def test_it_says_what_it_stands_on() -> None:
    policy = Headroom()
    driven(policy, [8] * 59)
    term = policy.decide(59.0, steady(8, ready=3), BOUNDS)
    assert term.source is Source.REACTIVE
    assert term.count == 11
    assert "8.00 at once on average need 11" in term.reason
    assert "50 at once in the last 6 s need 50, 11 are ready" in policy.decide(60.0, steady(9, 50, ready=11), BOUNDS).reason


def test_a_target_below_what_an_instance_takes_counts() -> None:
    assert driven(Headroom(), [10] * 60, Bounds(target=5, concurrency=10))[-1] == 4  # 2 and their root
    assert driven(Headroom(), [10] * 60, Bounds(target=50, concurrency=10))[-1] == 2


# -- kpa: figures of its published defaults


def test_kpa_aims_at_seventy_percent_of_what_an_instance_takes() -> None:
    assert driven(Kpa(), [7] * 70, Bounds(concurrency=10))[-1] == 1
    assert driven(Kpa(), [71] * 130, Bounds(concurrency=10))[-1] == 11


def test_kpa_decides_every_two_seconds() -> None:
    policy = Kpa()
    wanted = [policy.decide(float(now), steady(10 + 5 * now, ready=100), BOUNDS).count for now in range(8)]
    assert [wanted[at] for at in (1, 3, 5)] == [wanted[at] for at in (0, 2, 4)]


def test_kpa_panics_at_twice_what_is_there_and_does_not_shrink_then() -> None:
    load = [7.0] * 60 + [70.0] * 10 + [7.0] * 30
    wanted = driven(Kpa(), load)
    assert wanted[59] == 10
    assert wanted[70] >= 90  # the panic window holds 6 s of it
    assert min(wanted[70:]) >= wanted[70]


def test_kpa_is_slow_below_the_threshold() -> None:
    """Half as much again is no panic: the stable window of 60 s has to see it."""
    wanted = driven(Kpa(), [10.0] * 120 + [14.0] * 80)
    assert wanted[119] == 15
    assert wanted[125] <= 16
    assert wanted[-1] == 20


def test_kpa_halves_at_most() -> None:
    wanted = driven(Kpa(KpaSettings(panic_threshold=1e9)), [70.0] * 100 + [0.0] * 200)
    falls = [(before, after) for before, after in pairwise(wanted) if after < before]
    assert all(after >= before // 2 for before, after in falls if before > 1)


def test_kpa_goes_to_zero_after_window_and_grace() -> None:
    wanted = driven(Kpa(), [1.0] * 10 + [0.0] * 200)
    last = max(at for at, count in enumerate(wanted) if count)
    assert 9 + 60 + 30 - 3 <= last <= 9 + 60 + 30 + 3


# -- windows


@given(ticks=st.lists(st.tuples(st.floats(0.001, 5.0), st.integers(0, 1000)), min_size=1, max_size=1500))
@settings(max_examples=30)
def test_windows_are_bounded_and_average_by_time(ticks: list[tuple[float, int]]) -> None:
    windows, now = Windows(60.0), 0.0
    for length, level in ticks:
        now += length
        windows.add(now, steady(level, tick_s=length))
    assert len(windows) <= MOST
    levels = [level for _, level in ticks]
    assert min(levels) - 1e-6 <= windows.mean() <= max(levels) + 1e-6


@given(ticks=st.lists(st.tuples(st.sampled_from([0.5, 1.0, 1.5]), st.sampled_from([0, 0, 0, 1, 7])), min_size=1, max_size=120))
@settings(max_examples=50)
def test_windows_know_what_their_samples_say(ticks: list[tuple[float, int]]) -> None:
    """Kept sums against the samples themselves, counted anew at each tick."""
    windows, now = Windows(20.0, 6.0), 0.0
    samples: list[tuple[float, float, int]] = []
    for length, level in ticks:
        now += length
        windows.add(now, steady(level, tick_s=length))
        samples.append((now, length, level))
        kept = [one for one in samples if one[0] > now - 20.0 + 1e-6]
        recent: list[tuple[float, float, int]] = []
        for one in reversed(kept):
            recent.append(one)
            if sum(each[1] for each in recent) >= 6.0 - 1e-6:
                break
        length_s = sum(one[1] for one in recent)
        assert windows.silent() == (not any(one[2] for one in kept))
        assert windows.peak_recent() == max(one[2] for one in recent)
        assert windows.mean_recent() == pytest.approx(sum(one[1] * one[2] for one in recent) / length_s)
        assert windows.roots_per_s(6.0) == pytest.approx(sum(one[2] for one in recent) / length_s)
        assert windows.roots_per_s(1.0) == pytest.approx(level / length if length >= 1.0 else _last_second(recent))


def _last_second(recent: list[tuple[float, float, int]]) -> float:
    """Of samples, the newest first."""
    taken: list[tuple[float, float, int]] = []
    for one in recent:
        taken.append(one)
        if sum(each[1] for each in taken) >= 1.0 - 1e-6:
            break
    return sum(one[2] for one in taken) / sum(one[1] for one in taken)

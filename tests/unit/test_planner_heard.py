"""Demand of all gateways together, as the scaler sees it."""

from typing import Any

from orchestrator.planner.heard import Heard
from workers.rpc.messages import Demand, VersionDemand

ECHO = "acme/echo:1"


class Gateway:
    def __init__(self, name: str = "") -> None:
        self.connection: object | None = self
        self.who: object = name or self


def told(heard: Heard, gateway: Any, at: float, concurrency: float, peak: int, arrivals: int = 0) -> None:
    heard.told(gateway, Demand([VersionDemand(ECHO, concurrency, peak, arrivals, arrivals)], 1.0), at)


def test_gateways_add_up() -> None:
    heard = Heard()
    told(heard, Gateway(), 10.0, 2.0, 4, 10)
    told(heard, Gateway(), 10.1, 1.0, 2, 5)
    seen = heard.take(10.2, {ECHO: 3}, 1.0)[ECHO]
    assert (seen.concurrency, seen.peak, seen.arrivals, seen.roots, seen.ready) == (3.0, 6, 15, 15, 3)


def test_seconds_that_waited_for_a_late_tick_are_no_more_traffic_than_one() -> None:
    heard, gateway = Heard(), Gateway()
    for at in (10.0, 11.0, 12.0):
        told(heard, gateway, at, 2.0, 4, 10)
    seen = heard.take(12.1, {}, 1.0)[ECHO]
    assert (seen.concurrency, seen.peak, seen.arrivals) == (2.0, 4, 10)


def test_a_gateway_whose_word_is_late_counts_as_before_for_a_while() -> None:
    heard, gateway = Heard(), Gateway()
    told(heard, gateway, 10.0, 2.0, 4, 10)
    heard.take(10.1, {}, 1.0)
    seen = heard.take(11.6, {}, 1.0)[ECHO]
    assert (seen.concurrency, seen.peak, seen.arrivals) == (2.0, 4, 0), "what arrived is counted once"
    assert heard.take(13.5, {}, 1.0) == {}


def test_one_that_is_gone_is_not_waited_for() -> None:
    heard, gone, here = Heard(), Gateway(), Gateway()
    told(heard, gone, 10.0, 2.0, 4)
    told(heard, here, 10.0, 1.0, 1)
    heard.take(10.1, {}, 1.0)
    told(heard, here, 11.0, 1.0, 1)
    assert not heard.whole()
    gone.connection = None
    assert heard.whole()
    assert heard.take(11.1, {}, 1.0)[ECHO].peak == 1


def test_what_was_cooled_counts_for_nothing_for_a_moment() -> None:
    heard, gateway = Heard(), Gateway()
    heard.cool(["acme/echo"], 10.0)
    told(heard, gateway, 10.0, 2.0, 4)
    assert heard.take(10.1, {}, 1.0) == {}
    told(heard, gateway, 13.0, 2.0, 4)
    assert ECHO in heard.take(13.1, {}, 1.0)


def test_without_traffic_only_what_is_remembered_is_seen() -> None:
    heard, gateway = Heard(), Gateway()
    told(heard, gateway, 10.0, 2.0, 4, 10)
    assert heard.take(10.1, {ECHO: 3, "acme/rests:1": 1}, 1.0).keys() == {ECHO}
    heard.told(gateway, Demand([], 1.0), 11.0)
    seen = heard.take(11.1, {ECHO: 3, "acme/rests:1": 1}, 1.0, [ECHO])
    assert {version: (one.peak, one.ready) for version, one in seen.items()} == {ECHO: (0, 3)}


def test_two_connections_to_one_gateway_count_once() -> None:
    heard, first, second = Heard(), Gateway("gw-1"), Gateway("gw-1")
    for at in (10.0, 11.0):
        told(heard, first, at, 2.0, 4, 10)
        told(heard, second, at, 2.0, 4, 10)
        seen = heard.take(at + 0.1, {}, 1.0)[ECHO]
        assert (seen.concurrency, seen.peak, seen.arrivals) == (2.0, 4, 10)
    assert not heard.unheard([first, second])  # type: ignore[list-item]
    first.connection = None
    told(heard, second, 12.0, 3.0, 5, 10)
    assert heard.whole()
    assert heard.take(12.1, {}, 1.0)[ECHO].peak == 5

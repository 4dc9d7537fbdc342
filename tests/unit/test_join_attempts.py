"""What the join listener lets in: never more than its limits, whoever comes; and whoever keeps below its own share comes in when
the sum allows it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control import attempts
from orchestrator.control.attempts import MEMBERS, STRANGERS, WINDOW_S, Attempts, Limits, source

LIMITS = Limits(per_second=6, at_once=4, each_per_second=3, each_at_once=2)
STEPS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.booleans(), st.floats(min_value=0, max_value=0.6)), min_size=1, max_size=200
)


@given(STEPS)
def test_never_more_than_the_limits_and_never_refused_below_them(steps: list[tuple[str, bool, float]]) -> None:
    door, now = Attempts(LIMITS), 100.0
    let_in: list[tuple[str, float]] = []
    open_: Counter[str] = Counter()
    for who, leaves, passed in steps:
        now += passed
        if leaves:
            if open_[who]:
                door.leave(who)
                open_[who] -= 1
            continue
        recent = [name for name, at in let_in if now - at < WINDOW_S]
        room = (
            len(recent) < LIMITS.per_second
            and recent.count(who) < LIMITS.each_per_second
            and open_.total() < LIMITS.at_once
            and open_[who] < LIMITS.each_at_once
        )
        assert door.enter(who, now) == room
        if room:
            let_in.append((who, now))
            open_[who] += 1
    now += WINDOW_S
    for who, count in open_.items():
        for _ in range(count):
            door.leave(who)
    assert door.enter("z", now)
    assert len(door) <= 1, "who is gone is forgotten"


def test_the_table_is_bounded_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "KEPT", 3)
    door = Attempts(Limits(10_000, 10_000, 5, 5))
    assert [door.enter(f"s{number}", 0.0) for number in range(5)] == [True, True, True, False, False]
    assert door.enter("s0", 0.0), "who is known goes on"
    for who in ("s0", "s0", "s1", "s2"):
        door.leave(who)
    assert door.enter("s9", 1.0)
    assert len(door) == 1


def test_one_stranger_is_an_address_or_a_network_that_one_host_has() -> None:
    assert source("10.0.0.1") == source("::ffff:10.0.0.1") == "10.0.0.1"
    assert source("2001:db8::1") == source("2001:db8::ffff:1") == source("2001:db8::1%eth0")
    assert source("2001:db8::1") != source("2001:db8:0:1::1")
    assert source("a socket") == "a socket"


def test_one_stranger_cannot_use_all_up_and_a_cluster_can_join_again() -> None:
    assert STRANGERS.each_per_second * 4 <= STRANGERS.per_second
    assert STRANGERS.each_at_once * 4 <= STRANGERS.at_once
    assert MEMBERS.per_second > STRANGERS.per_second

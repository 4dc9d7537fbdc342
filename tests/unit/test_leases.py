"""Leases: two planners never decide at once, whatever the clocks, the renewals and the stalls do; nodes obey no older epoch."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.loop import in_loop, until
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from orchestrator.catalog.epochs import next_epoch
from orchestrator.catalog.leases import TTL_S, LeaseRow, Leases, planner_lease, released, renewed, shard_of, taken
from orchestrator.catalog.store import Store
from orchestrator.planner import leadership as leading
from orchestrator.planner.leadership import ANSWER_S, GOES_ON_S, STALL_S, Leadership, Term
from workers.standing import Standing

LEASE = planner_lease(0)

# one step of the world: who acts, what it does, how far the database's clock goes before, how long the answer takes to come
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["p", "q", "r"]),
        st.sampled_from(["ask", "ask", "order", "release", "begin-anew", "back-up", "restore"]),
        st.floats(min_value=0.0, max_value=2 * TTL_S),
        st.floats(min_value=0.0, max_value=2 * TTL_S),
    ),
    max_size=60,
)


async def _nothing() -> None:
    return None


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_two_planners_never_decide_at_once_and_a_node_obeys_no_older_epoch(
    steps: list[tuple[str, str, float, float]],
) -> None:
    row: LeaseRow | None = None
    backup: LeaseRow | None = None
    now, offsets = 1000.0, {"p": 0.0, "q": -5e6, "r": 7e8}  # their own clocks agree on nothing but the length of a second
    terms = {name: Term() for name in offsets}
    node, obeyed, epochs = Standing(_nothing), 0, [0]
    for name, what, before, delay in steps:
        now += before + 0.001
        term, own = terms[name], offsets[name]
        if what == "ask":
            asked_at = now + own
            if term.epoch:
                mine = renewed(row, name, term.epoch, now)
            else:
                mine = taken(row, name, "", now)
                if mine is not None:
                    assert mine.epoch > max(epochs), "every holder's epoch is above all before it"
                    epochs.append(mine.epoch)
            row = mine or row
            now += delay  # the answer is old when it comes: it counts from when it was asked for
            if mine is not None:
                term.granted(mine.epoch, asked_at, TTL_S)
            else:
                term.lost()
        elif what == "order":
            if term.active(now + own) and node.obeys(LEASE, term.epoch):
                assert term.epoch >= obeyed
                obeyed = term.epoch
        elif what == "release":
            if term.epoch:
                row = released(row, name, term.epoch, now) or row
                term.lost()
        elif what == "back-up":
            backup = row
        elif what == "restore":
            row = backup
            for one in terms.values():  # as the documents say: into a folder that nothing runs on
                one.lost()
        else:
            term.lost()  # killed: the row still names it
        deciding = [one for one in terms if terms[one].active(now + offsets[one])]
        assert len(deciding) <= 1


def test_a_lease_is_anothers_until_it_runs_out() -> None:
    row = taken(None, "p", "at-p", 100.0)
    assert row == LeaseRow("p", "at-p", 100_000, 100.0 + TTL_S)
    assert taken(row, "q", "at-q", 100.0 + TTL_S - 0.001) is None
    assert taken(row, "q", "at-q", 100.0 + TTL_S) == LeaseRow("q", "at-q", 103_000, 100.0 + 2 * TTL_S)
    again = taken(row, "p", "at-p", 100.5)
    assert again is not None
    assert again.epoch == 100_500, "begun anew, it does not wait for itself, and is told apart from what it was"


def test_who_was_late_may_still_renew_what_nobody_took() -> None:
    row = taken(None, "p", "", 100.0)
    assert renewed(row, "p", 100_000, 500.0) == LeaseRow("p", "", 100_000, 500.0 + TTL_S)
    assert renewed(taken(row, "q", "", 500.0), "p", 100_000, 500.0) is None
    assert renewed(row, "p", 100_001, 100.0) is None
    assert renewed(None, "p", 1, 100.0) is None


def test_a_clock_that_goes_back_shortens_no_lease_and_takes_no_epoch_back() -> None:
    row = taken(None, "p", "", 100.0)
    assert renewed(row, "p", 100_000, 50.0) == row
    again = taken(row, "p", "", 50.0)
    assert again is not None
    assert again.epoch == 100_001


@given(st.integers(0, 2**53), st.floats(0, 4e9), st.floats(0, 4e9))
def test_epochs_grow_whatever_the_clock_does_and_are_its_time_when_it_goes_on(last: int, now: float, later: float) -> None:
    """So what a database gives after it was restored is above what it gave before, if less than one a millisecond was given."""
    epoch = next_epoch(last, now)
    assert epoch > last
    assert epoch >= int(now * 1000)
    assert next_epoch(epoch, later) > epoch, "also when the clock was set back"
    if last < int(now * 1000):
        assert epoch == int(now * 1000), "the backup's epoch does not matter"


@given(st.lists(st.tuples(st.sampled_from(["given", "back-up", "restore"]), st.floats(0.001, 1e6)), max_size=80))
def test_no_epoch_comes_twice_whatever_is_restored(steps: list[tuple[str, float]]) -> None:
    now, last, kept, highest = 1.7e9, 0, 0, 0
    for what, passed in steps:
        now += passed
        if what == "given":
            last = next_epoch(last, now)
            assert last > highest
            highest = last
        elif what == "back-up":
            kept = last
        else:
            last = kept


def test_a_term_goes_on_without_a_database_but_not_after_standing_still() -> None:
    term = Term()
    term.granted(4, 100.0, TTL_S)
    assert term.active(100.0 + TTL_S - 0.01)
    assert not term.active(100.0 + TTL_S), "a planner that was stopped asks before it orders"
    term.unanswered(101.0, 101.0 + ANSWER_S)
    assert term.active(100.0 + TTL_S + 0.5), "nobody else can take the lease either"
    assert not term.active(101.0 + ANSWER_S + GOES_ON_S), "unless that was long ago"
    stopped = Term()
    stopped.granted(4, 100.0, TTL_S)
    stopped.unanswered(101.0, 101.0 + ANSWER_S + STALL_S + 10)
    assert not stopped.active(112.0), "it did not wait for the answer: it stood still"


def test_tenants_spread_over_shards_the_same_everywhere() -> None:
    shards = [shard_of(f"tenant-{number}", 4) for number in range(200)]
    assert set(shards) == {0, 1, 2, 3}
    assert shards == [shard_of(f"tenant-{number}", 4) for number in range(200)]
    assert shard_of("acme", 1) == 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'db'}")
    made.migrate()
    yield made
    made.close()


def test_the_database_keeps_one_holder_and_its_clock_ends_it(store: Store) -> None:
    leases = store.leases
    began = int(time.time() * 1000) - 2
    first = leases.acquire(LEASE, "p", "at-p", 30.0)
    assert began <= first <= time.time() * 1000 + 2
    assert leases.acquire(LEASE, "q", "at-q") == 0
    assert leases.renew(LEASE, "p", first, 30.0)
    assert not leases.renew(LEASE, "q", first)
    found = leases.read(LEASE)
    assert found is not None
    assert (found.holder, found.address) == ("p", "at-p")
    assert leases.release(LEASE, "p", first)
    second = leases.acquire(LEASE, "q", "at-q", 0.05)
    assert second > first
    assert not leases.renew(LEASE, "p", first)
    time.sleep(0.1)
    assert leases.acquire(LEASE, "p", "at-p") > second, "the one before has ended"
    assert not leases.renew(LEASE, "q", second)
    assert leases.read("planner/7") is None


class Away(Leases):
    """A database that can be taken away."""

    away = False

    def renew(self, name: str, holder: str, epoch: int, ttl_s: float = TTL_S) -> bool:
        if self.away:
            raise OperationalError("renew", None, ConnectionRefusedError("the database is away"))
        return super().renew(name, holder, epoch, ttl_s)


@in_loop
async def test_the_next_planner_takes_over_and_the_one_before_stops_deciding(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RENEW_S", "TRY_S"):
        monkeypatch.setattr(leading, name, 0.02)
    monkeypatch.setattr(leading, "TTL_S", 60.0)  # a planner that does not run for seconds is another test's
    began: list[tuple[str, str, int]] = []
    away = Away(store.database)
    first = Leadership(away, "p", "at-p", 1, lambda lease, epoch: began.append(("p", lease, epoch)))
    second = Leadership(store.leases, "q", "at-q", 1, lambda lease, epoch: began.append(("q", lease, epoch)))
    running = [asyncio.ensure_future(first.run())]
    await until(lambda: [one[:2] for one in began] == [("p", LEASE)])
    epoch = began[0][2]
    running.append(asyncio.ensure_future(second.run()))
    assert first.epoch("acme") == (LEASE, epoch)
    assert second.epoch("acme") is None
    away.away = True
    await asyncio.sleep(0.2)
    assert first.epoch("acme") == (LEASE, epoch), "it goes on while nobody else has the lease"
    running[0].cancel()
    await asyncio.gather(running[0], return_exceptions=True)
    away.away = False
    await first.resign()
    assert first.epoch("acme") is None
    await until(lambda: [one[:2] for one in began[1:]] == [("q", LEASE)])
    assert began[1][2] > epoch
    assert second.held() == [(LEASE, began[1][2])]
    running[1].cancel()
    await asyncio.gather(running[1], return_exceptions=True)
    await second.resign()

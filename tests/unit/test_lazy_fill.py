"""Which chunk comes next, what a start teaches, how much a server answers, and where bytes lie: the pure parts of lazy starts."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from workers.code.lazy.allowance import Allowance
from workers.code.lazy.fill import AT_ONCE, MAX_FAILURES, PATIENCE_S, QUIET_S, RECORDED_AT_ONCE, REST_AT_ONCE, Fill
from workers.code.lazy.tree import ROOT, Cuts, Tree
from workers.code.manifest import CHUNK_BYTES

COUNT = 60


def drain(fill: Fill, now: float) -> list[int]:
    """All that is fetched when everything arrives at once."""
    order: list[int] = []
    while begun := fill.next(now):
        order += begun
        for index in begun:
            fill.arrived(index)
    return order


def test_who_waits_comes_first_then_what_was_recorded_then_the_rest() -> None:
    fill = Fill(10, 0.0)
    fill.recorded([7, 3, 7, 99, -1])
    fill.touched(9, 0.1)
    assert list(fill.next(0.1)) == [9, 7, 3]
    for index in (9, 7, 3):
        fill.arrived(index)
    assert list(fill.next(0.2)) == []  # the start goes on
    assert drain(fill, 0.1 + QUIET_S) == [0, 1, 2, 4, 5, 6, 8]
    assert fill.whole


def test_what_follows_a_run_of_chunks_is_brought_before_it_is_asked_for() -> None:
    fill = Fill(10, 0.0)
    fill.touched(4, 0.0)
    assert list(fill.next(0.0)) == [4]
    fill.arrived(4)
    assert list(fill.next(0.0)) == []
    fill.touched(5, 0.0)
    assert list(fill.next(0.0)) == [5, 6, 7]
    fill.touched(9, 0.0)
    assert list(fill.next(0.0)) == [9]
    assert fill.lesson() == [4, 5, 9]  # what was touched, not what was guessed


def test_a_start_that_is_never_quiet_does_not_hold_up_the_rest_for_ever() -> None:
    fill = Fill(5, 0.0)
    assert fill.next(0.0) == []
    now = 0.0
    while now < PATIENCE_S:
        fill.touched(4, now)
        fill.arrived(4)
        assert set(fill.next(now)) <= {4}
        now += QUIET_S / 2
    fill.touched(4, now)
    assert list(fill.next(now)) == [0, 1]


def test_what_is_under_way_is_not_begun_twice() -> None:
    fill = Fill(10, 0.0)
    fill.recorded([1, 2])
    assert list(fill.next(0.0)) == [1, 2]
    fill.touched(2, 0.1)
    assert list(fill.next(0.1)) == []
    fill.failed(2, 0.2)
    fill.touched(2, 0.3)
    assert list(fill.next(0.3)) == [2]  # who waits does not wait for the pause


def test_the_background_pauses_after_failures_and_gives_up_until_something_arrives() -> None:
    fill, now = Fill(3, 0.0), QUIET_S
    for _ in range(MAX_FAILURES // 2 + 1):
        for index in fill.next(now):
            fill.failed(index, now)
        assert list(fill.next(now)) == []
        now += 3600.0
    assert list(fill.next(now)) == []
    fill.touched(2, now)
    assert list(fill.next(now)) == [2]
    fill.arrived(2)
    assert list(fill.next(now + 3600.0)) == [0, 1]


def test_a_lesson_is_only_what_was_not_known() -> None:
    fill = Fill(10, 0.0)
    assert fill.lesson() is None
    fill.touched(4, 0.0)
    fill.touched(2, 0.0)
    fill.touched(4, 0.0)
    assert fill.lesson() == [4, 2]
    known = Fill(10, 0.0)
    known.recorded([2, 4, 4])
    known.touched(4, 0.0)
    assert known.lesson() is None
    known.touched(9, 0.0)
    assert known.lesson() == [2, 4, 9]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), st.integers(-2, COUNT + 2)),
        st.tuples(st.just("record"), st.lists(st.integers(-2, COUNT + 2), max_size=20)),
        st.tuples(st.sampled_from(["arrive", "fail"]), st.integers(0, AT_ONCE)),
        st.tuples(st.just("wait"), st.floats(0, 5)),
    ),
    max_size=120,
)


@given(steps)
def test_whatever_happens_it_stays_within_bounds_and_ends_whole(taken: Sequence[tuple[str, object]]) -> None:
    fill, now = Fill(COUNT, 0.0), 0.0
    under_way: list[int] = []
    arrived: set[int] = set()
    for what, value in taken:
        if what == "touch":
            fill.touched(value, now)  # type: ignore[arg-type]
        elif what == "record":
            fill.recorded(value)  # type: ignore[arg-type]
        elif what == "wait":
            now += value  # type: ignore[operator]
        elif under_way:
            index = under_way.pop(value % len(under_way))  # type: ignore[operator]
            if what == "arrive":
                arrived.add(index)
                fill.arrived(index)
            else:
                fill.failed(index, now)
        begun = fill.next(now)
        under_way += begun
        assert len(under_way) == len(set(under_way)) <= AT_ONCE
        assert not arrived & set(begun)
        assert all(0 <= index < COUNT for index in begun)
    for index in under_way:
        fill.arrived(index)
    for index in range(COUNT):  # a demand ends whatever pause there is
        fill.touched(index, now)
    drain(fill, now)
    assert fill.whole
    assert RECORDED_AT_ONCE <= AT_ONCE >= REST_AT_ONCE


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1)), max_size=80))
def test_a_server_answers_no_more_than_its_burst_and_rate(turns: Sequence[tuple[int, float]]) -> None:
    allowance, now, answered = Allowance(0.0, burst=500, per_s=100), 0.0, 0
    for count, passed in turns:
        now += passed
        answered += count
        now += allowance.take(count, now)
        assert answered <= 500 + now * 100 + 1e-6


@given(st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=30), st.data())
def test_the_chunks_of_a_range_are_those_that_overlap_it(sizes: list[int], data: st.DataObject) -> None:
    cuts, total = Cuts(sizes), sum(sizes)
    offset = data.draw(st.integers(0, total + 10))
    size = data.draw(st.integers(0, total))
    wanted, start = [], 0
    for index, chunk in enumerate(sizes):
        if size and start < offset + size and offset < start + chunk:
            wanted.append(index)
        start += chunk
    assert list(cuts.of(offset, size)) == wanted


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cc",)), min_size=1, max_size=8)
paths = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, unique=True, max_size=30))
def test_a_tree_holds_every_file_or_says_that_two_have_one_name(found: list[str]) -> None:
    files = [(path, 0o644, number, 0) for number, path in enumerate(sorted(found))]
    folders = {path.rsplit("/", depth)[0] for path in found for depth in range(1, path.count("/") + 1)}
    try:
        tree = Tree(files, (0, 0))
    except ValueError:
        assert folders & set(found)
        return
    assert not folders & set(found)
    for path, _, size, _ in files:
        number = ROOT
        for name in path.split("/"):
            number = tree.find(number, name.encode())
            assert number
        assert tree.node(number).size == size
    assert len(tree) == len(found) + len(folders) + 1

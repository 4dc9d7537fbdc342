"""What functions wrote is kept within bounds in every direction, however it is written."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import logs
from workers.logs import KEEP_S, PER_FUNCTION, PER_INVOCATION, LogStore

F, V = "acme/f", "acme/f:1"


def text_of(entry: dict[str, object], stream: str = "") -> str:
    output = entry["output"]
    assert isinstance(output, list)
    return "".join(part["text"] for part in output if not stream or part["stream"] == stream)


def test_parts_come_back_in_order_with_their_streams() -> None:
    store = LogStore()
    for stream, text in [("out", b"a\n"), ("err", b"b\n"), ("out", b"c\n")]:
        store.write(F, V, "i1", stream, text, 10.0)
    (entry,) = store.read(F, now=11.0)
    assert (entry["invocation_id"], entry["version"], entry["at"], entry["cut"]) == ("i1", V, 10.0, False)
    assert entry["output"] == [
        {"stream": "out", "text": "a\n"},
        {"stream": "err", "text": "b\n"},
        {"stream": "out", "text": "c\n"},
    ]


def test_more_than_64_kib_of_an_invocation_is_cut_and_marked() -> None:
    store = LogStore()
    store.write(F, V, "i1", "out", b"x" * PER_INVOCATION, 1.0)
    assert store.read(F, now=1.0)[0]["cut"] is False
    store.write(F, V, "i1", "err", b"y", 1.0)
    (entry,) = store.read(F, now=1.0)
    assert (entry["cut"], len(text_of(entry))) == (True, PER_INVOCATION)


def test_a_cut_in_the_middle_of_a_character_is_readable() -> None:
    store = LogStore()
    store.write(F, V, "i1", "out", b"x" * (PER_INVOCATION - 1) + "é".encode(), 1.0)
    assert text_of(store.read(F, now=1.0)[0]).endswith("x�")


def test_the_oldest_invocations_make_room() -> None:
    store = LogStore()
    for number in range(40):
        store.write(F, V, f"i{number}", "out", b"x" * PER_INVOCATION, float(number))
    kept = [entry["invocation_id"] for entry in store.read(F, limit=1000, now=40.0)]
    assert kept == [f"i{number}" for number in range(41 - PER_FUNCTION // PER_INVOCATION, 40)]


def test_after_a_day_it_is_gone() -> None:
    store = LogStore()
    store.write(F, V, "old", "out", b"x", 0.0)
    store.write(F, V, "new", "out", b"x", KEEP_S - 1)
    assert len(store.read(F, now=KEEP_S - 1)) == 2
    assert [entry["invocation_id"] for entry in store.read(F, now=KEEP_S + 1)] == ["new"]


def test_one_invocation_or_the_newest_few() -> None:
    store = LogStore()
    for number in range(5):
        store.write(F, V, f"i{number}", "out", b"%d" % number, 1.0)
    assert [entry["invocation_id"] for entry in store.read(F, limit=2, now=1.0)] == ["i3", "i4"]
    assert [text_of(entry) for entry in store.read(F, "i1", now=1.0)] == ["1"]
    assert store.read(F, "unknown", now=1.0) == store.read("acme/other", now=1.0) == store.read(F, limit=0, now=1.0) == []
    store.forget(F)
    assert store.read(F, now=1.0) == []


def test_the_functions_written_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FUNCTIONS", 2)
    store = LogStore()
    for function in ("a", "b", "a", "c"):
        store.write(function, V, "i", "out", b"x", 1.0)
    assert [bool(store.read(function, now=1.0)) for function in "abc"] == [True, False, True]


@pytest.mark.parametrize("streams", [["out"], ["out", "err"]], ids=["one stream", "alternating"])
def test_memory_is_bounded_when_every_byte_is_written_alone(streams: list[str]) -> None:
    """A guest that writes one byte a frame must not cost a hundred times what it wrote."""
    store = LogStore()
    tracemalloc.start()
    try:
        for number in range(20_000):
            store.write(F, V, "i1", streams[number % len(streams)], b"x", 1.0)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 3 * PER_INVOCATION
    assert store.read(F, now=1.0)[0]["cut"] is (len(streams) == 2)


def test_all_functions_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TOTAL", 3 * PER_INVOCATION)
    store = LogStore()
    for function in "abcd":
        store.write(function, V, "i", "out", b"x" * PER_INVOCATION, 1.0)
    assert [bool(store.read(function, now=1.0)) for function in "abcd"] == [False, False, True, True]
    store.forget("c")
    store.write("e", V, "i", "out", b"x" * PER_INVOCATION, 1.0)
    assert store.read("d", now=1.0)


writes = st.lists(
    st.tuples(
        st.sampled_from(["i1", "i2", "i3", ""]),
        st.sampled_from(["out", "err"]),
        st.text("aé\n", max_size=20),
        st.integers(1, 5_000),
        st.floats(0, 5),
    ),
    max_size=60,
)


@settings(max_examples=50, deadline=None)
@given(writes)
def test_whatever_is_written_the_bounds_hold_and_all_kept_was_written(
    written: list[tuple[str, str, str, int, float]],
) -> None:
    store, now = LogStore(), 0.0
    said: dict[tuple[str, str], str] = {}
    for invocation, stream, line, times, pause in written:
        now += pause
        store.write(F, V, invocation, stream, (line * times).encode(), now)
        said[invocation, stream] = said.get((invocation, stream), "") + line * times
    entries = store.read(F, limit=1000, now=now)
    total = 0
    for entry in entries:
        for stream in ("out", "err"):
            kept = text_of(entry, stream)
            whole = said.get((str(entry["invocation_id"]), stream), "")
            assert kept == whole or (entry["cut"] and whole.startswith(kept.removesuffix("�")))
        total += sum(len(part["text"]) for part in entry["output"])  # type: ignore[attr-defined]
    assert total <= PER_FUNCTION

"""Frames: whatever way the bytes are cut, the same frames come out; what breaks the rules is refused, not guessed."""

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.framing import HEADER, MAX_BODY, MAX_META, Frame, FrameError, FrameParser, encode

frames = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=40),
    st.binary(max_size=200),
)


def as_bytes(sent: Sequence[Frame]) -> bytes:
    return b"".join(encode(one.kind, one.id, one.meta, one.body, one.flags) for one in sent)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_chunking_gives_the_same_frames(sent: list[Frame], at: list[int]) -> None:
    parser = FrameParser()
    taken = [frame for chunk in cut(as_bytes(sent), at) for frame in parser.feed(chunk)]
    assert taken == sent


@given(st.lists(frames, min_size=1, max_size=3))
def test_a_frame_comes_with_its_last_byte_and_not_before(sent: list[Frame]) -> None:
    parser, data = FrameParser(), as_bytes(sent)
    ends = [len(as_bytes(sent[: number + 1])) for number in range(len(sent))]
    for place in range(len(data)):
        taken = list(parser.feed(data[place : place + 1]))
        assert len(taken) == ends.count(place + 1)


@given(st.lists(frames, max_size=2), st.lists(st.integers(0, 10_000), max_size=3), st.integers(0, 255))
def test_a_lone_frame_is_one_that_feeding_would_have_given(sent: list[Frame], at: list[int], kind: int) -> None:
    parser, plain = FrameParser(max_meta=30, max_body=150), FrameParser(max_meta=30, max_body=150)
    kinds = [one.kind for one in sent] or [kind]
    try:
        for number, chunk in enumerate(cut(as_bytes(sent), at)):
            wanted = kinds[number % len(kinds)]
            ident = parser.lone(chunk, wanted)
            fed = list(plain.feed(chunk))
            if ident:
                (frame,) = fed
                assert (frame.kind, frame.id, frame.meta) == (wanted, ident, b"")
                assert chunk[HEADER.size :] == frame.body
            else:
                assert list(parser.feed(chunk)) == fed
    except FrameError:
        with pytest.raises(FrameError):
            list(parser.feed(chunk))


@given(frames)
def test_a_lone_frame_is_found(frame: Frame) -> None:
    data = encode(frame.kind, frame.id, b"", frame.body, frame.flags)
    assert FrameParser().lone(data, frame.kind) == frame.id
    assert FrameParser().lone(data[:-1], frame.kind) == FrameParser().lone(data, frame.kind ^ 1) == 0


def test_the_header_is_the_documented_one() -> None:
    assert encode(7, 0x01020304, b"meta", b"body!", 1) == bytes.fromhex("07 01 0000 01020304 00000004 00000005") + b"metabody!"


@pytest.mark.parametrize(("meta", "body", "fits"), [(8, 32, True), (9, 0, False), (0, 33, False)])
def test_lengths_over_the_limit_are_refused_before_the_bytes_come(meta: int, body: int, fits: bool) -> None:
    parser = FrameParser(max_meta=8, max_body=32)
    header = HEADER.pack(1, 0, 0, 1, meta, body)
    if fits:
        assert list(parser.feed(header)) == []
        assert list(parser.feed(bytes(meta + body))) == [Frame(1, 0, 1, bytes(meta), bytes(body))]
    else:
        with pytest.raises(FrameError, match="over the limit"):
            list(parser.feed(header))


def test_the_reserved_field_must_be_zero() -> None:
    with pytest.raises(FrameError):
        list(FrameParser().feed(HEADER.pack(1, 0, 1, 1, 0, 0)))


def test_frames_ahead_of_a_broken_one_are_still_delivered() -> None:
    found = FrameParser().feed(encode(1, 1, b"", b"fine") + HEADER.pack(2, 0, 9, 2, 0, 0))
    assert next(found).body == b"fine"
    with pytest.raises(FrameError):
        next(found)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_garbage_is_refused_or_waits_for_more_and_never_makes_bytes_up(garbage: bytes, at: list[int]) -> None:
    parser, taken = FrameParser(max_meta=64, max_body=64), []
    try:
        for chunk in cut(garbage, at):
            taken.extend(parser.feed(chunk))
    except FrameError:
        pass
    assert garbage.startswith(as_bytes(taken))


def test_a_large_body_in_small_pieces_comes_out_whole() -> None:
    body = bytes(range(256)) * (MAX_BODY // 256)
    parser, data = FrameParser(), encode(3, 5, b"m", body) + encode(4, 6)
    taken = [frame for at in range(0, len(data), 1400) for frame in parser.feed(data[at : at + 1400])]
    assert [(frame.kind, frame.id) for frame in taken] == [(3, 5), (4, 6)]
    assert taken[0].body == body


def test_the_default_limits_let_the_largest_payload_through() -> None:
    assert struct.calcsize("!BBHIII") == HEADER.size == 16
    assert list(FrameParser().feed(HEADER.pack(1, 0, 0, 1, MAX_META, MAX_BODY))) == []

"""The node's end of a sandbox's channel: queues, limits, pauses. And what a listener of output pipes may cost."""

import asyncio
import os
import socket

import pytest
from doubles.loop import in_loop, settle, until
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers import wire
from workers.drivers.wire import Allowance, OutputPipe, Wire
from workers.framing import Frame, FrameParser, encode


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 500)), max_size=50))
def test_an_allowance_never_gives_more_than_burst_and_rate(steps: list[tuple[float, float]]) -> None:
    """Waiting out each pause, what was taken fits into the burst and what time brought, but for the last amount."""
    allowance = Allowance(10.0, 100.0, 0.0)
    now = taken = 0.0
    for wait, amount in steps:
        now += wait
        pause = allowance.take(now, amount)
        taken += amount
        assert pause >= 0
        now += pause
        assert taken <= 100.0 + 10.0 * now + 1e-6


def test_an_allowance_saves_up_to_its_burst_only() -> None:
    allowance = Allowance(10.0, 20.0, 0.0)
    assert allowance.take(1000.0, 20.0) == 0
    assert allowance.take(1000.0, 5.0) == pytest.approx(0.5)


class Ends:
    def __init__(self) -> None:
        ours, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.frames: list[Frame] = []
        self.lost: list[str] = []
        self.wire = Wire(ours, self.frames.append, self.lost.append)

    def close(self) -> None:
        self.wire.close()
        self.guest.close()


@in_loop
async def test_frames_pass_both_ways() -> None:
    ends = Ends()
    ends.guest.send(encode(18, 1, b"{}", b"one") + encode(18, 2, b"{}", b"two")[:-1])
    await until(lambda: ends.frames, "a frame came")
    ends.guest.send(b"o")
    await until(lambda: len(ends.frames) == 2, "the second came")
    assert [frame.body for frame in ends.frames] == [b"one", b"two"]
    ends.wire.send(2, 9, b"{}", b"hello")
    await settle()
    assert list(FrameParser().feed(ends.guest.recv(1000))) == [Frame(2, 0, 9, b"{}", b"hello")]
    ends.close()


@in_loop
async def test_what_does_not_fit_is_queued_in_order() -> None:
    ends = Ends()
    bodies = [os.urandom(200_000) for _ in range(20)]
    for number, body in enumerate(bodies):
        ends.wire.send(2, number, b"", body)
    parser, frames = FrameParser(), []
    for _ in range(100_000):
        try:
            frames += parser.feed(ends.guest.recv(65536))
        except BlockingIOError:
            if len(frames) == 20:
                break
            await asyncio.sleep(0)
    assert [frame.body for frame in frames] == bodies
    assert ends.lost == []
    ends.close()


@in_loop
async def test_a_deaf_guest_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_QUEUED", 1 << 20)
    ends = Ends()
    for number in range(10):
        ends.wire.send(2, number, b"", bytes(400_000))
    assert len(ends.lost) == 1
    assert "does not read" in ends.lost[0]
    ends.close()


@in_loop
async def test_broken_frames_and_a_closed_channel_are_told_once() -> None:
    for data, words in ((b"\xff" * 32, "broke the protocol"), (b"", wire.CLOSED)):
        ends = Ends()
        if data:
            ends.guest.send(encode(18, 1) + data + data)
        else:
            ends.guest.close()
        await until(lambda ends=ends: ends.lost, "it was told")
        await settle()
        assert len(ends.lost) == 1
        assert words in ends.lost[0]
        ends.wire.send(2, 1)
        ends.close()


@in_loop
async def test_too_many_frames_pause_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAMES_BURST", 100.0)
    monkeypatch.setattr(wire, "FRAMES_PER_S", 200.0)
    ends = Ends()
    ends.guest.send(encode(21, 1) * 300)
    await until(lambda: len(ends.frames) == 300, "the first read")
    ends.guest.send(encode(21, 2))
    await settle(20)
    assert len(ends.frames) == 300  # paused for a second
    await until(lambda: len(ends.frames) == 301, "read again after the pause")
    ends.close()


@in_loop
async def test_closing_while_paused_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAMES_BURST", 1.0)
    ends = Ends()
    ends.guest.send(encode(21, 1) * 50)
    await until(lambda: ends.frames, "they came")
    ends.close()
    await asyncio.sleep(0.02)


@in_loop
async def test_a_callback_that_closes_stops_the_rest() -> None:
    ours, guest = socket.socketpair()
    seen: list[int] = []

    def take(frame: Frame) -> None:
        seen.append(frame.id)
        channel.close()

    channel = Wire(ours, take, lambda why: seen.append(-1))
    guest.send(encode(18, 1) + encode(18, 2))
    await until(lambda: seen, "the first came")
    await settle()
    assert seen == [1]
    guest.close()


@in_loop
async def test_the_last_words_of_a_guest_are_read() -> None:
    ends = Ends()
    ends.guest.send(encode(19, 4, b"{}"))
    ends.guest.close()
    ends.wire.drain()
    assert [frame.id for frame in ends.frames] == [4]
    ends.close()


@in_loop
async def test_output_is_read_to_the_end_and_floods_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "OUTPUT_BURST", 1000.0)
    monkeypatch.setattr(wire, "OUTPUT_PER_S", 5_000.0)
    read_end, write_end = os.pipe()
    got: list[bytes] = []
    pipe = OutputPipe(read_end, got.append)
    os.write(write_end, b"x" * 6000)
    await until(lambda: sum(map(len, got)) == 6000, "it was read")
    os.write(write_end, b"y")
    await settle(20)
    assert b"y" not in got  # in debt for a second
    await until(lambda: b"y" in got, "the debt was waited off")
    os.write(write_end, b"last")
    os.close(write_end)
    pipe.close()
    assert got[-1] == b"last"

"""What a node takes from a guest before anybody listens, and what it makes of numbers that are none."""

import time
import tracemalloc

import pytest
from doubles.loop import in_loop

from workers.drivers.conversation import MAX_EARLY_BYTES, Conversation
from workers.drivers.frames import FromGuest
from workers.framing import MAX_META, Frame


class Talk(Conversation):
    """A sandbox whose end nobody has to bring about."""

    def _end(self, reason: str) -> None:
        self._reason = reason


@pytest.mark.parametrize("told", [b"1" + b"0" * 400, b"-1" + b"0" * 400, b"1e308", b"-1"])
def test_an_init_time_of_any_size_is_within_what_the_node_measured(told: bytes) -> None:
    @in_loop
    async def check() -> None:
        talk = Talk()
        began = time.perf_counter()
        talk._on_frame(Frame(FromGuest.READY, 0, 0, b'{"init_ms":' + told + b"}", b""))
        report = await talk._report(began, 1)
        assert 0 <= report.init_ms <= (time.perf_counter() - began) * 1000
        assert report.attach_ms >= 0

    check()


@in_loop
async def test_what_comes_before_anybody_listens_is_kept_within_a_bound_of_bytes() -> None:
    talk = Talk()
    tracemalloc.start()
    try:
        for number in range(200):
            talk._on_frame(Frame(FromGuest.LOG, 0, number, bytes(MAX_META), b""))
            talk._keep_output("out", bytes(MAX_META))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < MAX_EARLY_BYTES + (1 << 20)
    heard: list[Frame] = []
    talk.on_frame = heard.append
    assert heard, "the first ones are kept"
    assert heard[0].id == 0

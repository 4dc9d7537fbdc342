"""What answers for a lazy layer's files, without a kernel: requests in, answers and words out."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.code.lazy import fuse, words
from workers.code.lazy.server import FAILED_FOR_S, Server
from workers.code.lazy.tree import Cuts, Tree

TIMEOUT_S = 30.0
FILES = [("a.py", 0o644, 10, 0), ("pkg/b.py", 0o755, 20, 10)]
SIZES = [10, 20]
CONTENT = bytes(range(30))


class Wired:
    """A server whose answers and words are kept."""

    def __init__(self, folder: Path, held: tuple[int, ...] = ()) -> None:
        path = folder / "content"
        path.write_bytes(CONTENT)
        self.descriptor = os.open(path, os.O_RDONLY)
        self.answers: list[tuple[int, int, bytes]] = []  # (request, errno, body)
        self.told: list[int] = []
        self.takes = True
        tree = Tree(FILES, (0, 0))
        self.server = Server(tree, Cuts(SIZES), self.descriptor, set(held), TIMEOUT_S, self._reply, self._send)
        self.a = tree.find(1, b"a.py")
        self.b = tree.find(tree.find(1, b"pkg"), b"b.py")

    def _reply(self, header: bytes, body: bytes) -> None:
        length, error, unique = struct.unpack("=IiQ", header)
        assert length == len(header) + len(body)
        self.answers.append((unique, -error, body))

    def _send(self, datagram: bytes) -> bool:
        if self.takes:
            self.told += words.unpack_touched(datagram)
        return self.takes

    def ask(self, code: int, unique: int, node: int, body: bytes = b"", now: float = 0.0) -> None:
        header = fuse.REQUEST.pack(fuse.REQUEST.size + len(body), code, unique, node, 0, 0, 0, 0, 0)
        self.server.take(memoryview(header + body), now)
        self.server.turn(now)

    def read(self, unique: int, node: int, offset: int, size: int, now: float = 0.0) -> None:
        self.ask(fuse.READ, unique, node, fuse.READ_IN.pack(0, offset, size, 0) + bytes(16), now)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    made = Wired(tmp_path)
    yield made
    os.close(made.descriptor)


def test_a_read_waits_for_its_chunk_and_is_answered_when_it_is_there(wired: Wired) -> None:
    wired.read(1, wired.b, 5, 100)
    assert (wired.answers, wired.told) == ([], [1])
    wired.read(2, wired.b, 0, 3)
    assert wired.told == [1]  # asked for once, however many wait
    wired.server.hear(words.pack_state(1, words.HELD), 0.1)
    assert sorted(wired.answers) == [(1, 0, CONTENT[15:30]), (2, 0, CONTENT[10:13])]
    wired.read(3, wired.b, 0, 1)
    assert wired.told == [1]


def test_a_read_that_waits_too_long_fails(wired: Wired) -> None:
    wired.read(1, wired.a, 0, 10, now=0.0)
    wired.server.turn(TIMEOUT_S - 0.1)
    assert wired.answers == []
    wired.server.turn(TIMEOUT_S)
    assert wired.answers == [(1, errno.EIO, b"")]
    wired.server.hear(words.pack_state(0, words.HELD), TIMEOUT_S + 1)
    assert len(wired.answers) == 1


def test_an_interrupted_read_ends_and_the_others_go_on_waiting(wired: Wired) -> None:
    wired.read(1, wired.a, 0, 10)
    wired.read(2, wired.a, 0, 10)
    wired.ask(fuse.INTERRUPT, 9, 0, fuse.INTERRUPT_IN.pack(1))
    assert wired.answers == [(1, errno.EINTR, b"")]
    wired.server.hear(words.pack_state(0, words.HELD), 0.1)
    assert wired.answers[1:] == [(2, 0, CONTENT[:10])]


def test_a_chunk_that_cannot_be_had_is_asked_for_again_but_not_at_once(wired: Wired) -> None:
    wired.read(1, wired.a, 0, 10)
    wired.server.hear(words.pack_state(0, words.FAILED), 1.0)
    wired.read(2, wired.a, 0, 10, now=1.0)
    assert wired.answers == [(1, errno.EIO, b""), (2, errno.EIO, b"")]
    assert wired.told == [0]
    wired.read(3, wired.a, 0, 10, now=1.0 + FAILED_FOR_S)
    assert wired.told == [0, 0]


def test_words_that_the_node_does_not_take_yet_are_kept(wired: Wired) -> None:
    wired.takes = False
    wired.read(1, wired.a, 0, 1)
    wired.read(2, wired.b, 0, 1)
    wired.takes = True
    wired.server.turn(0.0)
    assert wired.told == [0, 1]


@given(st.integers(0, 60), st.integers(0, 20), st.binary(max_size=64), st.booleans())
def test_any_request_gets_one_answer_or_waits(
    tmp_path_factory: pytest.TempPathFactory, code: int, node: int, body: bytes, held: bool
) -> None:
    wired = Wired(tmp_path_factory.mktemp("server"), held=(0, 1) if held else ())
    try:
        wired.ask(code, 5, node, body.ljust(64, b"\0"))
        wired.server.turn(TIMEOUT_S)
        silent = code in fuse.UNANSWERED or code == fuse.INTERRUPT
        assert len(wired.answers) == (0 if silent else 1)
        for _, error, answered in wired.answers:
            assert not (error and answered)
    finally:
        os.close(wired.descriptor)

"""A process that stands still with the interpreter's lock: none of its threads runs a line of Python before all is seeded."""

import _random
import json
import os
import random
import socket
import subprocess
import sys
import time

import pytest

from workers.guest import held

CHILD = """
import json, random, socket, sys, threading, time
sys.path.insert(0, sys.argv[1])
from workers.guest import held, runtime
{more}
random.seed(1)
runtime._note_unseeded()
other = random.Random()
other.setstate(random.getstate())
drawn = []
def draw():
    while len(drawn) < 2_000_000:
        drawn.append((random.random(), other.random(), {column}))
for _ in range({threads}):
    threading.Thread(target=lambda: [sum(range(50_000)) for _ in range(1000)], daemon=True).start()
thread = threading.Thread(target=draw, daemon=True)
thread.start()
gate = socket.socket(fileno=int(sys.argv[2]))
held.hold(gate)
at = len(drawn)
while len(drawn) < at + 100:
    time.sleep(0.01)
print(json.dumps(drawn[: at + 100]))
"""


class Child:
    def __init__(self, threads: int = 3, more: str = "", column: str = "0") -> None:
        self.gate, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate.settimeout(30)
        root = os.path.dirname(os.path.dirname(os.path.dirname(held.__file__)))
        source = CHILD.format(more=more, column=column, threads=threads)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", source, root, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def end(self) -> tuple[str, str]:
        with self.gate:
            try:
                return self._process.communicate(timeout=60)
            finally:
                self._process.kill()
                self._process.wait()


def seeded(fresh: bytes, number: int) -> list[float]:
    generator = random.Random()
    _random.Random.seed(generator, int.from_bytes(fresh, "big") + number)
    return [generator.random() for _ in range(50)]


def test_threads_go_on_with_what_they_were_seeded_with_and_nothing_in_between() -> None:
    child = Child()
    child.gate.send(held.HOLD)
    assert child.gate.recv(16) == held.HELD
    time.sleep(0.2)
    fresh = os.urandom(held.SIZE)
    child.gate.send(fresh)
    out, err = child.end()
    drawn = json.loads(out) if out else pytest.fail(err)
    before = random.Random(1)
    for number in range(2):
        column = [draw[number] for draw in drawn]
        expected = random.Random(1)
        kept = next(at for at, draw in enumerate(column) if draw != expected.random())
        assert column[kept : kept + 50] == seeded(fresh, number)
    assert before.random() == drawn[0][0]


def test_numpys_global_generator_too() -> None:
    numpy = pytest.importorskip("numpy")
    child = Child(0, "import numpy\nnumpy.random.seed(1)", "float(numpy.random.rand())")
    child.gate.send(held.HOLD)
    assert child.gate.recv(16) == held.HELD
    fresh = os.urandom(held.SIZE)
    child.gate.send(fresh)
    out, err = child.end()
    column = [draw[2] for draw in json.loads(out)] if out else pytest.fail(err)
    old, new = numpy.random.RandomState(1), numpy.random.RandomState(1)
    kept = next(at for at, draw in enumerate(column) if draw != float(old.rand()))
    new.set_state(("MT19937", numpy.frombuffer(fresh, numpy.uint32, held.MT_WORDS, held.SEED), held.MT_WORDS))
    assert column[kept : kept + 50] == [float(new.rand()) for _ in range(50)]


def test_who_gets_no_entropy_says_so() -> None:
    child = Child()
    child.gate.send(held.HOLD)
    assert child.gate.recv(16) == held.HELD
    child.gate.send(b"short")
    out, err = child.end()
    assert out == ""
    assert "got no entropy" in err

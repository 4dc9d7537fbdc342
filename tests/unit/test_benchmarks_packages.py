"""The packages of topic code: the same from the same seed, as large as they say, and able to start."""

import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from benchmarks.client import Answer
from benchmarks.tiers.packages import ENTRY, SHAPES, Shape, Words, write
from workers.code.bytecode import compile_tree

WORDS = Words(1)
SMALL = Shape("small", 600 << 10, 0.5, touched=0.6)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_follows_its_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, SMALL, seed, WORDS)
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


@pytest.mark.parametrize("shape", [SMALL, *SHAPES[:2]], ids=lambda shape: shape.name)
def test_with_bytecode_it_has_about_its_size_and_compresses_as_code_does(tmp_path, shape):
    write(tmp_path / "p", shape, 1, WORDS)
    assert compile_tree(str(tmp_path / "p")) == []
    files = content(tmp_path / "p")
    size = sum(map(len, files.values()))
    assert 0.85 * shape.size < size < 1.3 * shape.size
    assert 2 < size / len(zstandard.ZstdCompressor(level=3).compress(b"".join(files.values()))) < 6


def test_its_handler_imports_and_reads_what_is_touched(tmp_path):
    write(tmp_path / "p", SMALL, 1, WORDS)
    program = f"import {ENTRY}, sys; print({ENTRY}.handler(0, 0)['read'], sum(one.startswith('package') for one in sys.modules))"
    ended = subprocess.run([sys.executable, "-B", "-c", program], cwd=tmp_path / "p", capture_output=True, text=True, check=True)
    read, modules = map(int, ended.stdout.split())
    assert read > 0
    assert modules > 10


@pytest.mark.parametrize(
    ("header", "told"),
    [("queue;dur=1.5, code;desc=tier2;dur=3.25, run;dur=1", "tier2"), ("code;dur=3", ""), ("run;dur=1", ""), ("", "")],
)
def test_where_the_code_came_from_is_read_from_the_answer(header, told):
    answer = Answer(200, {"server-timing": header}, b"", 1.0)
    assert answer.code_from == told
    if told:
        assert answer.steps_ms == {"queue": 1.5, "code": 3.25, "run": 1.0}

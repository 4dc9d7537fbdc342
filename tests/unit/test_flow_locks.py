"""Locks: what uv writes is read, what the user's hashes leave, and what comes out of a sandbox is not believed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.flow.locks import LockError, Pin, held_to, read_lock, read_pins, write_lock
from orchestrator.flow.wheels import collect

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
UV_SAYS = f"""\
jinja2==3.1.6 \\
    --hash={A} \\
    --hash={B}
    # via -r requirements.txt
markupsafe==3.0.2 \\
    --hash={C}
    # via
    #   -c pins.txt
    #   jinja2
"""

names = st.sampled_from(["six", "jinja2", "ruamel-yaml", "a", "0", "zope-interface", "x" * 60])
hashes = st.lists(st.sampled_from([A, B, C, "sha384:" + "d" * 96]), min_size=1, max_size=4, unique=True)
versions = st.sampled_from(["1", "1.0", "2024.1.1", "1!2.0", "1.0a1", "1.0.post1", "1.0.dev3", "1.0+local.1"])
why = st.lists(names, max_size=3).map(" ".join)
pins = st.lists(
    st.builds(Pin, names, versions, hashes.map(tuple), why),
    max_size=5,
    unique_by=lambda pin: pin.name,
)


def test_what_uv_writes_is_read_with_why() -> None:
    first, second = read_lock(UV_SAYS)
    assert first == Pin("jinja2", "3.1.6", (A, B), "requirements.txt")
    assert second == Pin("markupsafe", "3.0.2", (C,), "jinja2")


@given(pins)
def test_what_is_written_is_read_again(pinned: list[Pin]) -> None:
    assert read_lock(write_lock(pinned, ["built here: x"])) == pinned


@pytest.mark.parametrize(
    "line", ["six", "six>=1", "six==1.0", f"six==1.0 --hash={A} -r x", "-r x", "./six.whl", f"six @ http://x --hash={A}"]
)
def test_a_line_that_pins_nothing_or_has_no_hash_is_no_lock(line: str) -> None:
    with pytest.raises(LockError):
        read_lock(line)


def test_hashes_of_the_user_are_the_only_ones_left() -> None:
    pinned = [Pin("six", "1.0", (A, B)), Pin("other", "2.0", (C,))]
    assert held_to(pinned, [f"Six==1.0 --hash={B} --hash={C}", "other"], {}) == [
        Pin("six", "1.0", (B,)),
        Pin("other", "2.0", (C,)),
    ]
    with pytest.raises(LockError, match=r"six==1\.0"):
        held_to(pinned, [f"six --hash={C}"], {})


def test_of_what_was_built_the_hash_of_the_source_counts() -> None:
    pinned = [Pin("six", "1.0", (A,))]
    assert held_to(pinned, [f"six --hash={B}"], {"six": B}) == pinned
    with pytest.raises(LockError):
        held_to(pinned, [f"six --hash={A}"], {"six": B})


@given(st.text(max_size=200))
def test_pins_from_a_sandbox_are_pins_or_refused(text: str) -> None:
    try:
        lines = read_pins(text)
    except LockError:
        return
    assert all(line.isascii() and "==" in line and not line.startswith("-") and " " not in line for line in lines)


def left(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in {"pins": "six==1.0\n", "built": "", **files}.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"pins": "six==1.0\n--index-url http://x\n"}, "not a pinned version"),
        ({"pins": "six==1.0 \\\n"}, "not a pinned version"),
        ({"built": "six==1.0 ../../x\n"}, "bad line"),
        ({"built": "six==1.0 six.tar.gz \x1b[31m\n"}, "bad line"),
        ({"built": f"six==1.0 {'x' * 600} abc\n"}, "bad line"),
    ],
)
def test_lists_that_were_tampered_with_are_refused(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    folder = left(tmp_path / "out", **files)
    (tmp_path / "in").mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(LockError, match=reason):
            collect(descriptor, tmp_path / "in")
    finally:
        os.close(descriptor)


def test_lists_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(LockError, match=r"no pins\.txt"):
            collect(descriptor, tmp_path / "in")
    finally:
        os.close(descriptor)


def test_the_program_of_a_build_needs_nothing_but_python() -> None:
    from orchestrator.flow import wheelwright

    done = subprocess.run(
        [sys.executable, "-I", "-S", str(wheelwright.__file__), "/nowhere/uv", "p", "r", "o"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "/nowhere/uv" in done.stderr

"""Finding an interpreter that sandboxes may run, and what of the host it needs."""

import os
import stat
import sys
from pathlib import Path

import pytest

from workers.drivers.process import interpreter
from workers.drivers.process.interpreter import NoInterpreter, find_interpreter


def test_the_one_found_runs_and_brings_no_packages() -> None:
    found = find_interpreter()
    sources = [source for source, _ in found.binds]
    assert os.access(found.executable, os.X_OK)
    assert all(source == os.path.realpath(source) for source in sources)
    assert not [source for source in sources if "-packages" in source]
    assert not [source for source in sources if source in ("/", "/usr", "/usr/bin", "/etc", "/home", "/var")]
    for first in sources:
        assert not [second for second in sources if second.startswith(first + "/")], "one bind inside another"
    modules = ("os.py", "json/__init__.py")
    assert all(any((Path(source) / module).exists() for source in sources) for module in modules)


def test_packages_of_the_host_inside_what_is_bound_are_masked(tmp_path: Path) -> None:
    for folder in ("site-packages/pip", "dist-packages", "python3.9/site-packages", "json"):
        (tmp_path / folder).mkdir(parents=True)
    masks = interpreter._masks({str(tmp_path)})
    assert masks == sorted(str(tmp_path / name) for name in ("dist-packages", "python3.9/site-packages", "site-packages"))


def test_a_virtual_environment_leads_to_what_it_was_made_from() -> None:
    found = find_interpreter(sys.executable)
    assert not Path(found.executable).is_relative_to(sys.prefix) or sys.prefix == sys.base_prefix


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\nexit 3\n", "misses a standard module"),
        ('#!/bin/sh\necho \'{"implementation": "pypy", "version": [3, 11]}\'\n', "not CPython 3.11"),
        ('#!/bin/sh\necho \'{"implementation": "cpython", "version": [3, 12]}\'\n', "not CPython 3.11"),
    ],
)
def test_what_is_no_such_interpreter_is_named_with_the_reason(tmp_path: Path, script: str, words: str) -> None:
    open_folder(tmp_path)
    path = tmp_path / "python3.11"
    path.write_text(script)
    path.chmod(0o755)
    with pytest.raises(NoInterpreter, match=words) as caught:
        find_interpreter(str(path))
    assert str(path) in str(caught.value)
    assert "FOREGLOW_PYTHON" in str(caught.value)


def open_folder(folder: Path) -> None:
    """Lets everybody in, as far up as this user may."""
    for part in [folder, *folder.parents]:
        if part.stat().st_uid == os.geteuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o055)


def test_a_missing_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoInterpreter, match="nowhere"):
        find_interpreter(str(tmp_path / "nowhere"))


@pytest.mark.needs_root
def test_root_needs_one_that_every_user_may_execute(tmp_path: Path) -> None:
    open_folder(tmp_path)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    path = home / "python3.11"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    with pytest.raises(NoInterpreter, match=r"not every user may read and execute .*home"):
        find_interpreter(str(path))


def test_the_elf_loader_is_read_from_the_program() -> None:
    real = os.path.realpath(find_interpreter().executable)
    loader = interpreter._elf_loader(real)
    assert loader.startswith("/lib")
    assert stat.S_ISREG(os.stat(loader).st_mode)
    assert interpreter._elf_loader(__file__) == ""

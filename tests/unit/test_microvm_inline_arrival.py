"""Code that comes inline, as the first process of a microVM writes it down, tells of it, and takes it away again."""

import marshal
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers.microvm.code import LAYERS_AT, written
from workers.guest import importing, machine

FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
NAMES = st.text("abc", min_size=1, max_size=3)


def made(folder: Path) -> str:
    (folder / "__pycache__").mkdir()
    return str(folder / "__pycache__")


def test_a_folder_that_is_there_takes_what_comes_for_it_and_outlives_it(tmp_path: Path) -> None:
    cache = made(tmp_path)
    files = [(f"{tmp_path}/a.py", FILE, 3), (cache, FOLDER, 0), (f"{cache}/a.pyc", FILE, 2), (f"{tmp_path}/p", FOLDER, 0)]
    machine.unpack(files, b"onetw", cache)
    assert (tmp_path / "a.py").read_bytes() == b"one"
    assert Path(cache, "a.pyc").read_bytes() == b"tw"
    assert (tmp_path / "p").is_dir()
    machine.remove(files, cache)
    assert os.listdir(tmp_path) == ["__pycache__"]
    assert os.listdir(cache) == []


def test_it_goes_when_the_code_beside_it_has_none(tmp_path: Path) -> None:
    machine.unpack([(f"{tmp_path}/a.py", FILE, 1)], b"x", made(tmp_path))
    assert os.listdir(tmp_path) == ["a.py"]


def test_it_stays_when_nothing_comes_beside_it(tmp_path: Path) -> None:
    cache = made(tmp_path)
    machine.unpack([], b"", cache)
    (tmp_path / "elsewhere").mkdir()
    machine.unpack([(f"{tmp_path}/elsewhere/b.py", FILE, 1)], b"x", str(tmp_path / "else" / "__pycache__"))
    assert Path(cache).is_dir()


@given(st.dictionaries(NAMES, st.binary(max_size=40), min_size=1), st.integers(0, 400))
def test_a_finder_is_told_all_names_and_some_bytecode_or_nothing(modules: dict[str, bytes], most: int) -> None:
    files, body = [("/f/__pycache__", FOLDER, 0), ("/f/inside/deep.py", FILE, 1), ("/elsewhere/x.py", FILE, 1)], b"dx"
    for name, bytecode in modules.items():
        files += [(f"/f/{name}.py", FILE, 4), (f"/f/__pycache__/{name}.pyc", FILE, len(bytecode))]
        body += b"text" + bytecode
    words = importing.told("/f", files, body, most)
    assert len(words) <= most
    if words:
        inside, bytecodes = marshal.loads(words)
        assert sorted(inside) == sorted(["__pycache__", *(f"{name}.py" for name in modules)])
        assert all(modules[name.removesuffix(".pyc")] == content for name, content in bytecodes.items())
    elif most == 400:
        assert sum(map(len, modules.values())) > 100


@pytest.mark.parametrize("told", [True, False])
def test_a_module_is_found_as_told_or_as_it_lies_there(told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = written({"quick.py": "answer = 42\nwhere = __file__\n"})
    files = [(path.replace(LAYERS_AT[0], str(tmp_path)), mode, size) for path, mode, size in carried.files]
    machine.unpack(files, carried.body, made(tmp_path))
    if told:  # and not looked at
        for path in Path(tmp_path, "__pycache__").iterdir():
            path.unlink()
    finder = importing.Finder(str(tmp_path))
    finder.know(importing.told(str(tmp_path), files, carried.body, 4096) if told else b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = finder.find_spec("quick")
    assert spec is not None
    assert isinstance(spec.loader, importing.Loader)
    assert spec.cached == f"{tmp_path}/__pycache__/quick.{sys.implementation.cache_tag}.pyc"
    found: dict[str, object] = {"__file__": spec.origin}
    exec(spec.loader.get_code("quick"), found)  # type: ignore[arg-type]
    assert (found["answer"], found["where"]) == (42, f"{tmp_path}/quick.py")
    assert finder.find_spec("missing") is None

"""The guest's short way to modules finds what the interpreter's own finder would, or nothing."""

import importlib
import os
import py_compile
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.guest.importing import Finder

NAMES = ("alpha", "beta", "json")
KINDS = ("source", "compiled", "stale", "checked", "package", "namespace", "extension", "file", "nothing")


def put(folder: Path, name: str, kinds: list[str]) -> None:
    source = folder / f"{name}.py"
    for kind in kinds:
        if kind in ("source", "compiled", "stale", "checked"):
            source.write_text(f"me = {name!r}\n\ndef where():\n    return 1 / 0\n")
        if kind in ("compiled", "checked"):
            how = "UNCHECKED_HASH" if kind == "compiled" else "CHECKED_HASH"
            py_compile.compile(str(source), dfile=source.name, invalidation_mode=py_compile.PycInvalidationMode[how])
        elif kind == "stale":
            cached = folder / "__pycache__" / f"{name}.{sys.implementation.cache_tag}.pyc"
            cached.parent.mkdir(exist_ok=True)
            cached.write_bytes(b"\0" * 40)
        elif kind in ("package", "namespace") and not (folder / name).is_file():
            (folder / name).mkdir(exist_ok=True)
            if kind == "package":
                (folder / name / "__init__.py").write_text("")
        elif kind == "extension":
            (folder / f"{name}{EXTENSION_SUFFIXES[-1]}").write_bytes(b"")
        elif kind == "file" and not (folder / name).exists():
            (folder / name).write_text("")


def facts(spec: ModuleSpec) -> tuple[object, ...]:
    assert isinstance(spec.loader, SourceFileLoader)
    code = spec.loader.get_code(spec.name)
    assert code is not None
    names = [code.co_filename, *(one.co_filename for one in code.co_consts if hasattr(one, "co_filename"))]
    inside = (spec.name, spec.origin, spec.cached, spec.has_location, spec.parent, spec.submodule_search_locations)
    return (*inside, spec.loader.path, spec.loader.get_source(spec.name), spec.loader.is_package(spec.name), code, names)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.lists(st.sampled_from(KINDS), max_size=3)), max_size=3))
def test_it_finds_what_the_interpreter_would(tmp_path_factory: pytest.TempPathFactory, laid: list[tuple[str, list[str]]]) -> None:
    folder = tmp_path_factory.mktemp("layer")
    for name, kinds in laid:
        put(folder, name, kinds)
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        for name in NAMES:
            found, theirs = Finder(str(folder)).find_spec(name), PathFinder.find_spec(name)
            if found is not None:
                assert theirs is not None
                assert facts(found) == facts(theirs)
            given_kinds = [kinds for one, kinds in laid if one == name]
            if given_kinds == [["compiled"]]:
                assert found is not None  # it is there for that
    finally:
        sys.path[:] = before
        sys.path_importer_cache.pop(str(folder), None)


def test_it_leaves_alone_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "alpha", ["compiled"])
    finder = Finder(str(tmp_path))
    assert finder.find_spec("alpha") is None  # the folder is not first
    monkeypatch.syspath_prepend(str(tmp_path))
    assert finder.find_spec("alpha") is not None
    assert finder.find_spec("pack.alpha", [str(tmp_path)]) is None
    monkeypatch.syspath_prepend("/elsewhere")
    assert finder.find_spec("alpha") is None  # user code put another before it


def test_what_it_saw_can_be_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    finder = Finder(str(tmp_path))
    assert finder.find_spec("alpha") is None
    put(tmp_path, "alpha", ["compiled"])
    assert finder.find_spec("alpha") is None
    finder.know(b"")
    found = finder.find_spec("alpha")
    assert found is not None
    assert found.origin == os.path.join(tmp_path, "alpha.py")

"""Functions generated from recorded traces: they deploy, keep the recorded probabilities, and call as recorded."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.calls import Call, Trace
from graph.ids import NAME_PATTERN, FunctionId, TenantId
from orchestrator.cli.manifest import read_manifest

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainticket"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"trainticket_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load(EXAMPLE / "generate.py")


def call(callee: str, caller_index: int, offset_s: float, duration_s: float) -> Call:
    return Call(FunctionId("t/x"), FunctionId(f"t/{callee}"), caller_index, offset_s, duration_s)


def test_own_work_is_what_is_left_of_the_calls_and_calls_that_overlap_are_a_group() -> None:
    calls = (call("b", -1, 0.010, 0.040), call("c", -1, 0.020, 0.050), call("d", -1, 0.080, 0.010), call("e", 1, 0.03, 0.01))
    trace = Trace(TenantId("t"), "1", FunctionId("t/a"), 0.100, calls)
    found = generate.behaviours([trace])
    assert found == {
        "a": [(30.0, [["b", "c"], ["d"]])],
        "b": [(40.0, [])],
        "c": [(40.0, [["e"]])],
        "d": [(10.0, [])],
        "e": [(10.0, [])],
    }


def test_samples_are_bounded_and_keep_the_recorded_share() -> None:
    traces = [
        Trace(TenantId("t"), str(n), FunctionId("t/a"), 0.1, (call("b", -1, 0.0, 0.01),) if n % 4 == 0 else ())
        for n in range(1000)
    ]
    kept = generate.behaviours(traces)["a"]
    assert len(kept) <= generate.SAMPLES
    share = sum(bool(groups) for _, groups in kept) / len(kept)
    assert share == pytest.approx(0.25, abs=0.1)


@given(st.lists(st.text(min_size=1, max_size=120), unique=True, max_size=20))
def test_every_recorded_name_becomes_a_deployable_one_or_it_says_so(names: list[str]) -> None:
    try:
        deployed = generate.deployable_names(names)
    except ValueError as error:
        assert "two recorded names" in str(error)
        return
    assert set(deployed) == set(names)
    assert len(set(deployed.values())) == len(names)
    assert all(NAME_PATTERN.match(name) for name in deployed.values())


def test_the_excerpt_becomes_a_folder_that_deploys_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = generate.generate(generate.read([EXAMPLE / "traces.csv.gz"]), tmp_path)
    assert len(names) >= 40
    assert {entry.name for entry in read_manifest(tmp_path)} == set(names.values())
    assert json.loads((tmp_path / "map.json").read_text()) == names

    service = load(tmp_path / "service.py")
    monkeypatch.setattr(service.time, "sleep", lambda seconds: None)
    called: Counter[str] = Counter()

    def run(name: str, event: object, depth: int = 0) -> dict[str, int]:
        assert depth < 16
        called[name] += 1

        def invoke_all(calls: list[tuple[str, object]]) -> list[dict[str, int]]:
            return [run(callee, sent, depth + 1) for callee, sent in calls]

        return dict(service.handle(event, SimpleNamespace(function_name=name, invoke_all=invoke_all)))

    answer = run("preserve-preserve", {"seed": 10})
    assert answer["calls"] == called.total() - 1
    assert answer["calls"] > 10
    first = dict(called)
    run("preserve-preserve", {"seed": 10})
    assert {name: count // 2 for name, count in called.items()} == first  # a seed repeats a run

"""`foreglow whatif` on a small excerpt of real traces: what it prints, and what it says of what it cannot use."""

import json
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import main

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "tests" / "data" / "trainticket" / "traces.csv.gz"
GOLDEN = ROOT / "tests" / "data" / "whatif.txt"
EXACT = ("--clone-ms", "5", "--init-ms", "145", "--load", "poisson:2/min", "--runs", "40", "--keep-alive", "60")


def told(*arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, int]:
    """Stdout, stderr and the exit code."""
    monkeypatch.setattr(sys, "argv", ["foreglow", "whatif", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return out, err, int(ended.value.code or 0)


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    out, _, code = told(TRACES, *EXACT, capsys=capsys, monkeypatch=monkeypatch)
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0
    assert lines == GOLDEN.read_text().splitlines(), "if this is meant: the output is the new tests/data/whatif.txt"


def test_json_holds_all_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    out, _, code = told(TRACES, *EXACT, "--json", "--policy", "none", "--policy", "path", capsys=capsys, monkeypatch=monkeypatch)
    document = json.loads(out)
    assert code == 0
    assert document["traces"]["runs"] == 25
    assert document["load"] == {"runs": 40, "not_counted": 20, "told": document["load"]["told"]}
    assert document["starts"]["clone_ms"] == [5.0, 5.0]
    none, path = document["policies"]
    assert (none["policy"], path["policy"]) == ("none", "path")
    assert none["stages"]["waited"] == 1.0
    assert none["wasted_gb_s"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert path["added_s"]["low"] <= path["added_s"]["value"] <= path["added_s"]["high"] < none["added_s"]["value"]
    assert 0.0 <= path["calibration_error"] <= 1.0


def test_what_is_kept_after_a_use_has_a_price_of_its_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    wasted = {}
    for price in (0.01, 1.0, 100.0):
        given = (*EXACT, "--keep-alive", "600", "--json", "--policy", "priced", "--keep-price", price)
        document = json.loads(told(TRACES, *given, capsys=capsys, monkeypatch=monkeypatch)[0])
        assert document["prices"] == {**document["prices"], "idle_gb_s": 1.0, "keep_gb_s": price}
        (priced,) = document["policies"]
        wasted[price] = priced["keep_alive_s"]
    assert wasted[0.01] > wasted[1.0] > wasted[100.0]


@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_a_picture(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / f"frontier{kind}"
    _, _, code = told(
        TRACES, *EXACT, "--policy", "none", "--policy", "keep-alive", "--plot", path, capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 0
    assert path.read_bytes().startswith({".png": b"\x89PNG", ".svg": b"<?xml"}[kind])


def test_what_differs_between_functions_is_given_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = tmp_path / "functions.json"
    given.write_text(json.dumps({"ts-gateway-service/*": {"init_ms": "1000:1500", "memory_mb": 1024}}))
    base = (TRACES, *EXACT, "--policy", "keep-alive", "--json")
    plain = json.loads(told(*base, capsys=capsys, monkeypatch=monkeypatch)[0])["policies"][0]
    large = json.loads(told(*base, "--functions", given, capsys=capsys, monkeypatch=monkeypatch)[0])["policies"][0]
    assert large["added_s"]["value"] > plain["added_s"]["value"]
    assert large["wasted_gb_s"]["value"] > plain["wasted_gb_s"]["value"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--load", "poisson:fast"), "--load: 'poisson:fast' is not poisson:RATE"),
        (
            ("--load", "no/such.csv"),
            "--load: 'no/such.csv': No such file or directory; give a CSV of runs per minute",
        ),
        (("--driver", "docker"), "--driver: 'docker' is not one of process, microvm"),
        (("--policy", "magic"), "--policy: 'magic' is not one of none, keep-alive"),
        (("--clone-ms", "9:3"), "--clone-ms: '9:3' is not MEDIAN or MEDIAN:P99 in milliseconds"),
        (("--init-ms", "soon"), "--init-ms: 'soon' is not MEDIAN or MEDIAN:P99 in milliseconds"),
        (("--runs", "0"), "--runs: 0 must be over 0"),
        (("--keep-alive", "-1"), "--keep-alive: -1 is not a number of seconds"),
        (("--idle-price", "0"), "--idle-price: 0 must be over 0"),
        (("--keep-price", "0"), "--keep-price: 0 must be over 0"),
        (("--plot", "there.bmp"), "--plot: there.bmp must end with .png, .svg, .pdf"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    _, err, code = told(TRACES, *arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert f"foreglow: {says}" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "functions.json is not JSON"),
        ("[]", "functions.json must be one JSON object"),
        ('{"ts-gateway-service/*": 3}', "must be an object of init_ms and memory_mb"),
        ('{"ts-gateway-service/*": {"init_ms": "x"}}', "ts-gateway-service/*.init_ms: 'x' is not MEDIAN"),
        ('{"ts-gateway-service/*": {"memory_mb": -1}}', "ts-gateway-service/*.memory_mb: -1 is not a number of MB"),
        ('{"nobody": {}}', "nobody is in no trace"),
    ],
)
def test_functions_that_cannot_be_used_are_named(
    tmp_path: Path, content: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = tmp_path / "functions.json"
    given.write_text(content)
    _, err, code = told(TRACES, "--functions", given, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert says in err.replace("'nobody'", "nobody")


def test_traces_that_cannot_be_read_name_file_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    broken = tmp_path / "broken.csv"
    broken.write_text("TraceID,SpanID\n1,2\n")
    _, err, code = told(broken, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert f"{broken}: " in err
    assert "line 1" in err
    _, err, code = told(tmp_path / "none.json", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "none.json" in err
    empty = tmp_path / "empty.json"
    empty.write_text('{"data": []}')
    _, err, code = told(empty, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "can be replayed" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "nope"], "--format: 'nope' is not one of otlp"),
        (["--clone-ms", "1e300"], "--clone-ms: '1e300' is not MEDIAN"),
        (["--functions", "/dev/zero"], "--functions: /dev/zero is longer than"),
        (["--load", "/dev/zero"], "line 1: longer than 1 MB"),
    ],
)
def test_what_never_ends_or_is_nothing_is_refused_in_a_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    _, err, code = told(TRACES, *arguments, "--policy", "none", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert says in err
    assert len(err.splitlines()) == 1


def test_functions_that_are_nested_too_deeply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    _, err, code = told(TRACES, "--functions", path, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "is not JSON" in err) == (1, True)


def test_traces_without_lines_in_csv(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    _, err, code = told("/dev/zero", "--format", "csv", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "CSV: line 1: longer than 1 MB" in err) == (1, True)

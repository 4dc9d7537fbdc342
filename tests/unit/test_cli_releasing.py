"""The commands of releases: what they make of words (ramps, times, weights), what they send and show."""

import json
import subprocess
import sys
from typing import Any

import pytest
from doubles.canned_api import Api, described, version

from orchestrator.cli.failure import Failure
from orchestrator.cli.releasing import meaning, plan_of, pointer_of, seconds


def test_a_ramp_is_shares_and_a_hold_seconds() -> None:
    assert plan_of("10,30,100", "2m", no_gate=False) == {"ramp": [0.1, 0.3, 1.0], "hold_s": 120.0}
    assert plan_of(None, None, no_gate=False) == {}
    assert plan_of(None, None, no_gate=True) == {"gate": False}


@pytest.mark.parametrize("ramp", ["", " ", "30,10", "0,100", "10,101", "ten", "10,,100", "nan", "10,nan,100"])
def test_a_ramp_that_is_none_is_told(ramp: str) -> None:
    if not ramp:
        assert plan_of(ramp, None, no_gate=False) == {}
        return
    with pytest.raises(Failure, match="--ramp"):
        plan_of(ramp, None, no_gate=False)


def test_no_gate_and_a_ramp_exclude_each_other() -> None:
    with pytest.raises(Failure, match="--no-gate"):
        plan_of("10,100", None, no_gate=True)


@pytest.mark.parametrize(
    ("text", "value"), [("60", 60.0), ("60s", 60.0), ("500ms", 0.5), ("1.5m", 90.0), ("2min", 120.0), ("1h", 3600.0)]
)
def test_times_are_read(text: str, value: float) -> None:
    assert seconds(text, "--hold") == value


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 day", "nan", "1e3"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(Failure, match="--hold"):
        seconds(text, "--hold")


def test_targets_are_one_version_or_two_with_percents() -> None:
    assert pointer_of(["3"]) == {"version": 3}
    assert pointer_of(["3:100%"]) == {"version": 3}
    assert pointer_of(["3:70", "4:30"]) == {"version": 3, "second": 4, "share": 0.3}


@pytest.mark.parametrize("targets", [[], ["3:70"], ["3", "4"], ["3:70", "4:40"], ["a"], ["3:x", "4:1"], ["1", "2", "3"]])
def test_what_is_no_target_is_told(targets: list[str]) -> None:
    with pytest.raises(Failure):
        pointer_of(targets)


def test_a_pointer_is_shown_with_its_percents() -> None:
    assert meaning({"version": 3, "second": None, "share": 0.0}) == "3"
    assert meaning({"version": 3, "second": 4, "share": 0.3}) == "3 (70 %), 4 (30 %)"
    assert meaning(None) == ""


@pytest.mark.parametrize(
    "command", [["publish"], ["versions"], ["alias"], ["rollback"], ["release", "status"], ["release", "abort"]]
)
def test_each_command_says_what_it_takes(command: list[str]) -> None:
    told = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.cli.main", *command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "--state" in told.stdout


# -- against an API that answers as the contract says

ONE = {"version": 3, "second": None, "share": 0.0}
TWO = {"version": 3, "second": 4, "share": 0.3}
OPEN = {
    "id": 7, "function": "shop", "alias": "live", "target": 4, "phase": "holding", "step": 0, "flipped": 1,
    "steps": [TWO, {"version": 4, "second": None, "share": 0.0}], "back": ONE, "hold_s": 60.0,
    "reason": "is [watched] for 60 s", "gate": [{"version": "shop:4", "wanted": 2, "ready": 1}],
    "watch": [{"version": "shop:4", "requests": 26, "errors": 1, "p95_ms": 106.2}],
    "created_at": 1.0, "since": 1.0, "ended_at": None,
}  # fmt: skip
DONE = OPEN | {"phase": "done", "step": 1, "flipped": 2, "reason": "", "gate": [], "ended_at": 2.0}
STOPPED = OPEN | {"phase": "stopped", "reason": "9 of its 100 requests failed", "ended_at": 2.0}
LIVE = {"name": "live", "sticky": "key", "before": ONE, "changed_at": 1.0, "release": None, **TWO}
COMING = LIVE | ONE | {"release": OPEN}
ALIASES = "/v1/functions/shop/aliases"


def test_a_version_is_published_with_an_alias_and_kept_no_longer(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/functions/shop/published", {"version": 3, "label": "spring", "alias": LIVE | ONE})
    api.on("DELETE", "/v1/functions/shop/published/3", None, 204)
    code, out, err = foreglow("publish", "shop", "--version", "3", "--label", "spring", "--alias", "live")
    assert (code, out, err) == (0, "published shop:3 (spring)\nshop:live means 3\n", "")
    assert json.loads(api.asked[0][2]) == {"version": 3, "label": "spring", "alias": "live"}
    assert foreglow("publish", "shop", "--remove", "--version", "3")[1] == "shop:3 is not published any more\n"
    assert foreglow("publish", "shop", "--remove")[2] == "foreglow: --remove: name the version with --version\n"


def test_versions_say_which_aliases_mean_them(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions/shop", described("shop", version(3, label="[spring]", published_at=1.0), version(4), version(2)))
    api.on("GET", ALIASES, {"aliases": [LIVE, LIVE | ONE | {"name": "old"}]})
    code, out, err = foreglow("versions", "shop")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()[:1] and line.split()[0].isdigit()}
    assert list(lines) == ["4", "3", "2"]
    assert "live 30 %" in lines["4"]
    assert "live 70 %, old" in lines["3"]
    assert "[spring]" in lines["3"]
    assert "live" not in lines["2"]


def test_an_alias_is_shown_set_by_a_release_rolled_back_and_removed(api: Api, foreglow: Any) -> None:
    api.on("GET", ALIASES, {"aliases": [COMING]})
    api.on("PUT", f"{ALIASES}/live", COMING, 202)
    api.on("POST", f"{ALIASES}/live/rollback", LIVE)
    api.on("DELETE", f"{ALIASES}/live", None, 204)
    assert "7: holding" in foreglow("alias", "shop")[1]
    words = ("alias", "shop", "live", "3:70", "4:30", "--sticky", "header:X-User", "--ramp", "10,30", "--hold", "2m")
    told = "shop:live means 3; release 7 leads to 4 (`foreglow release status shop`)\n"
    assert foreglow(*words) == (0, told, "")
    sent = {"version": 3, "second": 4, "share": 0.3, "sticky": "header:x-user", "release": {"ramp": [0.1, 0.3], "hold_s": 120.0}}
    assert json.loads(api.asked[1][2]) == sent
    assert foreglow("rollback", "shop", "live")[1] == "shop:live means 3 (70 %), 4 (30 %)\n"
    assert foreglow("alias", "shop", "live", "--remove")[1] == "removed shop:live\n"


def test_releases_are_shown_and_waited_for_and_one_that_was_stopped_is_a_failure(api: Api, foreglow: Any) -> None:
    path = "/v1/releases?function=shop&limit=20"
    api.on("GET", path, {"releases": [OPEN]})
    code, out, _ = foreglow("release", "status", "shop")
    assert code == 0
    for told in ("shop:live", "holding", "3 (70 %), 4 (30 %) > 4", "shop:4 1/2", "is [watched] for 60 s"):
        assert told in out
    for ended, wanted in ((DONE, 0), (STOPPED, 1)):
        api.on("GET", path, {"releases": [OPEN]})
        api.then("GET", path, {"releases": [ended]})
        code, _, err = foreglow("release", "status", "shop", "--wait")
        assert code == wanted
        assert ("9 of its 100 requests failed" in err) == bool(wanted)


def test_a_release_is_aborted_by_its_number_or_its_function(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/releases?function=shop&limit=100", {"releases": [DONE | {"id": 8}, OPEN]})
    api.on("GET", "/v1/releases?function=none&limit=100", {"releases": [DONE]})
    api.on("POST", "/v1/releases/7/abort", OPEN | {"phase": "aborted"})
    for named in ("shop", "7"):
        assert foreglow("release", "abort", named)[1] == "release 7 of shop aborted; live means 3\n"
    assert foreglow("release", "abort", "none")[2] == "foreglow: no release of none is on its way\n"

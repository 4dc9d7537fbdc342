"""What the page says of scaling and of releases, out of the API's documents."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.page import releases, scaling


def point(at: float, wanted: int = 1, ready: int = 1, busy: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "at": at,
        "wanted": wanted,
        "ready": ready,
        "busy": busy,
        "by": "reactive",
        "reason": f"{wanted} at once",
        "limit": "",
    } | more


def version(name: str, *history: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": name, "wanted": 0, "ready": 0, "busy": 0, "coming": 0, "short": 0, "by": "", "reason": "", "limit": "",
        "terms": [], "history": list(history),
    } | more  # fmt: skip


BUSY = version(
    "pay:2", wanted=5, ready=3, busy=2, coming=1, short=1, by="reactive", reason="5 at once need 5", limit="max is 5",
    terms=[{"source": "min", "count": 1, "reason": "min_instances is 1"},
           {"source": "reactive", "count": 5, "reason": "5 at once"}],
)  # fmt: skip
OLD = version("pay:1", ready=2)


def test_a_function_is_its_versions_together_and_the_busiest_comes_first() -> None:
    functions = scaling.by_function([OLD, version("stock:1"), BUSY])
    assert [one["version"] for one in functions["pay"]] == ["pay:2", "pay:1"]
    assert scaling.busiest(functions) == ["pay", "stock"]
    assert scaling.busiest(functions, "STO") == ["stock"]
    said = scaling.said("kpa", functions, ["pay", "stock"])
    assert said == "2 functions: 5 wanted, 5 ready, 2 busy, 1 coming, no room for 1; policy kpa"


def test_a_card_and_a_row_say_counts_who_decided_why_and_what_limits() -> None:
    functions = scaling.by_function([OLD, BUSY, version("stock:1")])
    pay, stock = scaling.cards(["pay", "stock"], functions, "pay")
    assert (pay["sub"], pay["chosen"], pay["note"]) == ("versions 1, 2", True, "1 coming, no node has room for 1")
    assert pay["counts"] == [["5", "wanted"], ["5", "ready"], ["2", "busy"]]
    assert (pay["by"]["text"], pay["why"]) == ("reactive", "5 at once need 5 (limited: max is 5)")
    assert (stock["by"], stock["why"], stock["sub"]) == (None, "nothing asks for one", "no instance")
    row, _ = scaling.rows(["pay", "stock"], functions, "")
    assert row["cells"][1:4] == ["5", "5", "2"]
    assert row["cells"][6] == {"text": "5 at once need 5", "sub": "max is 5"}
    decided, other = scaling.term_rows([OLD, BUSY])
    assert (decided["chosen"], decided["cells"][1]["sub"], decided["cells"][2]) == (True, "decided", "5")
    assert (other["chosen"], other["cells"][1]["text"]) == (False, "min")


def test_points_of_all_versions_add_up_and_come_once() -> None:
    course = scaling.Course()
    first = [version("pay:1", point(1.0, 2, 2, 1)), version("pay:2", point(3.0, 1, 0))]
    assert course.take(first) == [[1.0, 2, 2, 1], [3.0, 3, 2, 1]]
    assert course.take(first) == []
    assert course.take([version("pay:1", point(1.0, 2, 2, 1), point(4.0, 0, 1)), version("pay:2", point(3.0, 1, 0))]) == [
        [4.0, 1, 1, 0]
    ]
    assert course.take([version("pay:2", point(3.0), point(5.0, 4, 4))]) == [[5.0, 4, 4, 0]], "what is gone counts no more"


@given(st.lists(st.tuples(st.sampled_from(["a:1", "a:2"]), st.integers(0, 9)), max_size=30), st.integers(1, 5))
def test_however_points_are_cut_the_course_is_the_same(changes: list[tuple[str, int]], pieces: int) -> None:
    points = [(name, point(float(at + 1), wanted)) for at, (name, wanted) in enumerate(changes)]

    def told(upto: int) -> list[dict[str, Any]]:
        return [version(name, *(one for of, one in points[:upto] if of == name)) for name in ("a:1", "a:2")]

    whole, cut = scaling.Course().take(told(len(points))), scaling.Course()
    assert [one for part in range(pieces + 1) for one in cut.take(told(len(points) * part // pieces))] == whole


def test_changes_are_those_of_what_is_wanted_unless_all_are_asked_for() -> None:
    kept = scaling.Chronicle()
    history = [point(1.0, 1, 0), point(2.0, 1, 1), point(3.0, 4, 1, limit="max is 4"), point(4.0, 4, 4, limit="max is 4")]
    assert len(kept.take([version("pay:1", *history)])["pay:1"]) == 4
    assert kept.take([version("pay:1", *history)]) == {}
    rows, many = scaling.change_rows(kept.points, every=False, limit=10)
    assert many == 2
    assert rows[0]["cells"][1:4] == ["1 → 4", "1", "0"]
    assert rows[0]["cells"][5] == {"text": "4 at once", "sub": "max is 4"}
    rows, many = scaling.change_rows(kept.points, every=True, limit=2)
    assert (len(rows), many) == (2, 4)
    assert [row["cells"][2] for row in rows] == ["1 → 4", "1"]


def test_a_chronicle_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "KEPT", 3)
    kept = scaling.Chronicle()
    kept.take([version("pay:1", *(point(float(at)) for at in range(9)))])
    assert [one["at"] for one in kept.points["pay:1"]] == [6.0, 7.0, 8.0]


# -- releases

ONE = {"version": 3, "second": None, "share": 0.0}
TWO = {"version": 3, "second": 4, "share": 0.1}
NEW = {"version": 4, "second": None, "share": 0.0}
NEED = {"version": "pay:4", "wanted": 2, "ready": 1, "limit": ""}
RELEASE = {
    "id": 7, "function": "pay", "alias": "live", "target": 4, "phase": "preparing", "step": 0, "flipped": 0, "steps": [TWO, NEW],
    "back": ONE, "hold_s": 60.0, "reason": "1 of 2 instances of pay:4 ready",
    "gate": [NEED, NEED | {"version": "stock:1", "wanted": 1}], "watch": [],
    "created_at": 100.0, "since": 100.0, "ended_at": None,
}  # fmt: skip
HOLDING = RELEASE | {
    "phase": "holding", "flipped": 1, "gate": [], "reason": "is watched for 60 s, 40 requests so far",
    "watch": [{"version": "pay:4", "requests": 40, "errors": 2, "p95_ms": 12.3},
              {"version": "pay:3", "requests": 0, "errors": 0, "p95_ms": 0}],
}  # fmt: skip
STOPPED = HOLDING | {"phase": "stopped", "reason": "its 95th percentile is 90 ms", "ended_at": 130.0}


def standings(one: dict[str, Any]) -> list[str]:
    return [state for state, _, _ in releases.steps(one)]


def test_a_step_stands_where_its_release_is() -> None:
    assert standings(RELEASE) == ["preparing", "to come"]
    assert standings(HOLDING) == ["in force", "to come"]
    assert standings(HOLDING | {"phase": "preparing", "step": 1}) == ["in force", "preparing"]
    assert standings(HOLDING | {"phase": "done", "step": 1, "flipped": 2}) == ["was in force", "in force"]
    assert standings(STOPPED) == ["stopped", "not reached"]
    assert standings(RELEASE | {"phase": "stopped"}) == ["stopped", "not reached"]
    assert standings(HOLDING | {"phase": "superseded", "step": 1}) == ["was in force", "superseded"]
    assert [share for _, share, _ in releases.steps(RELEASE)] == ["10 %", "100 %"]


def test_a_gate_says_what_is_ready_of_what_is_needed_on_the_whole_path() -> None:
    own, path = releases.gate_rows(RELEASE)
    assert (own["cells"][0]["sub"], own["cells"][1]["text"], own["cells"][2]["text"]) == ("", "preparing", "1 of 2")
    assert own["cells"][2]["track"][0]["width"] == 50.0
    assert (path["cells"][0]["sub"], path["cells"][1]["text"]) == ("on its call path", "ready")
    (more,) = releases.gate_rows(STOPPED | {"gate": [NEED | {"ready": 7, "limit": "max_instances is 2"}]})
    assert (more["cells"][2]["text"], more["cells"][2]["sub"]) == ("2 of 2, 7 are there", "max_instances is 2")
    (none,) = releases.gate_rows(STOPPED | {"gate": [NEED | {"ready": 0}]})
    assert (none["cells"][1]["text"], none["cells"][2]["track"]) == ("not ready", [])
    assert releases.reason(RELEASE) == "The gate is shut: 1 of 2 instances of pay:4 ready."
    assert releases.state(RELEASE, 112.0) == "step 1 of 2 in preparation for 12 s"


def test_a_hold_says_its_time_and_how_the_versions_do() -> None:
    assert releases.held(RELEASE, 130.0) is None
    assert releases.held(HOLDING, 115.0) == (0.25, "Hold: 45 s of 60 s left")
    assert releases.held(HOLDING, 200.0) == (
        pytest.approx(1 / 3),
        "Hold: 3.3 min of 5.0 min left: too few requests yet to judge it",
    )
    new, old = releases.watch_rows(HOLDING)
    assert new["cells"] == [{"text": "pay:4", "sub": "the new one"}, "40", "2 (5 %)", "12.3 ms"]
    assert old["cells"][1:] == ["0", "0", ""]
    assert releases.reason(HOLDING) == "The step is watched for 60 s, 40 requests so far."
    few = HOLDING | {"reason": "12 requests are too few to judge it"}
    assert releases.reason(few) == "12 requests are too few to judge it."


def test_traffic_is_what_the_alias_means_or_what_the_release_says() -> None:
    assert releases.traffic(RELEASE, None) == [("old", 100.0, "version 3: 100 % of the runs")]
    parts = [("old", 90.0, "version 3: 90 % of the runs"), ("new", 10.0, "version 4: 10 % of the runs")]
    assert releases.traffic(HOLDING, None) == parts
    assert releases.traffic(RELEASE, TWO) == parts


def test_an_ended_release_says_why_where_traffic_went_and_what_a_rollback_does() -> None:
    alias = {"name": "live", "sticky": "key", "before": NEW, "changed_at": 1.0, "release": None, **ONE}
    assert releases.reason(STOPPED) == "Its 95th percentile is 90 ms."
    assert releases.state(STOPPED, 999.0) == "stopped after 30 s, 1 of 2 steps came into force"
    assert releases.facts(STOPPED, alias) == [
        ("Traffic", "went back to version 3, at once"),
        ("Now", "live means version 3"),
        ("A rollback", "brings back version 4, at once: foreglow rollback pay live"),
        ("Sticky by", "key"),
    ]
    assert releases.facts(HOLDING, alias) == [
        ("When it stops", "traffic goes back to version 3, at once; by hand: foreglow release abort 7")
    ]
    done = HOLDING | {"phase": "done", "ended_at": 200.0}
    (row,) = releases.list_rows([done], 7)
    assert row["chosen"]
    assert row["cells"][0] == {"text": "pay live", "choose": "7", "sub": "release 7"}
    assert row["cells"][3] == "10 % → 100 %"
    assert row["cells"][5] == "all that was needed was ready"

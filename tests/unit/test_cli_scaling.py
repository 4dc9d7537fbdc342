"""`foreglow scaling`, against an API that answers as the contract says."""

import json
from typing import Any

from doubles.canned_api import Api

POINT = {"at": 1.0, "wanted": 1, "ready": 0, "busy": 0, "by": "reactive", "reason": "1 at once [of one]", "limit": ""}
VERSION = {
    "version": "shop:4", "wanted": 6, "ready": 5, "busy": 3, "coming": 1, "short": 2, "by": "reactive",
    "reason": "8 at once [in the last] 6 s need 8", "limit": "max is 6",
    "terms": [{"source": "min", "count": 1, "reason": "min_instances is 1"},
              {"source": "reactive", "count": 8, "reason": "8 at once in the last 6 s need 8"}],
    "history": [],
}  # fmt: skip
TOLD = {"policy": "headroom", "tick_s": 1.0, "ticks": 9, "at": 5.0, "versions": [VERSION]}


def test_all_versions_are_a_table_with_who_decided_and_why(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/scaling", TOLD)
    code, out, err = foreglow("scaling")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if "shop:4" in line]
    assert line.split()[:7] == ["shop:4", "6", "5", "3", "1", "2", "reactive"]
    assert "8 at once [in the last] 6 s need 8 (max is 6)" in line
    assert "policy headroom" in out
    assert json.loads(foreglow("scaling", "--json")[1]) == TOLD


def test_one_function_is_told_with_its_terms_and_its_newest_changes(api: Api, foreglow: Any) -> None:
    history = [
        POINT,
        POINT | {"at": 2.0, "wanted": 8, "reason": "a burst", "limit": "max is 6"},
        POINT | {"at": 3.0, "wanted": 7},
    ]
    api.on("GET", "/v1/functions/shop/scaling", TOLD | {"versions": [VERSION | {"history": history}]})
    code, out, err = foreglow("scaling", "shop", "--limit", "2")
    assert (code, err) == (0, "")
    terms = out.partition("what each policy asks for")[2].partition("changes")[0]
    assert "min_instances is 1" in terms
    changes = out.partition("shop:4: changes")[2]
    assert "a burst (max is 6)" in changes
    assert "1 at once [of one]" in changes
    assert len([line for line in changes.splitlines() if "reactive" in line]) == 2


def test_a_function_that_is_not_there_is_told(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions/shop/scaling", {"title": "Not Found", "detail": "no function 'shop'", "status": 404}, 404)
    code, _, err = foreglow("scaling", "shop")
    assert code == 1
    assert "no function 'shop'" in err

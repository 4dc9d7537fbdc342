"""Commands against an API that answers as the contract says: what they say when it goes wrong, conditions, events, nodes."""

import json
from pathlib import Path
from typing import Any

from doubles.canned_api import Api, condition, described, version


def test_no_platform_is_one_line_with_the_way_out(foreglow: Any, tmp_path: Path) -> None:
    code, out, err = foreglow("list", "--state", str(tmp_path / "nothing"))
    assert (code, out) == (1, "")
    assert err.startswith(f"foreglow: no platform runs on {tmp_path / 'nothing'}: start one with `foreglow up`")


def test_a_dead_platform_is_told_from_a_missing_one(foreglow: Any, tmp_path: Path) -> None:
    (tmp_path / "addresses.json").write_text('{"functions": "http://127.0.0.1:1", "control": "http://127.0.0.1:1"}')
    (tmp_path / "key").write_text("k")
    code, _, err = foreglow("list", "--state", str(tmp_path))
    assert code == 1
    assert err == f"foreglow: nothing answers at http://127.0.0.1:1: is `foreglow up` running on {tmp_path}?\n"


def test_a_wrong_key_says_where_the_key_comes_from(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions", {"title": "not authenticated", "status": 401, "detail": "unknown key"}, 401)
    assert foreglow("list")[2] == "foreglow: unknown key; the key is read from FOREGLOW_KEY or the state folder (--state)\n"


def test_an_answer_that_is_no_problem_document_is_shown_shortened(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions", b"<html>proxy</html>", 503)
    assert foreglow("list")[2] == "foreglow: status 503: <html>proxy</html>\n"


# -- conditions, events, nodes


def test_describe_shows_what_the_newest_version_waits_for_in_order(api: Api, foreglow: Any) -> None:
    conditions = [
        condition("capacity", "unknown", "1 of 3 instances [ready]"),
        condition("code", "true"),
        condition("network", "not needed", "it is in no private network"),
        condition("route", "unknown", "waits for the other conditions"),
    ]
    waiting = version(2, "pending", conditions=conditions, initial_instances=3)
    api.on("GET", "/v1/functions/a", described("a", version(1, reason="an old story"), waiting))
    api.on("GET", "/v1/instances", {"instances": [], "templates": [], "away": []})
    code, out, err = foreglow("describe", "a")
    assert (code, err) == (0, "")
    shown = [line.split()[:3] for line in out.splitlines() if " d ago" in line]
    assert shown == [["2", "code", "true"], ["2", "network", "not"], ["2", "capacity", "unknown"], ["2", "route", "unknown"]]
    assert "1 of 3 instances [ready]" in out


def test_the_lock_of_the_newest_version_is_shown_as_it_is(api: Api, foreglow: Any) -> None:
    lock = "six==1.17.0 \\\n    --hash=sha256:4721\n"
    api.on("GET", "/v1/functions/a", described("a", version(1), version(2)))
    api.on("GET", "/v1/functions/a/versions/2/lock", {"lock": lock})
    assert foreglow("describe", "a", "--lock") == (0, lock, "")
    code, out, _ = foreglow("describe", "a", "--lock", "--json")
    assert (code, json.loads(out)) == (0, {"lock": lock})


def test_a_version_without_a_lock_says_so_beside_the_output(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/functions/a", described("a", version(1)))
    api.on("GET", "/v1/functions/a/versions/1/lock", {"lock": ""})
    code, out, err = foreglow("describe", "a", "--lock")
    assert (code, out) == (0, "")
    assert "version 1 of 'a' has no lock" in err


EVENT = {
    "id": 7, "kind": "deployed", "subject": "default/a", "module": "function_management", "tries": 10,
    "reason": "the [disk] is full", "created": 1.0, "due": None, "parked": 2.0,
}  # fmt: skip


def test_events_are_a_table_page_by_page(api: Api, foreglow: Any) -> None:
    api.on("GET", "/v1/events?parked=true&after=0&limit=1000", {"events": [EVENT]})
    api.on("GET", "/v1/events?parked=true&after=7&limit=1000", {"events": [EVENT | {"id": 8, "parked": None, "due": 3.0}]})
    api.on("GET", "/v1/events?parked=true&after=8&limit=1000", {"events": []})
    code, out, err = foreglow("events", "--parked")
    assert (code, err) == (0, "")
    assert "parked" in out
    assert "the [disk] is full" in out
    assert [one["id"] for one in json.loads(foreglow("events", "--parked", "--json")[1])["events"]] == [7, 8]


def test_events_are_retried_by_number_or_all(api: Api, foreglow: Any) -> None:
    api.on("POST", "/v1/events/7/retry", {"retried": [7]})
    api.on("POST", "/v1/events/retry", {"retried": []})
    assert foreglow("events", "retry", "7")[:2] == (0, "tried again: 7\n")
    assert foreglow("events", "retry", "--all")[:2] == (0, "tried again: none was parked\n")
    for wrong in (("events", "retry"), ("events", "retry", "7", "--all")):
        code, _, err = foreglow(*wrong)
        assert (code, err) == (1, "foreglow: name one event, or --all; `foreglow events --parked` lists them\n")


def test_a_node_is_bound_to_tenants_and_freed_again(api: Api, foreglow: Any) -> None:
    api.on("PUT", "/v1/nodes/n1/tenants", None, 204)
    assert foreglow("nodes", "allow", "n1", "acme", "globex")[1] == "n1 hosts acme, globex\n"
    assert foreglow("nodes", "allow", "n1")[1] == "n1 hosts all tenants\n"
    assert [json.loads(body) for *_, body, _ in api.asked] == [{"tenants": ["acme", "globex"]}, {"tenants": []}]
    one = {"name": "n1", "role": "node", "address": "10.0.0.2:8703", "zone": "default", "state": "up", "epoch": 1}
    api.on("GET", "/v1/nodes", {"nodes": [{**one, "joined": 1.0, "last_seen": None, "tenants": ["acme"]}]})
    assert "acme" in foreglow("nodes")[1]

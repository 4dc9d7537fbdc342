"""Releases as somebody uses them, under load: aliases, weights, gates, ramps, rollback; and with the planner killed meanwhile."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from doubles.platforms import Platform
from doubles.releasing import Releaser, eventually, numbers, waited

pytestmark = pytest.mark.system

CLIENTS = 4


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releaser]:
    rules = {
        "REQUESTS": "20",
        "TIMEOUT_S": "20",
        "SLOWDOWN": "50",
    }  # other tests on the machine must not look like a slow version
    platform = Platform(
        tmp_path_factory.mktemp("releases"), **{f"FOREGLOW_RELEASE_{name}": value for name, value in rules.items()}
    )
    made = Releaser(platform)
    try:
        yield made
    finally:
        made.close()
        assert platform.stop() == 0, platform.logs()


def test_versions_are_invoked_by_name_number_and_alias_and_rolled_back(live: Releaser) -> None:
    first, second = live.deploy("named", 1), live.deploy("named", 2)
    assert live.invoke("named")["number"] == 2
    assert live.invoke(f"named:{first}")["number"] == 1
    published = live.ask("POST", "/v1/functions/named/published", {"version": first, "label": "spring", "alias": "live"})
    assert (published["version"], published["alias"]["version"]) == (first, first)
    eventually(lambda: live.functions.post("/function/named:live").json().get("number") == 1, "the alias is known")
    live.ask("PUT", "/v1/functions/named/aliases/live", {"version": second}, 202)
    live.release("named")
    eventually(lambda: live.invoke("named:live")["number"] == 2, "the alias moves")
    rolled = live.ask("POST", "/v1/functions/named/aliases/live/rollback")
    assert (rolled["version"], rolled["before"]["version"]) == (first, second)
    eventually(lambda: live.invoke("named:live")["number"] == 1, "the alias moves back")
    live.ask("POST", "/v1/functions/named/aliases/$LATEST/rollback")
    eventually(lambda: live.invoke("named")["number"] == 1, "$LATEST moves back")
    assert live.functions.post("/function/named:nobody").status_code == 404


def test_a_split_is_by_run_or_sticky_and_a_child_follows_its_run(live: Releaser) -> None:
    first, second = live.deploy("split", 1), live.deploy("split", 2)
    live.deploy("asks", 9)
    wanted = {"version": first, "second": second, "share": 0.5, "sticky": "", "release": {"gate": False}}
    live.ask("PUT", "/v1/functions/split/aliases/both", wanted, 202)
    eventually(lambda: live.functions.post("/function/split:both").status_code == 200, "the alias is known")
    runs = [live.invoke("asks", {"calls": ["split:both"] * 3})["calls"] for _ in range(40)]
    assert all(len(set(calls)) == 1 for calls in runs), runs
    assert {calls[0] for calls in runs} == {1, 2}
    live.ask("PUT", "/v1/functions/split/aliases/both", {**wanted, "sticky": "header:x-user"}, 202)

    def got() -> dict[str, set[int]]:
        return {user: {live.invoke("split:both", **{"x-user": user})["number"] for _ in range(5)} for user in map(str, range(20))}

    eventually(lambda: all(len(one) == 1 for one in got().values()), "the gateway goes by the header")
    users = got()
    assert all(len(one) == 1 for one in users.values()), users
    assert set().union(*users.values()) == {1, 2}


def test_a_release_under_load_lets_no_request_wait_on_the_new_version(live: Releaser) -> None:
    live.deploy("busy", 1)
    with live.load("busy", CLIENTS) as answers:
        eventually(lambda: numbers(answers)[1] > 100, "the first version serves")
        live.put("busy", 2, release={"ramp": [0.3, 1.0], "hold_s": 4.0}, at_init="time.sleep(0.3)")
        held = live.release("busy", ("holding", "stopped"))
        assert held["phase"] == "holding", held
        ended = live.release("busy", ("done", "stopped"))
        assert (ended["phase"], ended["flipped"]) == ("done", 2), ended
        eventually(lambda: {one.number for one in answers[-100:]} == {2}, "the second version serves")
        flipped = time.monotonic()
        eventually(lambda: sum(one.sent > flipped for one in answers) > 100, "it goes on")
    assert {one.status for one in answers} == {200}
    assert waited(answers, 2) == []
    assert {one.number for one in answers if one.sent > flipped} == {2}


def test_a_version_whose_init_fails_gets_no_request(live: Releaser) -> None:
    live.deploy("breaks", 1)
    with live.load("breaks", CLIENTS) as answers:
        eventually(lambda: numbers(answers)[1] > 50, "the first version serves")
        number = live.put("breaks", 2, at_init='raise KeyError("no such setting")')
        failed = live.settled("breaks", number, "failed")
        stopped = live.release("breaks", ("stopped",))
        since = len(answers)
        eventually(lambda: len(answers) > since + 50, "the first version goes on")
    assert "KeyError" in stopped["reason"]
    assert "KeyError" in next(one["reason"] for one in failed["conditions"] if one["name"] == "route")
    assert numbers(answers).keys() == {1}
    assert {one.status for one in answers} == {200}


def test_a_ramp_stops_by_itself_when_the_new_version_fails(live: Releaser) -> None:
    live.deploy("fails", 1)
    with live.load("fails", CLIENTS) as answers:
        eventually(lambda: numbers(answers)[1] > 50, "the first version serves")
        number = live.put("fails", 2, release={"ramp": [0.3, 1.0], "hold_s": 30.0}, fails=True)
        stopped = live.release("fails", ("stopped", "done"))
        assert stopped["phase"] == "stopped"
        eventually(lambda: {one.number for one in answers[-100:]} == {1}, "the gateway knows")
        since = time.monotonic()
        eventually(lambda: sum(one.sent > since for one in answers) > 50, "the first version goes on")
    new, old = stopped["watch"]
    assert (new["version"], old["version"]) == (f"fails:{number}", f"fails:{number - 1}")
    assert f"{new['errors']} of its {new['requests']} requests failed" in stopped["reason"], "what it was judged by is shown"
    assert stopped["flipped"] == 1
    assert {one.number for one in answers if one.sent > since} == {1}
    assert live.ask("GET", "/v1/functions/fails")["latest"] != number


def test_a_ramp_goes_on_when_the_planner_is_killed_in_the_middle(live: Releaser) -> None:
    live.deploy("goes", 1)
    with live.load("goes", CLIENTS) as answers:
        eventually(lambda: numbers(answers)[1] > 50, "the first version serves")
        live.put("goes", 2, release={"ramp": [0.2, 0.6, 1.0], "hold_s": 3.0})
        held = live.release("goes", ("holding",))
        os.kill(live.platform.pids()["planner"], signal.SIGKILL)
        ended = live.release("goes", ("done", "stopped", "aborted"))
    assert (ended["id"], ended["phase"], ended["flipped"]) == (held["id"], "done", 3), ended
    assert {one.status for one in answers} == {200}


def test_an_aborted_release_goes_back_and_a_newer_deploy_supersedes(live: Releaser) -> None:
    live.deploy("turns", 1)
    with live.load("turns", CLIENTS) as answers:
        eventually(lambda: numbers(answers)[1] > 50, "the first version serves")
        live.put("turns", 2, release={"ramp": [0.5, 1.0], "hold_s": 60.0})
        held = live.release("turns", ("holding",))
        live.put("turns", 3, release={"ramp": [0.5, 1.0], "hold_s": 60.0})
        newer = live.release("turns", ("holding",))
        eventually(lambda: newer["id"] != held["id"] or newer.update(live.release("turns", ("holding",))), "the newer one holds")
        older = live.ask("GET", f"/v1/releases/{held['id']}")
        assert older["phase"] == "superseded"
        aborted = live.ask("POST", f"/v1/releases/{newer['id']}/abort")
        assert (aborted["phase"], aborted["back"]["version"]) == ("aborted", 1)
        eventually(lambda: {one.number for one in answers[-100:]} == {1}, "the gateway knows")
        since = time.monotonic()
        eventually(lambda: sum(one.sent > since for one in answers) > 50, "the first version goes on")
    assert {one.number for one in answers if one.sent > since} == {1}
    assert live.control.post(f"/v1/releases/{newer['id']}/abort").status_code == 409

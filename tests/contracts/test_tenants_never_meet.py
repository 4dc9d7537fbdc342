"""Every endpoint with another tenant's key: nothing is shown, nothing is changed.

The list of endpoints is the OpenAPI document of a platform that runs. Each (method, path) of it needs an entry here, a new one
fails the first test until it has one:

- `@crosses("GET", "/v1/things/{name}")` over a function of the Crossing (doubles.crossings) that asks with beta's key for what is
  alpha's, or for everything, and looks at the answer with `world.clean(answer, expected_status)`: no mark of alpha may be in it.
  What the endpoint shows that others do not (an id of its own) goes into `Crossing.marks`;
- or `OPERATOR_ONLY`, with why a tenant has no business there: it is asked with beta's key and must answer 403;
- or `PUBLIC`, with why it concerns no tenant.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doubles.crossings import ONLY, OTHER, SECRET, Crossing, eventually, running_crossing

from orchestrator.catalog.model import Delivery, Event, EventKind, Module
from orchestrator.catalog.store import Store
from orchestrator.settings import Settings

pytestmark = pytest.mark.system

OPERATOR_ONLY = {
    ("POST", "/v1/tenants"): "who may use the platform is for whoever runs it",
    ("GET", "/v1/tenants"): "names all tenants",
    ("PUT", "/v1/tenants/{name}/quotas"): "nobody sets his own limits",
    ("DELETE", "/v1/tenants/{name}"): "as making one",
    ("POST", "/v1/join-tokens"): "who may join the cluster is for whoever runs it",
    ("GET", "/v1/nodes"): "names hosts and their addresses",
    ("DELETE", "/v1/nodes/{name}"): "takes capacity from everybody",
    ("PUT", "/v1/nodes/{name}/tenants"): "takes capacity from all others",
    ("GET", "/metrics"): "counts of the whole platform, for whoever watches over it",
}
PUBLIC = {
    ("GET", "/healthz"): "says that the process lives",
    ("GET", "/readyz"): "says that the database answers",
}
FORGED = (
    "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
    "ab,01,root,forged-7f8c-x2k4p,/a,1700000000000000000,1700000000120000000,120000\n"
)
CROSSINGS: dict[tuple[str, str], Callable[[Crossing], None]] = {}


def crosses(method: str, path: str) -> Callable[[Callable[[Crossing], None]], Callable[[Crossing], None]]:
    def register(case: Callable[[Crossing], None]) -> Callable[[Crossing], None]:
        assert (method, path) not in CROSSINGS
        CROSSINGS[method, path] = case
        return case

    return register


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossing]:
    with running_crossing(tmp_path_factory.mktemp("crossing")) as made:
        yield made


# -- one case for each endpoint


@crosses("POST", "/v1/packages")
def _(world: Crossing) -> None:
    """The same bytes are two packages: that alpha has them tells beta nothing, and gives it nothing."""
    before = world.alpha.get("/v1/tenant")["use"]["package_bytes"]
    assert world.beta.package != world.alpha.package
    wanted = {"package": world.beta.package, "handler": "app:shared"}
    assert world.alpha.control.put("/v1/functions/shared", json=wanted).json()["field"] == "package"
    assert world.alpha.get("/v1/tenant")["use"]["package_bytes"] == before


@crosses("PUT", "/v1/functions/{name}")
def _(world: Crossing) -> None:
    wanted = {"package": world.alpha.package, "handler": "app:shared"}
    refused = world.beta.control.put("/v1/functions/thief", json=wanted)
    assert (refused.status_code, refused.json()["field"]) == (400, "package")
    before = world.alpha.get("/v1/functions/shared")
    world.beta.deploy("shared")
    assert world.alpha.get("/v1/functions/shared") == before


@crosses("GET", "/v1/functions")
def _(world: Crossing) -> None:
    names = {one["name"] for one in world.clean(world.beta.control.get("/v1/functions"))["functions"]}
    assert {"shared", "front"} <= names


@crosses("GET", "/v1/functions/{name}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/functions/{ONLY}"), 404)
    assert world.clean(world.beta.control.get("/v1/functions/shared"))["versions"][0]["package"] == world.beta.package


@crosses("DELETE", "/v1/functions/{name}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.delete(f"/v1/functions/{ONLY}"), 404)
    assert world.beta.control.delete("/v1/functions/doomed").status_code == 204
    eventually(lambda: world.beta.invoke("doomed").status_code == 404, "beta's is gone")
    assert world.alpha.invoke("doomed").json()["mark"] == SECRET


@crosses("GET", "/v1/functions/{name}/versions/{number}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/functions/{ONLY}/versions/1"), 404)
    world.clean(world.beta.control.get("/v1/functions/shared/versions/1"))


@crosses("GET", "/v1/functions/{name}/versions/{number}/lock")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/functions/{ONLY}/versions/1/lock"), 404)
    assert world.clean(world.beta.control.get("/v1/functions/shared/versions/1/lock")) == {"lock": ""}


@crosses("GET", "/v1/functions/{name}/aliases")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/functions/{ONLY}/aliases"), 404)
    (latest,) = world.clean(world.beta.control.get("/v1/functions/shared/aliases"))["aliases"]
    assert latest["name"] == "$LATEST"


@crosses("PUT", "/v1/functions/{name}/aliases/{alias}")
def _(world: Crossing) -> None:
    """An alias of the same name is each tenant's own."""
    world.clean(world.beta.control.put(f"/v1/functions/{ONLY}/aliases/live", json={"version": 1}), 404)
    before = world.alpha.get("/v1/functions/shared/aliases")
    assert world.beta.control.put("/v1/functions/shared/aliases/live", json={"version": 1}).status_code == 202
    assert world.alpha.get("/v1/functions/shared/aliases") == before
    eventually(lambda: world.beta.invoke("shared:live").status_code == 200, "beta's alias is known")
    assert world.alpha.invoke("shared:live").status_code == 404
    assert world.beta.control.delete("/v1/functions/shared/aliases/live").status_code == 204


@crosses("DELETE", "/v1/functions/{name}/aliases/{alias}")
def _(world: Crossing) -> None:
    assert world.alpha.control.put(f"/v1/functions/{ONLY}/aliases/live", json={"version": 1}).status_code == 202
    world.clean(world.beta.control.delete(f"/v1/functions/{ONLY}/aliases/live"), 404)
    assert "live" in {one["name"] for one in world.alpha.get(f"/v1/functions/{ONLY}/aliases")["aliases"]}


@crosses("POST", "/v1/functions/{name}/aliases/{alias}/rollback")
def _(world: Crossing) -> None:
    before = world.alpha.get(f"/v1/functions/{ONLY}/aliases")
    world.clean(world.beta.control.post(f"/v1/functions/{ONLY}/aliases/$LATEST/rollback"), 404)
    assert world.alpha.get(f"/v1/functions/{ONLY}/aliases") == before


@crosses("POST", "/v1/functions/{name}/published")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.post(f"/v1/functions/{ONLY}/published", json={"label": "mine"}), 404)
    assert world.alpha.get(f"/v1/functions/{ONLY}/versions/1")["label"] == ""


@crosses("DELETE", "/v1/functions/{name}/published/{number}")
def _(world: Crossing) -> None:
    assert world.alpha.control.post(f"/v1/functions/{ONLY}/published", json={"version": 1}).status_code == 200
    world.clean(world.beta.control.delete(f"/v1/functions/{ONLY}/published/1"), 404)
    assert world.alpha.get(f"/v1/functions/{ONLY}/versions/1")["published_at"] is not None


@crosses("GET", "/v1/releases")
def _(world: Crossing) -> None:
    _released(world)
    assert world.clean(world.beta.control.get(f"/v1/releases?function={ONLY}")) == {"releases": []}
    world.clean(world.beta.control.get("/v1/releases"))


@crosses("GET", "/v1/releases/{release}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/releases/{_released(world)}"), 404)


@crosses("POST", "/v1/releases/{release}/abort")
def _(world: Crossing) -> None:
    release = _released(world)
    world.clean(world.beta.control.post(f"/v1/releases/{release}/abort"), 404)
    assert world.alpha.get(f"/v1/releases/{release}")["phase"] not in ("aborted", "stopped")


def _released(world: Crossing) -> int:
    """The number of a release of alpha's that only it has."""
    if not world.alpha.get(f"/v1/releases?function={ONLY}")["releases"]:
        world.alpha.deploy(ONLY)
    return int(world.alpha.get(f"/v1/releases?function={ONLY}")["releases"][0]["id"])


@crosses("GET", "/v1/tenant")
def _(world: Crossing) -> None:
    assert world.clean(world.beta.control.get("/v1/tenant"))["name"] == "beta"


@crosses("GET", "/v1/keys")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get("/v1/keys"))
    world.clean(world.beta.control.get("/v1/keys?tenant=alpha"), 403)


@crosses("POST", "/v1/keys")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.post("/v1/keys?tenant=alpha", json={"name": "k"}), 403)
    world.clean(world.beta.control.post("/v1/keys", json={"name": "k", "role": "operator"}), 403)


@crosses("DELETE", "/v1/keys/{key_id}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.delete(f"/v1/keys/{world.key_id}"), 404)
    world.clean(world.beta.control.delete(f"/v1/keys/{world.key_id}?tenant=alpha"), 403)
    assert world.alpha.control.get("/v1/tenant").status_code == 200


@crosses("GET", "/v1/graph")
def _(world: Crossing) -> None:
    for form in ("json", "dot", "mermaid"):
        assert "shared" in str(world.clean(world.beta.control.get(f"/v1/graph?format={form}")))


@crosses("GET", "/v1/plans/{name}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/plans/{ONLY}"), 404)
    world.clean(world.beta.control.get(f"/v1/plans/../alpha/{ONLY}"), 404)
    world.clean(world.beta.control.get("/v1/plans/front"))


@crosses("GET", "/v1/decisions")
def _(world: Crossing) -> None:
    assert world.clean(world.beta.control.get("/v1/decisions?limit=1000"))["decisions"]
    for query in (f"run={world.run}", f"function={ONLY}"):
        assert world.clean(world.beta.control.get(f"/v1/decisions?{query}"))["decisions"] == []


@crosses("GET", "/v1/decisions/stream")
def _(world: Crossing) -> None:
    seen = []
    with world.beta.control.stream("GET", "/v1/decisions/stream", headers={"Last-Event-ID": "0"}) as stream:
        ends = time.monotonic() + 2.0
        world.alpha.control.post("/v1/functions/front/warm", json={"count": 3})
        world.beta.control.post("/v1/functions/front/warm", json={"count": 3})
        for line in stream.iter_lines():
            seen.append(line)
            if time.monotonic() > ends and any(line.startswith("data:") for line in seen):
                break
    told = [json.loads(line[5:])["decision_id"] for line in seen if line.startswith("data:")]
    theirs = {one["decision_id"] for one in world.alpha.get("/v1/decisions?limit=1000")["decisions"]}
    assert told
    assert not theirs & set(told)
    assert not [mark for mark in world.marks if mark in "\n".join(seen)]


@crosses("GET", "/v1/decisions/totals")
def _(world: Crossing) -> None:
    before = world.alpha.get("/v1/decisions/totals")
    mine = world.beta.get("/v1/decisions?limit=1000")["decisions"]
    told = world.clean(world.beta.control.get("/v1/decisions/totals"))
    assert sum(told["outcomes"].values()) <= len(mine) + 10, "as many as are its own"
    nothing = world.clean(world.beta.control.get(f"/v1/decisions/totals?function={ONLY}"))
    assert not any(nothing["outcomes"].values())
    assert world.alpha.get("/v1/decisions/totals").keys() == before.keys()


@crosses("GET", "/v1/decisions/{decision_id}")
def _(world: Crossing) -> None:
    theirs = world.alpha.get("/v1/decisions?limit=1000")["decisions"][0]["decision_id"]
    world.clean(world.beta.control.get(f"/v1/decisions/{theirs}"), 404)
    own = world.beta.get("/v1/decisions?limit=1000")["decisions"][0]["decision_id"]
    assert world.clean(world.beta.control.get(f"/v1/decisions/{own}"))["decision_id"] == own


@crosses("GET", "/v1/calibration")
def _(world: Crossing) -> None:
    told = world.clean(world.beta.control.get("/v1/calibration"))
    assert {one["function"] for one in told["functions"]} <= {"shared", "front", "doomed"}
    assert told["functions"]


def scaled(answer: dict[str, Any]) -> set[str]:
    return {one["version"].partition(":")[0] for one in answer["versions"]}


@crosses("GET", "/v1/scaling")
def _(world: Crossing) -> None:
    def told(side: Any, name: str) -> bool:
        assert side.invoke(name).status_code == 200
        return name in scaled(side.get("/v1/scaling"))

    eventually(lambda: told(world.alpha, ONLY), "alpha's traffic is counted")
    eventually(lambda: told(world.beta, "shared"), "so is beta's")
    assert scaled(world.clean(world.beta.control.get("/v1/scaling"))) <= {"shared", "front", "doomed"}
    named = world.clean(world.beta.control.get("/v1/scaling", params={"functions": f"{ONLY},shared", "after": 0}))
    assert scaled(named) <= {"shared"}


@crosses("GET", "/v1/functions/{name}/scaling")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/functions/{ONLY}/scaling"), 404)
    assert scaled(world.clean(world.beta.control.get("/v1/functions/shared/scaling"))) <= {"shared"}


@crosses("GET", "/v1/activity")
def _(world: Crossing) -> None:
    assert "shared" in json.dumps(world.clean(world.beta.control.get("/v1/activity")))


@crosses("GET", "/v1/instances")
def _(world: Crossing) -> None:
    assert world.beta.invoke("shared").status_code == 200
    found = world.clean(world.beta.control.get("/v1/instances"))["instances"]
    assert {one["function"] for one in found} <= {"shared", "front", "doomed"}
    assert found


@crosses("GET", "/v1/code")
def _(world: Crossing) -> None:
    assert world.beta.invoke("shared").status_code == 200
    found = world.clean(world.beta.control.get("/v1/code"))["functions"]
    assert "shared" in {one["function"] for one in found} <= {"shared", "front", "doomed"}


@crosses("POST", "/v1/page/links")
def _(world: Crossing) -> None:
    """A link signs in as the bearer of the key that made it."""
    world.clean(world.beta.control.post("/v1/page/links"), 201)


@crosses("GET", "/v1/runs")
def _(world: Crossing) -> None:
    assert len(world.clean(world.beta.control.get("/v1/runs?limit=1000"))["runs"]) >= 3


@crosses("GET", "/v1/runs/{trace_id}")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/runs/{world.run}"), 404)


@crosses("GET", "/v1/workflows")
def _(world: Crossing) -> None:
    assert world.clean(world.beta.control.get("/v1/workflows"))["workflows"]


@crosses("POST", "/v1/functions/{name}/warm")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.post(f"/v1/functions/{ONLY}/warm", json={}), 404)
    world.clean(world.beta.control.post("/v1/functions/front/warm", json={}))


@crosses("POST", "/v1/cool")
def _(world: Crossing) -> None:
    assert world.alpha.invoke("shared").status_code == 200
    for body in ({}, {"function": "shared"}, {"function": ONLY}):
        world.clean(world.beta.control.post("/v1/cool", json=body))
    assert world.alpha.invoke("shared").headers["x-foreglow-start"] == "warm"


@crosses("GET", "/v1/prewarm")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get("/v1/prewarm"))


@crosses("PUT", "/v1/prewarm")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.put("/v1/prewarm", json={"policy": "off"}))
    assert world.alpha.get("/v1/prewarm")["policy"] == "path"
    world.clean(world.beta.control.put("/v1/prewarm", json={"policy": "path"}))


@crosses("GET", "/v1/functions/{name}/logs")
def _(world: Crossing) -> None:
    world.clean(world.beta.control.get(f"/v1/functions/{ONLY}/logs"), 404)
    assert OTHER in str(world.clean(world.beta.control.get("/v1/functions/shared/logs")))
    assert world.clean(world.beta.control.get(f"/v1/functions/shared/logs?invocation={world.invocation}"))["logs"] == []


@crosses("POST", "/v1/traces/import")
def _(world: Crossing) -> None:
    body = {"format": "csv", "text": FORGED, "map": {"forged/a": "imported-by-beta"}}
    before = graph_of(world.alpha)
    world.clean(world.beta.control.post("/v1/traces/import", json=body))
    assert graph_of(world.alpha) == before


@crosses("GET", "/v1/traces")
def _(world: Crossing) -> None:
    """Spans of each tenant are counted by themselves."""
    before = world.alpha.get("/v1/traces")
    world.clean(world.beta.control.post("/v1/traces/import", json={"text": FORGED}))
    assert world.clean(world.beta.control.get("/v1/traces"))["spans"] >= 1
    assert world.alpha.get("/v1/traces") == before


@crosses("GET", "/v1/traces/names")
def _(world: Crossing) -> None:
    hers = f"{SECRET}/observed"
    assert world.alpha.control.put("/v1/traces/names", json={"map": {hers: ONLY}}).status_code == 200
    for query in ("", f"?after={hers[:-1]}", "?limit=1000"):
        world.clean(world.beta.control.get(f"/v1/traces/names{query}"))


@crosses("PUT", "/v1/traces/names")
def _(world: Crossing) -> None:
    """The same observed name stands for another function in each tenant."""
    assert world.alpha.control.put("/v1/traces/names", json={"map": {"svc/op": ONLY}}).status_code == 200
    told = world.clean(world.beta.control.put("/v1/traces/names", json={"map": {"svc/op": "shared"}}))
    assert told["map"]["svc/op"] == "shared"
    world.clean(world.beta.control.put("/v1/traces/names", json={"map": {"svc/op": None}}))
    assert world.alpha.get("/v1/traces/names?limit=1000")["map"]["svc/op"] == ONLY


def network_of(world: Crossing, name: str = "database") -> dict[str, Any]:
    """Alpha's private network, with a mark of alpha's in it; made when it is not there."""
    made = world.alpha.control.post(
        "/v1/vpcs", json={"name": name, "cidrs": ["10.77.0.0/16"], "rules": ["tcp:10.77.9.0/24:5432"]}
    )
    assert made.status_code in (201, 409), made.text
    found: dict[str, Any] = world.alpha.get(f"/v1/vpcs/{name}")
    return found


@crosses("POST", "/v1/vpcs")
def _(world: Crossing) -> None:
    """The same name and the same CIDRs are two networks; a function gets into its own tenant's only."""
    theirs = network_of(world)
    mine = world.clean(world.beta.control.post("/v1/vpcs", json={"name": "database", "cidrs": ["10.77.0.0/16"]}), 201)
    assert mine["number"] != theirs["number"]
    network_of(world, "hidden")
    refused = world.beta.control.put(
        "/v1/functions/thief", json={"package": world.beta.package, "handler": "app:shared", "vpc": "hidden"}
    )
    assert (refused.status_code, refused.json()["field"]) == (400, "vpc")


@crosses("GET", "/v1/vpcs")
def _(world: Crossing) -> None:
    network_of(world, "hidden")
    assert {one["name"] for one in world.clean(world.beta.control.get("/v1/vpcs"))["vpcs"]} <= {"database"}


@crosses("GET", "/v1/vpcs/{name}")
def _(world: Crossing) -> None:
    network_of(world, "hidden")
    world.clean(world.beta.control.get("/v1/vpcs/hidden"), 404)


@crosses("PUT", "/v1/vpcs/{name}")
def _(world: Crossing) -> None:
    before = network_of(world, "hidden")
    world.clean(world.beta.control.put("/v1/vpcs/hidden", json={"cidrs": ["10.0.0.0/8"]}), 404)
    assert world.alpha.get("/v1/vpcs/hidden") == before


@crosses("DELETE", "/v1/vpcs/{name}")
def _(world: Crossing) -> None:
    network_of(world, "hidden")
    world.clean(world.beta.control.delete("/v1/vpcs/hidden"), 404)
    assert world.alpha.get("/v1/vpcs/hidden")["name"] == "hidden"


@crosses("GET", "/v1/status")
def _(world: Crossing) -> None:
    """Counts of the whole platform, no names."""
    world.clean(world.beta.control.get("/v1/status"))


def parked(world: Crossing) -> int:
    """An event of alpha's that was given up; nothing waits for it, so that trying it again does no harm."""
    store = Store(Settings(state=world.state).effective_database_url)
    with store.database.write() as session:
        payload = {"number": 1, "instances": 0}
        event = Event(kind=EventKind.DEPLOYED, subject=f"alpha/{ONLY}", generation=1, payload=payload, created=1.0)
        session.add(event)
        session.flush()
        session.add(Delivery(event=event.id, module=Module.NETWORK_DEPLOYMENT, tries=10, parked=2.0, reason=SECRET))
        number = event.id
    store.close()
    return number


@crosses("GET", "/v1/events")
def _(world: Crossing) -> None:
    event = parked(world)
    for path in ("/v1/events", "/v1/events?parked=true"):
        assert all(one["id"] != event for one in world.clean(world.beta.control.get(path))["events"])
        assert event in [one["id"] for one in world.alpha.get(path)["events"]]
    assert event in [one["id"] for one in world.operator.get("/v1/events")["events"]]


@crosses("POST", "/v1/events/{event}/retry")
def _(world: Crossing) -> None:
    event = parked(world)
    world.clean(world.beta.control.post(f"/v1/events/{event}/retry"), 404)
    assert event in [one["id"] for one in world.alpha.get("/v1/events?parked=true")["events"]]


@crosses("POST", "/v1/events/retry")
def _(world: Crossing) -> None:
    event = parked(world)
    assert event not in world.clean(world.beta.control.post("/v1/events/retry"))["retried"]
    assert event in [one["id"] for one in world.alpha.get("/v1/events?parked=true")["events"]]
    assert event in world.alpha.control.post("/v1/events/retry").json()["retried"]


# -- all of them


def test_every_endpoint_has_its_case(world: Crossing) -> None:
    document = world.operator.get("/openapi.json")
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    listed = [*CROSSINGS, *OPERATOR_ONLY, *PUBLIC]
    assert sorted(there - set(listed)) == [], "no case with another tenant's key; the head of this file says what to register"
    assert sorted(set(listed) - there) == [], "registered, but the API has it not"
    assert len(listed) == len(set(listed)), "registered in two ways"


@pytest.mark.parametrize(("method", "path"), sorted(CROSSINGS), ids=lambda part: part)
def test_another_tenants_key_sees_and_changes_nothing(world: Crossing, method: str, path: str) -> None:
    CROSSINGS[method, path](world)


@pytest.mark.parametrize(("method", "path"), sorted(OPERATOR_ONLY), ids=lambda part: part)
def test_a_tenant_key_is_told_that_it_needs_an_operators(world: Crossing, method: str, path: str) -> None:
    for named in ("alpha", "nobody"):
        there = "/".join(named if part.startswith("{") else part for part in path.split("/"))
        answer = world.beta.control.request(method, there, json={})
        world.clean(answer, 403)
        assert "operator key" in answer.json()["detail"]


def test_an_operator_sees_its_own_tenant_like_everybody(world: Crossing) -> None:
    assert world.operator.get("/v1/functions") == {"functions": []}
    assert world.operator.get("/v1/runs") == {"runs": []}
    assert world.operator.control.get(f"/v1/functions/{ONLY}").status_code == 404
    assert {one["name"] for one in world.operator.get("/v1/tenants")["tenants"]} == {"alpha", "beta", "default"}


# -- the functions listener


def test_a_key_invokes_its_own_tenants_functions_only(world: Crossing) -> None:
    for name in (ONLY, f"{ONLY}:1", f"../alpha/{ONLY}", f"alpha/{ONLY}"):
        assert world.beta.functions.post(f"/function/{name}", json={}).status_code in (404, 405)
    (_, refused) = world.beta.invoke("front", also=[ONLY]).json()
    assert f"no function '{ONLY}'" in refused


def test_functions_of_one_name_never_mix_however_many_run(world: Crossing) -> None:
    def ask(number: int) -> tuple[str, dict[str, Any]]:
        side = (world.alpha, world.beta)[number % 2]
        return side.mark, side.invoke("shared", sleep=0.02).json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(60)))
    for mark, answer in answers:
        assert answer["mark"] == mark
        assert answer["seen"] == ["alpha" if mark == SECRET else "beta"], "an instance served both tenants"


def test_code_on_the_nodes_disk_lies_apart(world: Crossing) -> None:
    code = world.state / "node" / "code"
    for tenant, own, foreign in (("alpha", SECRET, OTHER), ("beta", OTHER, SECRET)):
        texts = [file.read_text() for file in (code / tenant).rglob("*.py")]
        assert any(own in text for text in texts)
        assert not any(foreign in text for text in texts)
        assert (code / tenant).stat().st_mode & 0o777 == 0o711


def test_no_process_runs_for_two_tenants(world: Crossing) -> None:
    """Each tenant's template is a process of its own, and with privilege a user of its own."""
    for side in (world.alpha, world.beta):
        assert side.invoke("shared").status_code == 200
    if os.geteuid() != 0:
        return
    users: dict[str, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                maps = (entry / "mountinfo").read_text()
                owner = (entry / "status").stat().st_uid
            except OSError:
                continue
            for tenant in ("alpha", "beta"):
                if f"{world.state}/node/code/{tenant}/" in maps:
                    users.setdefault(tenant, set()).add(owner)
    assert not users.get("alpha", set()) & users.get("beta", set())


# -- traces


def graph_of(side: Any) -> set[tuple[str, str]]:
    return {(edge["caller"], edge["callee"]) for edge in side.get("/v1/graph")["edges"]}


def known_of(world: Crossing) -> dict[str, Any]:
    """All that is known of alpha's run, and of alpha's graph."""
    run = world.alpha.get(f"/v1/runs/{world.run}")
    return {"run": run, "graph": graph_of(world.alpha), "runs": len(world.alpha.get("/v1/runs?limit=1000")["runs"])}


def test_a_traceparent_of_another_tenant_joins_nothing(world: Crossing) -> None:
    """Also while that run is live: its trace id is on the wire of everybody whom alpha calls."""
    before = known_of(world)

    def decided_for() -> set[str]:
        return {one["trace_id"] for one in world.alpha.get("/v1/decisions?limit=1000")["decisions"] if one["trace_id"]}

    earlier = decided_for()
    world.alpha.control.post("/v1/cool", json={})  # so that the run is decided for, which names it while it is live
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(world.alpha.invoke, "front", sleep=3.0)
        running = eventually(lambda: decided_for() - earlier, "alpha's run is live and known")
        forged = []
        for trace_id in (world.run, *sorted(running)):
            parent = f"00-{trace_id}-{world.tree['invocation_id']}-01"
            answer = world.beta.invoke("front", headers={"traceparent": parent, "tracestate": "x=1", "baggage": "a=b"})
            assert answer.status_code == 200
            forged.append(answer.headers["x-foreglow-trace"])
        own = live.result().headers["x-foreglow-trace"]
    assert own in running
    assert own not in forged
    assert not {world.run, *running} & set(forged), "beta's runs have ids of their own"
    for trace_id in forged:
        shown = eventually(lambda trace_id=trace_id: world.beta.control.get(f"/v1/runs/{trace_id}").json().get("root"))  # type: ignore[misc]
        assert {shown["function"], *(child["function"] for child in shown["children"])} == {"front", "shared"}
        assert world.alpha.control.get(f"/v1/runs/{trace_id}").status_code == 404
    mine = eventually(lambda: world.alpha.control.get(f"/v1/runs/{own}").json().get("root"), "alpha's run is known")
    assert [child["function"] for child in mine["children"]] == ["shared"]
    assert world.alpha.get(f"/v1/runs/{world.run}") == before["run"]
    decided = {one["trace_id"] for one in world.beta.get("/v1/decisions?limit=1000")["decisions"]}
    assert not decided & {world.run, own, *running}


def test_spans_that_name_another_tenants_trace_teach_only_who_sent_them(world: Crossing) -> None:
    before = known_of(world)
    for parent in (world.tree["invocation_id"], ""):
        assert world.beta.spans(world.run, parent, "front", "told-by-beta").status_code == 200
    assert world.beta.spans(world.run, "", "root-of-beta", "told-by-beta").status_code == 200
    eventually(lambda: any("told-by-beta" in edge for edge in graph_of(world.beta)), "beta has learned what it told")
    assert known_of(world) == before
    assert world.beta.control.get(f"/v1/runs/{world.run}").status_code == 404
    assert not [one for one in world.alpha.get("/v1/workflows")["workflows"] if "beta" in json.dumps(one)]


# -- the end of a tenant


def test_a_removed_tenant_is_gone_from_everywhere_and_the_other_stays(world: Crossing) -> None:
    removed = world.operator.control.delete("/v1/tenants/alpha")
    assert removed.status_code == 409
    assert world.operator.control.delete("/v1/tenants/alpha?functions=true").status_code == 204
    assert world.alpha.control.get("/v1/functions").status_code == 401
    eventually(lambda: world.alpha.invoke("shared").status_code == 401, "the gateway knows the key no more")
    eventually(lambda: not (world.state / "node" / "code" / "alpha").exists(), "the code is gone")
    assert not [one for one in (world.state / "origin").rglob("*") if one.is_file() and "alpha" in one.parts]
    assert world.beta.invoke("shared").json()["mark"] == OTHER
    assert world.beta.get("/v1/runs")["runs"]

"""The management API: who may do what, what is refused and how it says so."""

import contextlib
import io
import json
import os
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.catalog.model import Module, Package
from orchestrator.catalog.outbox import MAX_TRIES, RESEND_S
from orchestrator.catalog.store import Store
from orchestrator.control.admin import ensure_admin_key
from orchestrator.control.app import server
from orchestrator.control.schemas.functions import MAX_ENVIRONMENT_BYTES
from orchestrator.settings import Settings
from workers.sealing import Sealer, load_key

ZIP = {"Content-Type": "application/zip"}


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The real server on a free port, in a thread; its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        made = server(settings)
        thread = threading.Thread(target=made.run, args=([listener],))
        thread.start()
        listener.listen()  # who connects before the server does waits for it
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            made.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


class Api:
    """A client with the admin key, a second tenant, and direct access to the store. Redis, planner and node are away."""

    def __init__(self, settings: Settings, address: str) -> None:
        self.settings = settings
        self.address = address
        self.key = settings.admin_key_file.read_text().strip()
        self.client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=60)
        self.nobody = httpx.Client(base_url=address, trust_env=False, timeout=60)
        self.store = Store(settings.effective_database_url)
        self.store.keys.create_tenant("rival", 1)
        self.rival = {"Authorization": f"Bearer {self.store.keys.make_key('rival', 'k', 1).token}"}

    def close(self) -> None:
        for closing in (self.client, self.nobody, self.store):
            closing.close()

    def upload(self, files: dict[str, str] | None = None, **more: Any) -> Any:
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as archive:
            for name, content in (files or {"handler.py": "def f(e, c): return e"}).items():
                archive.writestr(name, content)
        return self.client.post("/v1/packages", content=body.getvalue(), headers=ZIP | more.pop("headers", {}), **more)

    def wanted(self, **changes: Any) -> dict[str, Any]:
        return {"package": self.upload().json()["digest"], "handler": "handler:f"} | changes

    def put(self, name: str = "f", **changes: Any) -> Any:
        return self.client.put(f"/v1/functions/{name}", json=self.wanted(**changes))


def settings_in(folder: Path, **changes: Any) -> Settings:
    return Settings(state=folder / "state", redis_url=f"unix://{folder}/none.sock", **changes)


@pytest.fixture(scope="module")
def running() -> Iterator[Api]:
    with tempfile.TemporaryDirectory(prefix="fg-api-") as folder:
        settings = settings_in(Path(folder))
        with serving(settings) as address:
            api = Api(settings, address)
            yield api
            api.close()


@pytest.fixture
def api(running: Api) -> Api:
    for view in running.store.functions.list("default"):
        running.store.functions.remove("default", view.name, 1)
    return running


def problem(answer: Any, status: int, field: str = "") -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail"} | ({"field"} if field else set())
    assert document["status"] == status
    assert document.get("field", "") == field
    return str(document["detail"])


# -- keys and hosts


def test_the_admin_key_is_for_its_user_only_and_is_made_once(api: Api) -> None:
    assert api.settings.admin_key_file.stat().st_mode & 0o777 == 0o600
    assert api.settings.key_file.stat().st_mode & 0o777 == 0o600
    ensure_admin_key(api.store.keys, api.settings.admin_key_file, 1)
    assert api.settings.admin_key_file.read_text().strip() == api.key


def test_a_key_file_that_outlived_its_database_works_again(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with serving(settings):
        key = settings.admin_key_file.read_text()
    for file in settings.state.glob("foreglow.db*"):
        file.unlink()
    with serving(settings) as address:
        assert settings.admin_key_file.read_text() == key
        answer = httpx.get(
            f"{address}/v1/functions", headers={"Authorization": f"Bearer {key.strip()}"}, trust_env=False, timeout=60
        )
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x", "Bearer " + "x" * 5000],
)
def test_no_key_or_a_wrong_one_is_401_everywhere(api: Api, authorization: str | None) -> None:
    headers = {"Authorization": authorization.format(key=api.key)} if authorization is not None else {}
    for method, path in (
        ("GET", "/v1/functions"), ("PUT", "/v1/functions/f"), ("POST", "/v1/packages"), ("GET", "/v1/graph"),
        ("GET", "/v1/nothing"), ("GET", "/"), ("GET", "/v1/decisions/stream"),
    ):  # fmt: skip
        answer = api.nobody.request(method, path, headers=headers, content=b"{")
        problem(answer, 401, "Authorization")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_stops_at_once(api: Api) -> None:
    made = api.store.keys.make_key("default", "ci", 1)
    headers = {"Authorization": f"bearer {made.token}"}
    assert api.client.get("/v1/functions", headers=headers).status_code == 200
    api.store.keys.revoke_key("default", made.key_id, 2)
    problem(api.client.get("/v1/functions", headers=headers), 401, "Authorization")


def test_another_tenants_function_is_404_in_every_way(api: Api) -> None:
    wanted = api.wanted()
    assert api.put("mine").status_code == 202
    for method, path in (
        ("GET", "/v1/functions/mine"), ("GET", "/v1/functions/mine/versions/1"), ("DELETE", "/v1/functions/mine"),
        ("GET", "/v1/functions/mine/logs"),
    ):  # fmt: skip
        problem(api.client.request(method, path, headers=api.rival), 404)
    assert api.client.get("/v1/functions", headers=api.rival).json() == {"functions": []}
    problem(api.client.put("/v1/functions/theirs", headers=api.rival, json=wanted), 400, "package")
    assert api.client.get("/v1/functions/mine").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8701", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]:8701", "localhost."]
)
def test_a_host_that_is_not_ours_is_refused_before_anything_else(api: Api, host: str) -> None:
    problem(api.client.get("/v1/functions", headers={"Host": host}), 421, "Host")
    problem(api.client.get("/healthz", headers={"Host": host}), 421, "Host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8701", "127.0.0.1:1", "[::1]:8701", "[::1]"])
def test_loopback_hosts_are_ours(api: Api, host: str) -> None:
    assert api.client.get("/v1/functions", headers={"Host": host}).status_code == 200


def test_a_listener_for_other_machines_takes_addresses_and_its_own_name(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, host="0.0.0.0")) as address:
        for host, status in (("192.168.7.7:8701", 200), ("[fe80::1]", 200), ("evil.example", 421)):
            assert httpx.get(f"{address}/healthz", headers={"Host": host}, trust_env=False, timeout=60).status_code == status


def test_health_needs_no_key(api: Api) -> None:
    assert api.nobody.get("/healthz").json() == api.nobody.get("/readyz").json() == {"status": "ok"}


# -- packages


def test_the_same_code_gives_the_same_digest(api: Api) -> None:
    first = api.upload({"handler.py": "1", "requirements.txt": "six\n"})
    assert first.status_code == 201
    assert first.json() == {"digest": first.json()["digest"], "files": 2, "bytes": 5, "requirements": True}
    assert api.upload({"requirements.txt": "six\n", "handler.py": "1"}).json() == first.json()


def test_bad_packages_name_the_field(api: Api) -> None:
    problem(api.client.post("/v1/packages", content=b"nonsense", headers=ZIP), 400, "package")
    problem(api.client.post("/v1/packages", content=b"", headers=ZIP), 400, "package")
    problem(api.upload({"../x.py": ""}), 400, "package")
    problem(api.upload({"requirements.txt": "--index-url http://10.0.0.1\n"}), 400, "package.requirements.txt")
    problem(api.client.post("/v1/packages", content=b"x", headers={"Content-Type": "text/plain"}), 415, "Content-Type")


def test_a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", int(api.address.rpartition(":")[2])), 10) as raw:
        head = f"POST /v1/packages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.key}\r\n"
        raw.sendall(f"{head}Content-Type: application/zip\r\nContent-Length: {51 << 20}\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")
    chunks = (b"z" * (1 << 20) for _ in range(52))
    problem(api.client.post("/v1/packages", content=chunks, headers=ZIP), 413, "body")
    problem(api.client.put("/v1/functions/f", content=b" " * (2 << 20)), 413, "body")


# -- functions


def test_a_deploy_is_described_with_what_it_waits_for(api: Api) -> None:
    answer = api.put(memory_mb=200, environment={"SECRET": "hunter2"}, calls=["g", "f", "g"])
    assert answer.status_code == 202
    described = answer.json()
    version = described["versions"][0]
    assert answer.headers["location"] == f"/v1/functions/f/versions/{version['number']}"
    assert (described["name"], described["kind"], described["latest"]) == ("f", "event", None)
    assert (version["state"], version["memory_mb"], version["environment"]) == ("pending", 256, {"SECRET": "***"})
    assert described["calls"] == [{"name": "g", "deployed": False}, {"name": "f", "deployed": False}]
    assert {one["name"]: one["status"] for one in version["conditions"]} == {
        "code": "unknown", "network": "unknown", "capacity": "unknown", "route": "unknown",
    }  # fmt: skip
    assert api.client.get("/v1/functions/f").json() == described
    assert api.client.get(answer.headers["location"]).json() == version
    assert api.client.get("/v1/functions").json() == {"functions": [described]}


def test_environment_values_are_sealed_where_they_lie(api: Api) -> None:
    api.put(environment={"SECRET": "hunter2-unmistakable"})
    for folder, _, names in os.walk(api.settings.state):
        for name in names:
            assert b"hunter2-unmistakable" not in (Path(folder) / name).read_bytes(), name
    sealer = Sealer(load_key(api.settings.key_file))
    from sqlalchemy import select

    from orchestrator.catalog.model import Version

    with api.store.database.read() as session:
        newest = session.scalars(select(Version).order_by(Version.created.desc())).first()
        assert newest is not None
        assert sealer.open(newest.environment) == {"SECRET": "hunter2-unmistakable"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("package", "sha256:" + "0" * 64), ("package", "nonsense"), ("package", None), ("handler", "handler"),
        ("handler", "a:b:c"), ("handler", "handler:f\n"), ("handler", "absent:f"), ("handler", "../x:f"), ("kind", "web"),
        ("kind", "batch"), ("runtime", "python2.7"), ("memory_mb", 0), ("memory_mb", 4096), ("memory_mb", "128"),
        ("memory_mb", 1.5), ("memory_mb", True), ("timeout_s", 0), ("timeout_s", 901), ("concurrency", 0), ("concurrency", 1001),
        ("egress", "all"), ("vpc", "nobody"), ("vpc", "a/b"), ("vpc", "UP"), ("vpc", None),
        ("environment", {"1A": "x"}), ("environment", {"FOREGLOW_X": "x"}),
        ("environment", {"A": "\0"}), ("environment", []), ("environment", {"A": "x" * MAX_ENVIRONMENT_BYTES}),
        ("calls", ["ok"] * 101), ("surprise", 1), ("initial_instances", 21), ("initial_instances", -1),
        ("initial_instances", True), ("initial_instances", "1"), ("build", 1), ("build", "true"), ("build", None),
        ("min_instances", -1), ("max_instances", 1001), ("provisioned_instances", True), ("target_concurrency", -1.0),
    ],
)  # fmt: skip
def test_a_bad_field_is_a_400_that_names_it_and_changes_nothing(api: Api, field: str, value: object) -> None:
    problem(api.put(**{field: value}), 400, field)
    assert api.client.get("/v1/functions").json() == {"functions": []}


@pytest.mark.parametrize(
    ("wanted", "status", "field"),
    [
        ({"version": 1}, 409, "version"),  # it is pending
        ({"version": 0}, 400, "version"),
        ({"version": 1, "second": 1, "share": 0.5}, 400, "body"),
        ({"version": 1, "share": 0.5}, 400, "body"),
        ({"version": 1, "sticky": "header:X User"}, 400, "sticky"),
        ({"version": 1, "release": {"ramp": [0.5, 0.1]}}, 400, "release.ramp"),
        ({"version": 1, "release": {"ramp": [0.0]}}, 400, "release.ramp.0"),
        ({"version": 1, "release": {"gate": 1}}, 400, "release.gate"),
        ({"version": 1, "release": {"hold_s": -1}}, 400, "release.hold_s"),
    ],
)
def test_an_alias_that_cannot_point_there_names_the_field(api: Api, wanted: object, status: int, field: str) -> None:
    api.put()
    told = problem(api.client.put("/v1/functions/f/aliases/live", json=wanted), status, field)
    assert field != "body" or "second version" in told
    assert api.client.get("/v1/functions/f/aliases").json() == {"aliases": []}


def test_a_bad_name_deep_inside_is_named_too(api: Api) -> None:
    problem(api.put(calls=["fine", "not/fine"]), 400, "calls.1")
    problem(api.put(environment={"A": 1}), 400, "environment.A")


@pytest.mark.parametrize("name", ["-x", "a.b", "a b", "x" * 64, "a:1", "$LATEST", "ä"])
def test_names_are_checked(api: Api, name: str) -> None:
    problem(api.put(name), 400, "name")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe"])
def test_a_body_that_is_no_object_says_so(api: Api, body: bytes) -> None:
    problem(api.client.put("/v1/functions/f", content=body, headers={"Content-Type": "application/json"}), 400, "body")


def test_a_handler_may_come_from_the_dependencies(api: Api) -> None:
    digest = api.upload({"x.py": "", "requirements.txt": "six\n"}).json()["digest"]
    assert api.client.put("/v1/functions/f", json={"package": digest, "handler": "six:moves"}).status_code == 202


def test_removing_is_204_then_404(api: Api) -> None:
    api.put()
    answer = api.client.delete("/v1/functions/f")
    assert (answer.status_code, answer.content) == (204, b"")
    problem(api.client.delete("/v1/functions/f"), 404)
    problem(api.client.get("/v1/functions/f"), 404)


def test_unknown_paths_methods_and_versions_are_problems(api: Api) -> None:
    api.put()
    problem(api.client.get("/v1/nothing"), 404)
    assert problem(api.client.post("/v1/functions"), 405)
    problem(api.client.get("/v1/functions/f/versions/99"), 404)
    problem(api.client.get("/v1/functions/f/versions/x"), 400, "number")
    problem(api.client.get("/v1/functions?limit=0"), 400, "limit")


# -- insight without planner and node


def test_what_needs_an_absent_planner_or_node_is_503_and_the_rest_works(api: Api) -> None:
    api.put()
    for path in (
        "/v1/graph",
        "/v1/plans/f",
        "/v1/decisions",
        "/v1/decisions/stream",
        "/v1/runs",
        "/v1/runs/abc",
        "/v1/workflows",
    ):
        assert "planner" in problem(api.client.get(path), 503)
    assert "planner" in problem(api.client.post("/v1/functions/f/warm", json={"count": 1}), 503)
    assert "node" in problem(api.client.get("/v1/functions/f/logs"), 503)
    problem(api.client.get("/v1/functions/absent/logs"), 404)
    status = api.client.get("/v1/status").json()
    assert (status["redis"], status["planner"], status["node"]) == ("away", "away", "away")
    assert status["events"]["open"] > 0


def test_a_whole_number_may_be_written_with_a_point(api: Api) -> None:
    answer = api.put(memory_mb=256.0, concurrency=2.0)
    assert answer.status_code == 202, answer.text
    assert [answer.json()["versions"][0][name] for name in ("memory_mb", "concurrency")] == [256, 2]
    assert "memory_mb" in problem(api.put(memory_mb=256.5), 400, "memory_mb")
    assert "memory_mb" in problem(api.put(memory_mb="256"), 400, "memory_mb")


def test_a_parameter_given_twice_is_refused(api: Api) -> None:
    answer = api.client.get("/v1/events?limit=1&limit=2")
    assert (answer.status_code, answer.json()["field"]) == (400, "limit")


def test_a_path_with_a_slash_too_many_is_not_another(api: Api) -> None:
    for path in ("/v1/functions/", "/v1/runs/", "/healthz/"):
        problem(api.client.get(path, follow_redirects=False), 404)


def test_requirements_nested_without_end_are_the_uploaders_fault(api: Api) -> None:
    files = {"handler.py": "def f(e, c): return e", "requirements.txt": "x; " + "(" * 3000}
    assert "nested too deeply" in problem(api.upload(files), 400, "package.requirements.txt")


def test_the_document_offers_only_what_is_taken(api: Api) -> None:
    offered = api.client.get("/openapi.json").json()["components"]["schemas"]["FunctionRequest"]["properties"]
    assert (offered["kind"]["enum"], offered["egress"]["enum"]) == (["event", "http"], ["none", "internet"])


def test_links_of_the_document_lead_to_operations_that_are_there(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    known = {one["operationId"]: one for one in operations}
    assert len(known) == len(operations)
    links = [link for one in operations for answer in one["responses"].values() for link in answer.get("links", {}).values()]
    assert len(links) > 20
    for link in links:
        parameters = {parameter["name"] for parameter in known[link["operationId"]].get("parameters", [])}
        assert set(link["parameters"]) <= parameters


def test_openapi_is_complete(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation.get("summary"), where
            assert operation.get("description"), where
            assert "422" not in operation["responses"], where
            assert ("security" in operation) == (path.startswith("/v1/") or path == "/metrics"), where
            assert all("content" in one or code == "204" for code, one in operation["responses"].items()), where
            for body in operation.get("requestBody", {}).get("content", {}).values():
                schema = body["schema"]
                if "$ref" in schema:
                    assert document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"], where


# -- tenants and keys


def as_key(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_an_operator_makes_a_tenant_its_key_and_its_end(api: Api) -> None:
    made = api.client.post("/v1/tenants", json={"name": "newcomer", "quotas": {"functions": 1}})
    assert (made.status_code, made.headers["location"]) == (201, "/v1/tenants/newcomer")
    assert made.json()["quotas"]["functions"] == made.json()["own"]["functions"] == 1
    assert made.json()["own"]["concurrency"] is None
    problem(api.client.post("/v1/tenants", json={"name": "newcomer"}), 409)
    key = api.client.post("/v1/keys?tenant=newcomer", json={"name": "first"})
    assert (key.status_code, key.headers["cache-control"], key.json()["role"]) == (201, "no-store", "tenant")
    theirs = as_key(key.json()["token"])
    own = api.client.get("/v1/tenant", headers=theirs).json()
    assert (own["name"], own["role"], own["use"]["keys"]) == ("newcomer", "tenant", 1)
    assert own["use"]["concurrency"] is own["use"]["prewarm_instances"] is None  # Redis and planner are away
    digest = api.upload(headers=theirs).json()["digest"]
    wanted = {"package": digest, "handler": "handler:f"}
    assert api.client.put("/v1/functions/one", json=wanted, headers=theirs).status_code == 202
    refused = problem(api.client.put("/v1/functions/two", json=wanted, headers=theirs), 429, "functions")
    assert "foreglow tenants quotas newcomer --functions" in refused
    changed = api.client.put("/v1/tenants/newcomer/quotas", json={"package_bytes": 10})
    assert (changed.json()["own"]["functions"], changed.json()["quotas"]["package_bytes"]) == (None, 10)
    problem(api.upload({"handler.py": "x = 1"}, headers=theirs), 429, "package_bytes")
    assert "newcomer" in [one["name"] for one in api.client.get("/v1/tenants").json()["tenants"]]
    assert "functions (one)" in problem(api.client.delete("/v1/tenants/newcomer"), 409)
    folder = api.settings.origin_folder / "packages" / "newcomer"
    assert list(folder.iterdir())
    for _ in range(2):
        assert api.client.delete("/v1/tenants/newcomer?functions=true").status_code == 204
    assert not folder.exists() or not list(folder.iterdir())
    problem(api.client.get("/v1/tenant", headers=theirs), 401, "Authorization")
    problem(api.client.post("/v1/keys?tenant=newcomer", json={"name": "late"}), 404)
    assert "never given again" in problem(api.client.post("/v1/tenants", json={"name": "newcomer"}), 409)


def test_a_tenants_key_runs_nothing_but_its_own_tenant(api: Api) -> None:
    for method, path, body in (
        ("POST", "/v1/tenants", {"name": "mine"}), ("GET", "/v1/tenants", None), ("PUT", "/v1/tenants/rival/quotas", {}),
        ("DELETE", "/v1/tenants/rival", None),
    ):  # fmt: skip
        detail = problem(api.client.request(method, path, json=body, headers=api.rival), 403, "Authorization")
        assert "operator key" in detail
    for method, path, body in (
        ("GET", "/v1/keys?tenant=default", None), ("POST", "/v1/keys?tenant=default", {"name": "k"}),
        ("DELETE", "/v1/keys/00?tenant=default", None),
    ):  # fmt: skip
        problem(api.client.request(method, path, json=body, headers=api.rival), 403, "tenant")
    problem(api.client.post("/v1/keys", json={"name": "k", "role": "operator"}, headers=api.rival), 403, "role")
    assert api.client.get("/v1/keys?tenant=rival", headers=api.rival).status_code == 200


def test_keys_are_named_shown_once_and_revoked(api: Api) -> None:
    made = api.client.post("/v1/keys", json={"name": "ci of acme"}, headers=api.rival).json()
    listed = api.client.get("/v1/keys", headers=api.rival)
    assert made["token"] not in listed.text
    assert [one["name"] for one in listed.json()["keys"]] == ["k", "ci of acme"]
    first, second = listed.json()["keys"]
    assert first["last_used"] is not None
    assert second["last_used"] is None
    fresh = as_key(made["token"])
    assert api.client.delete(f"/v1/keys/{second['key_id']}", headers=fresh).status_code == 204
    problem(api.client.get("/v1/keys", headers=fresh), 401, "Authorization")
    assert "make another one first" in problem(api.client.delete(f"/v1/keys/{first['key_id']}", headers=api.rival), 409)
    problem(api.client.delete("/v1/keys/0123", headers=api.rival), 404)
    operators = [one for one in api.client.get("/v1/keys").json()["keys"] if one["role"] == "operator"]
    assert "make another" in problem(api.client.delete(f"/v1/keys/{operators[0]['key_id']}"), 409)


@pytest.mark.parametrize("quotas", [{"functions": -1}, {"concurrency": 1.5}, {"invocations_per_s": "many"}, {"cores": 1}])
def test_a_quota_that_is_none_is_named(api: Api, quotas: dict[str, Any]) -> None:
    problem(api.client.put("/v1/tenants/rival/quotas", json=quotas), 400, next(iter(quotas)))


def test_what_is_not_used_any_more_makes_room_for_what_is_new(api: Api) -> None:
    made = api.client.post("/v1/tenants", json={"name": "hoarder", "quotas": {"package_bytes": 30}})
    assert made.status_code == 201
    theirs = as_key(api.client.post("/v1/keys?tenant=hoarder", json={"name": "k"}).json()["token"])
    first = api.upload({"a.py": "x" * 20}, headers=theirs).json()["digest"]
    assert "an hour after" in problem(api.upload({"b.py": "y" * 20}, headers=theirs), 429, "package_bytes")
    with api.store.database.write() as session:
        session.get_one(Package, ("hoarder", first)).created -= 4000
    second = api.upload({"b.py": "y" * 20}, headers=theirs)
    assert second.status_code == 201
    assert api.store.packages.kept("hoarder") == {second.json()["digest"]}
    assert api.client.get("/v1/tenant", headers=theirs).json()["use"]["package_bytes"] == 20


# -- events


def test_how_many_instances_is_set_with_a_version(api: Api) -> None:
    described = api.put("kept", min_instances=2, max_instances=9, target_concurrency=0.5).json()
    assert described["versions"][0]["scaling"] == {"minimum": 2, "maximum": 9, "target": 0.5}
    assert api.put("plain").json()["versions"][0]["scaling"] == {}


def test_how_a_function_scales_is_asked_of_the_planner_while_it_is_there(api: Api) -> None:
    api.put("brief")
    assert "planner" in problem(api.client.get("/v1/functions/brief/scaling"), 503)
    assert api.client.delete("/v1/functions/brief").status_code == 204
    assert "brief" in problem(api.client.get("/v1/functions/brief/scaling"), 404)


def test_events_are_listed_and_parked_ones_retried_by_their_tenant_only(api: Api) -> None:
    described = api.put("poison", initial_instances=3).json()
    assert described["versions"][0]["initial_instances"] == 3
    everything = api.client.get("/v1/events").json()["events"]
    mine = [one for one in everything if one["subject"] == "default/poison"]
    assert {one["module"] for one in mine} == {module.value for module in Module}
    event = mine[0]["id"]
    now = time.time()
    for _ in range(MAX_TRIES):
        now += RESEND_S
        assert api.store.outbox.claim(event, Module.FUNCTION_MANAGEMENT, now)
        api.store.outbox.retry(event, Module.FUNCTION_MANAGEMENT, "the disk is full", now)
    (parked,) = api.client.get("/v1/events", params={"parked": True}).json()["events"]
    assert (parked["id"], parked["tries"], parked["reason"]) == (event, MAX_TRIES, "the disk is full")
    assert parked["parked"] is not None
    version = api.client.get("/v1/functions/poison").json()["versions"][0]
    code = {one["name"]: one for one in version["conditions"]}["code"]
    assert (version["state"], code["status"]) == ("failed", "false")
    assert code["since"] > version["created_at"]

    assert api.client.get("/v1/events", headers=api.rival).json() == {"events": []}
    problem(api.client.post(f"/v1/events/{event}/retry", headers=api.rival), 404)
    assert api.client.post("/v1/events/retry", headers=api.rival).json() == {"retried": []}
    assert api.client.post(f"/v1/events/{event}/retry").json() == {"retried": [event]}
    assert api.client.get("/v1/functions/poison").json()["versions"][0]["state"] == "pending"
    problem(api.client.post(f"/v1/events/{event}/retry"), 404)
    problem(api.client.post("/v1/events/0/retry"), 400, "event")
    problem(api.client.get("/v1/events", params={"limit": 0}), 400, "limit")
    api.client.delete("/v1/functions/poison")


def test_an_operator_binds_a_node_to_tenants(api: Api) -> None:
    token = api.store.nodes.make_token("node", 60, time.time())
    api.store.nodes.join(token, "node", "n1", "10.0.0.2:8703", "", lambda: ("pem", "print"), time.time())

    def shown() -> tuple[str, list[str]]:
        (one,) = api.client.get("/v1/nodes").json()["nodes"]
        return one["zone"], one["tenants"]

    assert shown() == ("default", [])
    path = "/v1/nodes/n1/tenants"
    assert api.client.put(path, json={"tenants": ["rival"]}).status_code == 204
    assert shown() == ("default", ["rival"])
    assert api.client.put(path, json={"tenants": ["rival"]}, headers=api.rival).status_code == 403
    for body, field in (({"tenants": ["nobody"]}, "tenants"), ({"tenants": ["No Name"]}, "tenants"), ({}, "tenants")):
        refused = api.client.put(path, json=body)
        assert (refused.status_code, field in refused.text) == (400, True), refused.text
    assert api.client.put("/v1/nodes/n2/tenants", json={"tenants": []}).status_code == 404
    assert api.client.put(path, json={"tenants": []}).status_code == 204
    assert shown() == ("default", [])

"""Which request can follow which answer: OpenAPI links, for clients that explore the API and for the tests that do.

One table instead of a piece at every endpoint: a link has two ends.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Link(NamedTuple):
    """From the answer `status` of `source` to `target`, both "METHOD path"; `given` says what of it becomes which parameter.

    A parameter is one of the path or query, or `body`, a whole body made of expressions.
    """

    source: str
    status: int
    name: str
    target: str
    given: Mapping[str, Any]


NAME = "$request.path.name"
PUT = "PUT /v1/functions/{name}"
PUBLISH = "POST /v1/functions/{name}/published"
UNPUBLISH = "DELETE /v1/functions/{name}/published/{number}"
GIVEN_ALIAS = "$request.path.alias"
ALIAS = "PUT /v1/functions/{name}/aliases/{alias}"
VERSION = "$response.body#/versions/0/number"
LIST = "GET /v1/functions"
FIRST_NAME = "$response.body#/functions/0/name"
ENTRY = "$response.body#/workflows/0/entry"

LINKS = (
    Link("POST /v1/packages", 201, "deploy", PUT, {"body": {"package": "$response.body#/digest", "handler": "shop:handle"}}),
    Link(PUT, 202, "describe", "GET /v1/functions/{name}", {"name": NAME}),
    Link(PUT, 202, "version", "GET /v1/functions/{name}/versions/{number}", {"name": NAME, "number": VERSION}),
    Link(PUT, 202, "warm", "POST /v1/functions/{name}/warm", {"name": NAME}),
    Link(PUT, 202, "plan", "GET /v1/plans/{name}", {"name": NAME}),
    Link(PUT, 202, "logs", "GET /v1/functions/{name}/logs", {"name": NAME}),
    Link(PUT, 202, "remove", "DELETE /v1/functions/{name}", {"name": NAME}),
    Link(PUT, 202, "publish", PUBLISH, {"name": NAME, "body": {"version": VERSION}}),
    Link(PUT, 202, "alias", ALIAS, {"name": NAME, "alias": "live", "body": {"version": VERSION}}),
    Link(PUT, 202, "aliases", "GET /v1/functions/{name}/aliases", {"name": NAME}),
    Link(ALIAS, 202, "rollback", "POST /v1/functions/{name}/aliases/{alias}/rollback", {"name": NAME, "alias": GIVEN_ALIAS}),
    Link(ALIAS, 202, "remove", "DELETE /v1/functions/{name}/aliases/{alias}", {"name": NAME, "alias": GIVEN_ALIAS}),
    Link(PUBLISH, 200, "unpublish", UNPUBLISH, {"name": NAME, "number": "$response.body#/version"}),
    Link("GET /v1/releases", 200, "describe", "GET /v1/releases/{release}", {"release": "$response.body#/releases/0/id"}),
    Link("GET /v1/releases", 200, "abort", "POST /v1/releases/{release}/abort", {"release": "$response.body#/releases/0/id"}),
    Link("GET /v1/functions/{name}", 200, "warm", "POST /v1/functions/{name}/warm", {"name": NAME}),
    Link("GET /v1/functions/{name}", 200, "remove", "DELETE /v1/functions/{name}", {"name": NAME}),
    Link("DELETE /v1/functions/{name}", 204, "again", PUT, {"name": NAME}),
    Link(LIST, 200, "describe", "GET /v1/functions/{name}", {"name": FIRST_NAME}),
    Link(LIST, 200, "logs", "GET /v1/functions/{name}/logs", {"name": FIRST_NAME}),
    Link(LIST, 200, "next", LIST, {"after": FIRST_NAME}),
    Link("POST /v1/functions/{name}/warm", 200, "decisions", "GET /v1/decisions", {"function": NAME}),
    Link("POST /v1/functions/{name}/warm", 200, "follow", "GET /v1/decisions/stream", {"function": NAME}),
    Link("POST /v1/traces/import", 200, "workflows", "GET /v1/workflows", {}),
    Link("POST /v1/traces/import", 200, "intake", "GET /v1/traces", {}),
    Link("POST /v1/traces/import", 200, "names", "GET /v1/traces/names", {}),
    Link("GET /v1/traces/names", 200, "next", "GET /v1/traces/names", {"after": "$response.body#/names/0/observed"}),
    Link("PUT /v1/traces/names", 200, "names", "GET /v1/traces/names", {}),
    Link("GET /v1/workflows", 200, "plan", "GET /v1/plans/{name}", {"name": ENTRY}),
    Link("POST /v1/keys", 201, "revoke", "DELETE /v1/keys/{key_id}", {"key_id": "$response.body#/key_id"}),
    Link("POST /v1/tenants", 201, "change", "PUT /v1/tenants/{name}/quotas", {"name": "$response.body#/name"}),
    Link("POST /v1/tenants", 201, "remove", "DELETE /v1/tenants/{name}", {"name": "$response.body#/name"}),
    Link("POST /v1/vpcs", 201, "describe", "GET /v1/vpcs/{name}", {"name": "$response.body#/name"}),
    Link("POST /v1/vpcs", 201, "change", "PUT /v1/vpcs/{name}", {"name": "$response.body#/name"}),
    Link("POST /v1/vpcs", 201, "remove", "DELETE /v1/vpcs/{name}", {"name": "$response.body#/name"}),
    Link("GET /v1/vpcs", 200, "describe", "GET /v1/vpcs/{name}", {"name": "$response.body#/vpcs/0/name"}),
    Link("GET /v1/events", 200, "retry", "POST /v1/events/{event}/retry", {"event": "$response.body#/events/0/id"}),
    Link("GET /v1/runs", 200, "run", "GET /v1/runs/{trace_id}", {"trace_id": "$response.body#/runs/0/trace_id"}),
    Link("GET /v1/runs", 200, "decisions", "GET /v1/decisions", {"run": "$response.body#/runs/0/trace_id"}),
    Link("GET /v1/decisions", 200, "run", "GET /v1/runs/{trace_id}", {"trace_id": "$response.body#/decisions/0/trace_id"}),
    Link("GET /v1/decisions", 200, "function", "GET /v1/functions/{name}", {"name": "$response.body#/decisions/0/function"}),
)  # fmt: skip


def add_links(document: dict[str, Any], links: tuple[Link, ...] = LINKS) -> None:
    """Writes the links into an OpenAPI document. Raises KeyError when an end of one is not in it."""
    for link in links:
        target = _operation(document, link.target)
        parameters = {name: value for name, value in link.given.items() if name != "body"}
        entry: dict[str, Any] = {"operationId": target["operationId"], "parameters": parameters}
        if "body" in link.given:
            entry["requestBody"] = link.given["body"]
        _operation(document, link.source)["responses"][str(link.status)].setdefault("links", {})[link.name] = entry


def _operation(document: dict[str, Any], named: str) -> dict[str, Any]:
    method, _, path = named.partition(" ")
    operation: dict[str, Any] = document["paths"][path][method.lower()]
    return operation

"""Who asks, and for which version: from a request's words to a VersionSpec. No I/O, routes are in memory."""

import hashlib

from graph.ids import FunctionId
from orchestrator.catalog.routes import KeyRoute, Route
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.choosing import Choices
from workers.versions import VersionSpec

MAX_TARGET = 200  # characters of `name:qualifier`: longer names no function has


class Unauthorized(Exception):
    """No key, or one nobody knows."""


class NotFound(Exception):
    """No such function, version or alias for this tenant; another tenant's looks the same."""


def authenticate(table: RouteTable, authorization: bytes) -> KeyRoute:
    """The owner of a bearer token. Tokens are kept as SHA-256, so a lookup tells nothing by its timing. Raises Unauthorized."""
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise Unauthorized("send the key as `Authorization: Bearer KEY`")
    key = table.keys.get(hashlib.sha256(token.strip()).hexdigest())
    if key is None:
        raise Unauthorized("this key is not known")
    return key


def resolve(table: RouteTable, tenant: str, target: str, choices: Choices | None = None) -> tuple[Route, VersionSpec]:
    """`name` or `name:qualifier` to the version that runs; where an alias means two, `choices` says which. Raises NotFound."""
    if len(target) > MAX_TARGET:
        raise NotFound(f"no function {target[:20]!r}...: the name is over {MAX_TARGET} characters")
    name, _, qualifier = target.partition(":")
    route = table.routes.get(FunctionId(f"{tenant}/{name}"))
    if route is None:
        raise NotFound(f"no function {name!r}")
    spec = table.version(route, qualifier) if choices is None else choices.version(table, route, qualifier)
    if spec is None:
        raise NotFound(
            f"function {name!r} has no version or alias {qualifier!r}" if qualifier else f"{name!r} serves nothing yet"
        )
    return route, spec

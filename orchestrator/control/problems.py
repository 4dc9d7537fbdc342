"""Every error of the API is one application/problem+json document: {type, title, status, detail, field?}."""

from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from orchestrator.catalog.database import out_of_space
from orchestrator.catalog.errors import Conflict, NotFound, OverQuota, Refused
from workers.code.origin import OriginError
from workers.code.package import PackageError

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger(__name__)


class Problem(HTTPException):
    """`detail` says what is wrong and the way out; `field` names the part of the request."""

    def __init__(self, status: int, detail: str, field: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, dict(headers) if headers else None)
        self.field = field


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def problem_response(status: int, detail: str, field: str = "", headers: Mapping[str, str] | None = None) -> ProblemResponse:
    document: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if field:
        document["field"] = field
    return ProblemResponse(document, status, dict(headers) if headers else None)


def add_handlers(app: FastAPI) -> None:
    """Every way a request can fail ends in a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(NotFound, lambda _, error: problem_response(404, str(error)))
    app.add_exception_handler(Conflict, lambda _, error: problem_response(409, str(error), getattr(error, "field", "")))
    app.add_exception_handler(OverQuota, lambda _, error: problem_response(429, str(error), getattr(error, "quota", "")))
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(PackageError, _refused)
    app.add_exception_handler(OriginError, lambda _, error: problem_response(503, f"the code store: {error}"))
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(Exception, _unexpected)


def _http(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return problem_response(error.status_code, str(error.detail), getattr(error, "field", ""), headers)


async def given_once(request: Request) -> None:
    """For every operation: none takes a list, and of two values one would be ignored. Raises Problem."""
    counts = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in counts.items():
        if count > 1:
            raise Problem(400, f"{name[:80]}: given {count} times; give it once", name[:80])


def _methods(request: Request) -> set[str]:
    """What the path knows, of all routes that share it; the router itself names only the first one's."""
    allowed: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches({**request.scope, "method": None})
        if match is not Match.NONE:
            allowed |= getattr(route, "methods", None) or set()
    return allowed


def _validation(request: Request, error: Exception) -> ProblemResponse:
    """The first error decides: its place without `body`, `query` or `path` is the field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    where, field = place[0], ".".join(place[1:])
    whole = where == "body" and (not field or first["type"] == "json_invalid")
    if whole and first["type"] not in ("missing", "value_error"):  # a rule about several fields is told in its own words
        return problem_response(400, "the body must be a JSON object, sent as application/json", "body")
    return problem_response(400, f"{field or where}: {first['msg'].removeprefix('Value error, ')}", field or where)


def _refused(request: Request, error: Exception) -> ProblemResponse:
    return problem_response(400, str(error), getattr(error, "field", ""))


def _database(request: Request, error: Exception) -> ProblemResponse:
    log.error("database.failed", error=type(error).__name__, reason=str(getattr(error, "orig", error))[:300])
    if isinstance(error, SQLAlchemyError) and out_of_space(error):
        return problem_response(507, "the disk of the database is full: nothing was changed; free some space and try again")
    return problem_response(503, "the database is not reachable; try again", headers={"Retry-After": "1"})


def _unexpected(request: Request, error: Exception) -> ProblemResponse:
    return problem_response(500, "an error on our side; the log of control has it")

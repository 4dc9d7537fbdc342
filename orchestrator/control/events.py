"""Events the control flow has not finished: what waits, what was given up and why, and another try."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.control.functions import tenant_of
from orchestrator.control.guard import is_operator
from orchestrator.control.schemas.parts import LARGEST
from orchestrator.control.schemas.platform import EventAnswer, EventsAnswer, RetriedAnswer

MAX_EVENT = LARGEST


def _whose(request: Request) -> str | None:
    """The tenant whose functions' events may be seen; None for an operator, who sees all."""
    return None if is_operator(request) else tenant_of(request)


def router(store: Store, nudge: Nudge) -> APIRouter:
    routes = APIRouter(tags=["events"])

    @routes.get("/v1/events")
    def list_events(
        request: Request,
        parked: Annotated[bool, Query(description="Only those given up after too many tries.")] = False,
        after: Annotated[int, Query(ge=0, le=MAX_EVENT, description="Events behind this one.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="Events; each may wait for several modules.")] = 1000,
    ) -> EventsAnswer:
        """Events of the tenant's functions that a module has not finished, oldest first. An operator's key sees all."""
        found = store.outbox.unfinished(_whose(request), parked, after, limit)
        return EventsAnswer(events=[EventAnswer.model_validate(view) for view in found])

    @routes.post("/v1/events/retry")
    def retry_events(request: Request) -> RetriedAnswer:
        """Try every parked event again."""
        return _redrive(request, None)

    @routes.post("/v1/events/{event}/retry")
    def retry_event(event: Annotated[int, Path(ge=1, le=MAX_EVENT)], request: Request) -> RetriedAnswer:
        """Try one parked event again, from its first try."""
        return _redrive(request, event)

    def _redrive(request: Request, event: int | None) -> RetriedAnswer:
        retried = store.outbox.redrive(time.time(), _whose(request), event)
        nudge.give()
        return RetriedAnswer(retried=retried)

    return routes

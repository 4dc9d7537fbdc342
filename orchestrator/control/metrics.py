"""Control's numbers as metrics, what it needs to be ready, and the page of all processes of this machine."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Response
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.catalog.publish import Publisher
from orchestrator.catalog.store import Store
from orchestrator.control.guard import operator_only
from orchestrator.ops.catalogue import family, one
from orchestrator.ops.health import Check
from orchestrator.ops.listener import METRICS_TYPE

TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    403: {"description": "The key is a tenant's; this page is for operators."},
}


class Requests:
    """Counts answers by status. ASGI middleware, the outermost: refusals count too."""

    def __init__(self, app: ASGIApp, counts: "Counter[int]") -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


class ControlMetrics(Collector):
    def __init__(self, store: Store, publisher: Publisher, counts: "Counter[int]") -> None:
        self._store = store
        self._publisher = publisher
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        yield family("foreglow_api_requests", [((str(status),), count) for status, count in list(self._counts.items())])
        yield one("foreglow_database_up", float(self._store.database.reachable()))
        yield one("foreglow_redis_up", float(self._publisher.ping()))


def control_checks(store: Store, publisher: Publisher) -> Sequence[Check]:
    return [
        Check("database", store.database.reachable(), "the database does not answer"),
        Check("redis", publisher.ping(), "Redis does not answer: deploys wait", needed=False),
    ]


def router(gather: Callable[[], Awaitable[bytes]]) -> APIRouter:
    routes = APIRouter(tags=["status"])

    @routes.get("/metrics", responses=TEXT, response_class=Response, dependencies=[Depends(operator_only)])
    async def metrics() -> Response:
        """Metrics of every process of this machine, for Prometheus. Needs an operator's key."""
        return Response(await gather(), media_type=METRICS_TYPE.decode())

    return routes

"""Metadata sync: carries to the routes what gateways must know, once all that a version needs holds."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from graph.ids import FunctionId, tenant_of
from orchestrator.catalog.model import EventKind, Module
from orchestrator.catalog.outbox import OpenEvent
from orchestrator.catalog.publish import Published, Publisher
from orchestrator.catalog.releases import Plan
from orchestrator.catalog.routes import Route
from orchestrator.catalog.store import Store

log = structlog.get_logger(__name__)


class MetadataSync:
    """One event at a time, any event any number of times. `prepared(tenant)`: a planner is there to open the gates of its
    releases; where none is, a new version serves as soon as its conditions hold."""

    module = Module.METADATA_SYNC

    def __init__(self, store: Store, publisher: Publisher, prepared: Callable[[str], bool] = lambda tenant: False) -> None:
        self._store = store
        self._publisher = publisher
        self._prepared = prepared

    def apply(self, event: OpenEvent) -> None:
        """Raises redis.RedisError while Redis is away: the event is then tried again."""
        if event.kind is EventKind.DEPLOYED:
            published = self._serve(FunctionId(event.subject), int(event.payload["number"]), event.payload.get("release"))
        elif event.kind is EventKind.ROUTED:
            route = self._store.functions.route(FunctionId(event.subject))
            published = self._publish(route) if route is not None else Published.NOTHING
        elif event.kind is EventKind.REMOVED:
            published = self._publisher.remove_route(FunctionId(event.subject), event.generation)
        elif event.kind is EventKind.NODE:
            node = self._store.nodes.published_one(event.subject)
            published = self._publisher.publish_node(node) if node is not None else Published.NOTHING
        elif event.kind is EventKind.VPC:
            vpc = self._store.vpcs.published_one(event.subject)
            published = self._publisher.publish_vpc(vpc) if vpc is not None else Published.NOTHING
        elif event.kind is EventKind.TENANT:
            tenant = self._store.tenants.published_one(event.subject)
            published = self._publisher.publish_tenant(tenant) if tenant is not None else Published.NOTHING
        else:
            key = self._store.published_key(event.subject)
            published = self._publisher.publish_key(key) if key is not None else Published.NOTHING
        if published is Published.LOST:
            self._publisher.rebuild(self._store)

    def give_up(self, event: OpenEvent) -> None:
        """Nothing to undo: what serves goes on serving, and `rebuild` brings the rest."""

    def _serve(self, function: FunctionId, number: int, asked: Mapping[str, Any] | None) -> Published:
        """`asked`: how it is to be released; None: at once."""
        plan = msgspec.convert(asked, Plan) if asked is not None and self._prepared(tenant_of(function)) else None
        route = self._store.functions.mark_serving(function, number, plan, time.time())
        return self._publish(route) if route is not None else Published.NOTHING

    def _publish(self, route: Route) -> Published:
        published = self._publisher.publish_route(route)
        self._store.functions.mark_published(route, time.time())
        log.info("route.published", function=route.function, latest=route.latest, generation=route.generation)
        return published

"""The keys of a tenant: several, named, revocable."""

import threading
import time
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.catalog.gateways import Gateways
from orchestrator.catalog.model import KeyRole
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.control.functions import tenant_of
from orchestrator.control.guard import is_operator, tenant_meant
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.parts import TENANT
from orchestrator.control.schemas.tenants import KeyAnswer, KeyRequest, KeysAnswer, MadeKeyAnswer

KEEP_USE_EVERY_S = 30.0

log = structlog.get_logger(__name__)

Named = Annotated[str, Query(pattern=f"^({TENANT.removesuffix('$')})?$", description="Another tenant, for operators.")]
KeyId = Annotated[str, Path(pattern="^[0-9a-f]{1,32}$", examples=["5b1f0c9d2e7a4438"])]


def router(store: Store, nudge: Nudge, gateways: Gateways) -> APIRouter:
    routes = APIRouter(tags=["keys"])

    @routes.get("/v1/keys")
    def list_keys(request: Request, tenant: Named = "") -> KeysAnswer:
        """The keys of the tenant, the oldest first, revoked ones too. No token is among them."""
        whose = tenant_meant(request, tenant)
        keep_use(store, gateways)
        return KeysAnswer(keys=[KeyAnswer.model_validate(view) for view in store.keys.list_keys(whose)])

    @routes.post("/v1/keys", status_code=201)
    def make_key(wanted: KeyRequest, request: Request, response: Response, tenant: Named = "") -> MadeKeyAnswer:
        """Make a key. Its token is in this answer and nowhere else."""
        whose = tenant_meant(request, tenant)
        role = KeyRole(wanted.role)
        if role is KeyRole.OPERATOR and not is_operator(request):
            raise Problem(403, "role: only an operator key can make an operator key", "role")
        made = store.keys.make_key(whose, wanted.name, time.time(), role)
        nudge.give()
        response.headers["Cache-Control"] = "no-store"
        return MadeKeyAnswer(key_id=made.key_id, name=wanted.name, role=wanted.role, token=made.token)

    @routes.delete("/v1/keys/{key_id}", status_code=204, response_class=Response)
    def revoke_key(key_id: KeyId, request: Request, tenant: Named = "") -> None:
        """Revoke a key: the API refuses it from now on, gateways within a moment. Not the last one of one's own tenant."""
        whose = tenant_meant(request, tenant)
        store.keys.revoke_key(whose, key_id, time.time(), request.state.role, own=whose == tenant_of(request))
        nudge.give()

    return routes


def keep_use(store: Store, gateways: Gateways) -> None:
    """What gateways told of the use of keys goes into the database. Blocking; nothing while Redis is away."""
    used = gateways.keys_used()
    if used:
        store.keys.used(used)
        gateways.keys_kept(list(used))


def keep_use_until(ended: threading.Event, store: Store, gateways: Gateways) -> None:
    """A loop for a thread of its own."""
    while not ended.wait(KEEP_USE_EVERY_S):
        try:
            keep_use(store, gateways)
        except SQLAlchemyError as error:
            log.warning("keys.use_not_kept", error=type(error).__name__)

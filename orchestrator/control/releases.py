"""Published versions, aliases and releases: where traffic goes, and how it gets there. Plain `def`: they run in threads."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.releases import Plan
from orchestrator.catalog.store import Store
from orchestrator.control.functions import Name, tenant_of
from orchestrator.control.schemas.parts import LARGEST
from orchestrator.control.schemas.releases import (
    ALIAS,
    AliasAnswer,
    AliasesAnswer,
    AliasRequest,
    PublishedAnswer,
    PublishRequest,
    ReleaseAnswer,
    ReleasesAnswer,
)
from orchestrator.splitting import Pointer

AliasName = Annotated[str, Path(pattern=ALIAS, description="An alias, or $LATEST.", examples=["live"])]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
ReleaseNumber = Annotated[int, Path(ge=1, le=LARGEST)]


def router(store: Store, nudge: Nudge) -> APIRouter:
    """The endpoints of aliases, published versions and releases."""
    routes = APIRouter(tags=["releases"])

    @routes.post("/v1/functions/{name}/published")
    def publish_version(name: Name, wanted: PublishRequest, request: Request) -> PublishedAnswer:
        """Name a version: it is kept, and stays invocable by its number. It may move an alias."""
        tenant, now = tenant_of(request), time.time()
        number = store.aliases.publish(tenant, name, wanted.version, wanted.label, now)
        alias = None
        if wanted.alias is not None:
            view = store.aliases.set(tenant, name, wanted.alias, Pointer(number), None, Plan(), now)
            alias = AliasAnswer.model_validate(view)
        nudge.give()
        return PublishedAnswer(version=number, label=wanted.label, alias=alias)

    @routes.delete("/v1/functions/{name}/published/{number}", status_code=204, response_class=Response)
    def unpublish_version(name: Name, number: Number, request: Request) -> None:
        """Keep a version no longer than others are kept."""
        store.aliases.unpublish(tenant_of(request), name, number, time.time())
        nudge.give()

    @routes.get("/v1/functions/{name}/aliases")
    def list_aliases(name: Name, request: Request) -> AliasesAnswer:
        """What each alias means, $LATEST among them."""
        found = store.aliases.list(tenant_of(request), name)
        return AliasesAnswer(aliases=[AliasAnswer.model_validate(one) for one in found])

    @routes.put("/v1/functions/{name}/aliases/{alias}", status_code=202)
    def put_alias(name: Name, alias: AliasName, wanted: AliasRequest, request: Request) -> AliasAnswer:
        """Point an alias at one version or at two. One that exists moves by a release; a new one points there at once."""
        target = Pointer(wanted.version, wanted.second, wanted.share)
        view = store.aliases.set(tenant_of(request), name, alias, target, wanted.sticky, wanted.release.plan(), time.time())
        nudge.give()
        return AliasAnswer.model_validate(view)

    @routes.delete("/v1/functions/{name}/aliases/{alias}", status_code=204, response_class=Response)
    def remove_alias(name: Name, alias: AliasName, request: Request) -> None:
        """Remove an alias; its versions stay as they are."""
        store.aliases.remove(tenant_of(request), name, alias, time.time())
        nudge.give()

    @routes.post("/v1/functions/{name}/aliases/{alias}/rollback")
    def rollback_alias(name: Name, alias: AliasName, request: Request) -> AliasAnswer:
        """Point an alias where it pointed before its last change, in one step; asked again, it comes back."""
        view = store.aliases.rollback(tenant_of(request), name, alias, time.time())
        nudge.give()
        return AliasAnswer.model_validate(view)

    @routes.get("/v1/releases")
    def list_releases(
        request: Request,
        function: Annotated[str, Query(max_length=63, description="Only of this function.")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> ReleasesAnswer:
        """Releases on their way and those before, newest first."""
        found = store.releases.list(tenant_of(request), function, limit)
        return ReleasesAnswer(releases=[ReleaseAnswer.model_validate(one) for one in found])

    @routes.get("/v1/releases/{release}")
    def describe_release(release: ReleaseNumber, request: Request) -> ReleaseAnswer:
        """One release: its step, its gate, and what it waits for."""
        return ReleaseAnswer.model_validate(store.releases.describe(tenant_of(request), release))

    @routes.post("/v1/releases/{release}/abort")
    def abort_release(release: ReleaseNumber, request: Request) -> ReleaseAnswer:
        """End a release: its alias points where it did before, at once."""
        view = store.releases.abort(tenant_of(request), release, time.time())
        nudge.give()
        return ReleaseAnswer.model_validate(view)

    return routes

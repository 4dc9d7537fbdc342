"""Packages and functions: what is written to the database, with one event each. Plain `def`: they run in threads."""

import tempfile
import threading
import time
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from orchestrator.catalog.errors import OverQuota
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.control.problems import Problem
from orchestrator.control.schemas.functions import (
    FunctionAnswer,
    FunctionRequest,
    FunctionsAnswer,
    LockAnswer,
    PackageAnswer,
    VersionAnswer,
)
from orchestrator.control.schemas.parts import NAME
from orchestrator.control.schemas.platform import ProblemAnswer
from workers.code.origin import Origin
from workers.code.package import build_package
from workers.code.publishing import publish_package
from workers.code.requirements import requirements_digest
from workers.sealing import Sealer
from workers.versions import Scaling, shape_for

IN_MEMORY = 1 << 20
BUILDS = 2
"""Packages checked at once: each may hold a CPU for a second."""

BUILD_WAIT_S = 30.0
ZIP_TYPES = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
ZIP_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}

NOT_A_ZIP: dict[int | str, dict[str, Any]] = {415: {"model": ProblemAnswer, "description": "The body is not sent as a zip."}}

Name = Annotated[str, Path(pattern=f"^{NAME}", description="Name of a function of this tenant.", examples=["checkout"])]


def tenant_of(request: Request) -> str:
    return str(request.state.tenant)


def router(store: Store, origin: Origin, sealer: Sealer, nudge: Nudge) -> APIRouter:
    """The endpoints of packages and functions."""
    routes = APIRouter()
    builds = threading.BoundedSemaphore(BUILDS)

    def register(tenant: str, body: BinaryIO) -> PackageAnswer:
        if not builds.acquire(timeout=BUILD_WAIT_S):
            raise Problem(503, "too many packages are being checked; try again", headers={"Retry-After": "5"})
        try:
            with tempfile.SpooledTemporaryFile(IN_MEMORY) as spooled:
                archive: BinaryIO = spooled  # type: ignore[assignment]  # it is one, the stubs do not say so
                package = build_package(body, archive)
                _make_room(store, tenant, package.digest, package.listing.size)
                known = store.packages.find(tenant, package.digest) is not None
                # one that nothing refers to may be about to be swept: it is put again, and is young again
                if not (known and origin.holds_package(tenant, package.digest)):
                    archive.seek(0)
                    publish_package(origin, tenant, package.listing, archive)
        finally:
            builds.release()
        files, size, required = len(package.listing.files), package.listing.size, package.requirements
        store.packages.register(tenant, package.digest, files, size, required, requirements_digest(required), time.time())
        return PackageAnswer(digest=package.digest, files=files, bytes=size, requirements=bool(package.requirements))

    @routes.post("/v1/packages", status_code=201, tags=["packages"], openapi_extra=ZIP_BODY, responses=NOT_A_ZIP)
    async def upload_package(request: Request) -> PackageAnswer:
        """Upload code as a zip: at most 50 MiB, 250 MiB unpacked. The same code gives the same digest."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in ZIP_TYPES:
            raise Problem(415, f"send the zip as {ZIP_TYPES[0]}", "Content-Type")
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
            try:
                async for chunk in request.stream():
                    body.write(chunk)
            except ClientDisconnect:
                raise Problem(400, "the body ended early", "body") from None
            return await run_in_threadpool(register, tenant_of(request), body)  # type: ignore[arg-type]

    @routes.put("/v1/functions/{name}", status_code=202, tags=["functions"])
    def put_function(name: Name, wanted: FunctionRequest, request: Request, response: Response) -> FunctionAnswer:
        """Deploy: make a new immutable version. It serves once its conditions hold; until then the one before does."""
        tenant = tenant_of(request)
        _check_handler(store, origin, tenant, wanted)
        view = store.functions.put(tenant, name, _settings(wanted, sealer), time.time(), wanted.release.plan())
        nudge.give()
        response.headers["Location"] = f"/v1/functions/{name}/versions/{view.versions[0].number}"
        return FunctionAnswer.model_validate(view)

    @routes.get("/v1/functions", tags=["functions"])
    def list_functions(
        request: Request,
        after: Annotated[str, Query(max_length=63, description="Names behind this one.")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    ) -> FunctionsAnswer:
        """All functions of the tenant, by name."""
        found = store.functions.list(tenant_of(request), after, limit)
        return FunctionsAnswer(functions=[FunctionAnswer.model_validate(view) for view in found])

    @routes.get("/v1/functions/{name}", tags=["functions"])
    def describe_function(name: Name, request: Request) -> FunctionAnswer:
        """One function with its versions and what each waits for."""
        return FunctionAnswer.model_validate(store.functions.describe(tenant_of(request), name))

    @routes.get("/v1/functions/{name}/versions/{number}", tags=["functions"])
    def describe_version(name: Name, number: Annotated[int, Path(ge=1, le=2**31 - 1)], request: Request) -> VersionAnswer:
        """One version. Its state is `ready` once the routes say so."""
        return VersionAnswer.model_validate(store.functions.describe_version(tenant_of(request), name, number))

    @routes.get("/v1/functions/{name}/versions/{number}/lock", tags=["functions"])
    def version_lock(name: Name, number: Annotated[int, Path(ge=1, le=2**31 - 1)], request: Request) -> LockAnswer:
        """What was installed for a version's requirements.txt: every version pinned, with the hashes of its files."""
        return LockAnswer(lock=store.functions.lock(tenant_of(request), name, number))

    @routes.delete("/v1/functions/{name}", status_code=204, tags=["functions"], response_class=Response)
    def remove_function(name: Name, request: Request) -> None:
        """Remove a function with all its versions. Version numbers are never given again."""
        store.functions.remove(tenant_of(request), name, time.time())
        nudge.give()

    return routes


def _settings(wanted: FunctionRequest, sealer: Sealer) -> VersionSettings:
    return VersionSettings(
        package=wanted.package,
        handler=wanted.handler,
        kind=wanted.kind,
        runtime=wanted.runtime,
        memory_mb=shape_for(wanted.memory_mb),
        timeout_s=wanted.timeout_s,
        concurrency=wanted.concurrency,
        environment=sealer.seal(wanted.environment),
        environment_names=tuple(wanted.environment),
        calls=tuple(dict.fromkeys(wanted.calls)),
        egress=wanted.egress,
        initial_instances=wanted.initial_instances,
        build=wanted.build,
        vpc=wanted.vpc,
        scaling=Scaling(
            wanted.min_instances,
            wanted.max_instances,
            wanted.provisioned_instances,
            wanted.reserved_instances,
            wanted.target_concurrency,
        ),
    )


def _make_room(store: Store, tenant: str, digest: str, size: int) -> None:
    """Over the quota, packages that nothing uses go first. Raises OverQuota."""
    try:
        store.packages.check_room(tenant, digest, size)
    except OverQuota:
        if not store.packages.release(tenant, time.time()):
            raise
        store.packages.check_room(tenant, digest, size)


def _check_handler(store: Store, origin: Origin, tenant: str, wanted: FunctionRequest) -> None:
    """A handler that cannot be there is refused now, not when the version is built."""
    package = store.packages.find(tenant, wanted.package)
    if package is None or package.requirements:
        return
    module = wanted.handler.partition(":")[0]
    if not origin.listing(tenant, wanted.package).holds_module(module):
        raise Problem(400, f"handler: the package holds no module {module!r}", "handler")

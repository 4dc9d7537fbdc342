"""Identities every floor speaks: tenant, function, version.

They are plain strings with a type each, because they are dictionary keys on the request path and travel in every
message. A function is `tenant/name`, a version `tenant/name:3`. A tenant never holds a slash; the name of an
*observed* function (one known from somebody else's traces) may hold anything, so split from the outside in.
"""

import re
from typing import NewType

TenantId = NewType("TenantId", str)
FunctionId = NewType("FunctionId", str)
VersionId = NewType("VersionId", str)

TENANT_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
"""Names of deployable functions. Observed functions are free text of up to 255 characters."""

LATEST = "$LATEST"


def function_id(tenant: str, name: str) -> FunctionId:
    return FunctionId(f"{tenant}/{name}")


def version_id(function: FunctionId, number: int) -> VersionId:
    return VersionId(f"{function}:{number}")


def tenant_of(identity: FunctionId | VersionId) -> TenantId:
    return TenantId(identity.partition("/")[0])


def name_of(function: FunctionId) -> str:
    return function.partition("/")[2]


def function_of(version: VersionId) -> FunctionId:
    return FunctionId(version.rpartition(":")[0])


def number_of(version: VersionId) -> int:
    return int(version.rpartition(":")[2])

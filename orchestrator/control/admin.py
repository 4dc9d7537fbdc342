"""The first tenant and its operator key, for the command line of the user who runs the platform."""

import os
import secrets
from pathlib import Path

import structlog

from orchestrator.catalog.errors import Refused
from orchestrator.catalog.keys import Keys
from orchestrator.catalog.model import KeyRole
from orchestrator.catalog.tenants import DEFAULT_TENANT

KEY_NAME = "admin"

log = structlog.get_logger(__name__)


def ensure_admin_key(keys: Keys, file: Path, now: float) -> None:
    """Tenant `default` exists and `file` (0600) holds a live operator key of it. The key is never logged. Raises OSError.

    A file that outlived its database is registered again; a revoked key is replaced.
    """
    keys.create_tenant(DEFAULT_TENANT, now)
    token = file.read_text().strip() if file.exists() else ""
    if token:
        try:
            keys.adopt_key(DEFAULT_TENANT, KEY_NAME, token, now, KeyRole.OPERATOR)
        except Refused:
            log.info("admin.replaced", file=str(file))
        else:
            return
    made = keys.make_key(DEFAULT_TENANT, KEY_NAME, now, KeyRole.OPERATOR)
    fresh = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(made.token + "\n")
    fresh.replace(file)

"""Probes of what an installation stands on: Redis, the database, the origin, and how their clocks differ from ours."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.catalog.database import configuration
from orchestrator.doctor import findings
from orchestrator.doctor.findings import Finding
from orchestrator.settings import Settings
from workers.code import objects

TIMEOUT_S = 5


def look(settings: Settings, running: bool) -> Iterator[Finding]:
    yield from of_redis(settings, running)
    yield from of_database(settings)
    yield of_origin(settings)


def of_redis(settings: Settings, running: bool) -> Iterator[Finding]:
    if not settings.redis_url and not running:
        yield findings.ok("redis", "embedded; it starts with `foreglow up`")
        return
    advice = "start it" if settings.redis_url else "see logs/valkey.log in the state folder"
    where = f"{_shown(settings.redis_url) if settings.redis_url else 'the embedded Valkey'} "
    try:
        with redis.Redis.from_url(
            settings.effective_redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            client.ping()
            before, began = time.time(), time.perf_counter()
            seconds, micros = client.time()
            took = time.perf_counter() - began
            yield findings.reachable("redis", "", took * 1000, advice)
            yield findings.clock("Redis", before + took / 2 - (seconds + micros / 1e6), took / 2 + 0.001)
            yield _settings_of(client)
    except (redis.RedisError, OSError, ValueError) as error:
        yield findings.reachable(
            "redis", f"{where}does not answer: {_reason(error)}", 0.0, f"{advice}, or correct FOREGLOW_REDIS_URL"
        )


def of_database(settings: Settings) -> Iterator[Finding]:
    """Reads only; a SQLite file that is not there yet is not made."""
    head = ScriptDirectory.from_config(configuration()).get_current_head() or ""
    url = settings.effective_database_url
    sqlite = url.startswith("sqlite")
    if sqlite:
        path = Path(url.partition("///")[2])
        if not path.exists():
            yield findings.ok("database", f"no SQLite file at {path} yet")
            yield findings.schema(None, head, "")
            return
        url = f"sqlite:///file:{path}?mode=ro&uri=true"
    options: dict[str, Any] = {"timeout": TIMEOUT_S} if sqlite else {"connect_timeout": TIMEOUT_S}
    try:
        engine = create_engine(url, connect_args=options)
        try:
            with engine.connect() as connection:
                before, began = time.time(), time.perf_counter()
                now = connection.execute(
                    text("SELECT 0.0" if sqlite else "SELECT extract(epoch from clock_timestamp())")
                ).scalar_one()
                took = time.perf_counter() - began
                current = MigrationContext.configure(connection).get_current_revision()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ValueError, ImportError) as error:
        name = "the SQLite file" if sqlite else _shown(settings.database_url)
        yield findings.reachable(
            "database", f"{name} does not answer: {_reason(error)}", 0.0, "start it, or correct FOREGLOW_DATABASE_URL"
        )
        return
    yield findings.reachable("database", "", took * 1000, "")
    yield findings.schema(current, head, "")
    if not sqlite:
        yield findings.clock("the database", before + took / 2 - float(now), took / 2 + 0.001)


def of_origin(settings: Settings) -> Finding:
    parts = urlsplit(settings.effective_origin_url)
    advice = "correct FOREGLOW_ORIGIN_URL and its credentials"
    began = time.perf_counter()
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        error = "" if folder.is_dir() or not settings.origin_url else f"{folder} is no folder"
        return findings.reachable("origin", error, 0.0, advice)
    try:
        objects.reach(settings.effective_origin_url, TIMEOUT_S)
    except (*objects.Trouble, ValueError) as error:
        return findings.reachable("origin", f"{parts.scheme}://{parts.hostname} does not answer: {_reason(error)}", 0.0, advice)
    return findings.reachable("origin", "", (time.perf_counter() - began) * 1000, advice)


def _settings_of(client: redis.Redis) -> Finding:
    """A server that tells nobody its settings is trusted."""
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy") or ""
        kept = client.config_get("appendonly").get("appendonly", "yes") == "yes" or bool(
            client.config_get("save").get("save", "")
        )
    except redis.ResponseError:
        return findings.ok("redis settings", "not told")
    return findings.redis_settings(policy, kept)


def _shown(url: str) -> str:
    """An address without its user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _reason(error: Exception) -> str:
    """The first line; a driver's words hold no password, and the statement that failed is of no use here."""
    return (str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__])[0][:200]

"""Logs of every platform process: structlog and the standard library through one chain, one JSON object a line on stderr.

The supervisor keeps what a process writes to stderr in the state folder. On a terminal the lines are for people.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

HIDDEN_PARTS = ("authorization", "environment", "password", "secret", "token", "cookie", "key")
"""A field whose name holds one of these words as a whole part is masked: no secret reaches a log."""

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:\"']*:[^\s/@\"']*(?=@)")
_TOKENS = re.compile(r"\bfg_[A-Za-z0-9_-]{20,}|(?<=Bearer )[^\s\"']+")

NOISY = ("httpx", "httpcore", "celery.utils.functional", "kombu", "amqp", "asyncio", "opentelemetry")


def configure(process: str, level: str = "info") -> None:
    """Sets up logging of this process. Raises ValueError for an unknown level."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        known = ", ".join(name.lower() for name in ("DEBUG", "INFO", "WARNING", "ERROR"))
        raise ValueError(f"log_level: {level!r} is not one of {known}")
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(process),
        mask,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderers: list[structlog.types.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if sys.stderr.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """The last one to see a line, tracebacks and other libraries' words too."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def scrub(line: str) -> str:
    """Without user and password of addresses, and without keys, wherever in the line they are."""
    return _TOKENS.sub("***", _CREDENTIALS.sub("***", line))


def mask(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hides the values of fields whose name says that they are secret."""
    for name in event:
        if name != "event" and not {*name.lower().replace("-", "_").split("_")}.isdisjoint(HIDDEN_PARTS):
            event[name] = "***"
    return event


def _named(process: str) -> structlog.types.Processor:
    def add(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    return add

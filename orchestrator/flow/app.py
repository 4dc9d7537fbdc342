"""The Celery application: how tasks travel. JSON only, acknowledged late, one at a time.

A task carries an event's number and nothing else: what it says is read from the database, so a task that comes twice or late
does no harm.
"""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import structlog
from celery import Celery
from celery.exceptions import Reject
from kombu.entity import Queue

from orchestrator.catalog.model import Module
from orchestrator.settings import MAX_BUILD_S

LONGEST_TASK_S = int(MAX_BUILD_S) + 600  # a source build; resolving twice, installing, compiling
VISIBILITY_TIMEOUT_S = 2 * LONGEST_TASK_S + 40  # a task that still runs must not be handed out again
SOCKET_TIMEOUT_S = 5.0
REQUEUE_S = 0.5
KEY_PREFIX = "foreglow:celery:"

log = structlog.get_logger(__name__)


def broker_url(redis_url: str) -> str:
    """Celery's spelling of a Redis address: `unix:///path` is `redis+socket:///path` there."""
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return f"redis+socket://{parts.path}" + (f"?{parts.query}" if parts.query else "")
    return redis_url


def build_app(redis_url: str) -> Celery:
    """An application without tasks; nothing is connected yet."""
    app = Celery("foreglow", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_queues=[Queue(module.value, routing_key=module.value) for module in Module],  # type: ignore[no-untyped-call]
        task_create_missing_queues=False,
        task_default_queue=Module.FUNCTION_MANAGEMENT.value,
        worker_prefetch_multiplier=1,
        worker_consumer="orchestrator.flow.consumer:PatientConsumer",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=SOCKET_TIMEOUT_S,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "global_keyprefix": KEY_PREFIX,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
        },
    )
    return app


def task_name(module: Module) -> str:
    return f"foreglow.{module}"


def add_module(app: Celery, module: Module, apply: Callable[[int], None]) -> None:
    """Registers `apply(event)` as the module's task. It must be idempotent.

    What it raises means that not even the outcome could be written down: the task goes back into its queue after REQUEUE_S.
    """

    def task(event: int) -> None:
        try:
            apply(event)
        except Exception as error:  # the database is away; acknowledged, the event would wait for the outbox's long resend
            log.warning("task.requeued", module=module, event_number=event, reason=f"{type(error).__name__}: {error}"[:300])
            time.sleep(REQUEUE_S)
            raise Reject(error, requeue=True) from error

    app.task(task, name=task_name(module), shared=False)


def send(app: Celery, module: Module, event: int) -> None:
    """Puts the event into the module's queue. Raises kombu's OperationalError when the broker is away; never retries itself."""
    options: dict[str, Any] = {"queue": module.value, "retry": False, "ignore_result": True}
    app.send_task(task_name(module), args=[event], **options)

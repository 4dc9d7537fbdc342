"""Every span attribute name this project reads or writes, once. The faas.*, service.* and error.* ones are OpenTelemetry's
semantic conventions; foreglow.* are ours."""

from typing import Final

SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
ERROR_TYPE: Final = "error.type"

FAAS_NAME: Final = "faas.name"
FAAS_VERSION: Final = "faas.version"
FAAS_INVOCATION_ID: Final = "faas.invocation_id"
FAAS_COLDSTART: Final = "faas.coldstart"
FAAS_TRIGGER: Final = "faas.trigger"
FAAS_INVOKED_NAME: Final = "faas.invoked_name"

TRIGGER_HTTP: Final = "http"  # the entry of a run came through the functions listener
TRIGGER_OTHER: Final = "other"  # called by a function, over its instance's own channel

START: Final = "foreglow.start"  # warm, prewarmed, almost-warm, standby, cold, unknown
WAIT_MS: Final = "foreglow.wait_ms"  # waited for an instance; offsets are freed of it
STATUS: Final = "foreglow.status"  # ok, error, timeout, killed, refused, cancelled
NODE: Final = "foreglow.node"
DECISION_ID: Final = "foreglow.decision_id"
STEP_MS: Final = "foreglow.step.{}_ms"  # one for each of tracing.records.STEPS that happened
CODE_FROM: Final = "foreglow.code_from"  # tier1, tier2 or origin

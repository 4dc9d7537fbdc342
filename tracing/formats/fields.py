"""What the readers of all formats make of single fields: ids, names, times, kinds. None of them raises."""

import re

from graph.calls import StartKind
from tracing import attributes
from tracing.spans import SpanKind

NAME_LIMIT = 1024
"""Characters. Names are cut far shorter where they become functions; this bounds what waits in memory."""

MAX_NS = 2**63 - 1
MAX_WAIT_MS = 3.6e6

WANTED = frozenset(
    {
        attributes.SERVICE_NAME,
        attributes.FAAS_NAME,
        attributes.FAAS_INVOKED_NAME,
        attributes.FAAS_COLDSTART,
        attributes.START,
        attributes.WAIT_MS,
        attributes.STATUS,
    }
)
"""The attributes that are read."""

KINDS = {kind.name.lower(): kind for kind in SpanKind}
STARTS = {start.value: start for start in StartKind}

Value = str | bool | float

_HEX = re.compile(r"[0-9a-f]{1,32}")


def identity(text: object, digits: int) -> str:
    """An id as that many lower-case hex digits, zeros in front: some tools cut those. Empty when it is none, or all zeros."""
    if not isinstance(text, str):
        return ""
    text = text.lower()
    if len(text) > digits or not _HEX.fullmatch(text) or not text.strip("0"):
        return ""
    return text.zfill(digits)


def text_of(value: object) -> str:
    """A name, cut. Lone surrogates, which JSON can hold and UTF-8 cannot, become question marks."""
    if not isinstance(value, str):
        return "" if value is None else str(value)[:NAME_LIMIT]
    cut = value[:NAME_LIMIT]
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()


def nanoseconds(value: object, scale: int = 1) -> int:
    """A time in units of `scale` nanoseconds, as a number or as digits. 0, which says that there is none, for anything else."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) <= 20 else 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    scaled = value * scale
    return int(scaled) if 0 < scaled <= MAX_NS else 0  # not a number compares as False, too


def start_kind(own: dict[str, Value]) -> StartKind:
    """How the invocation found its instance, where the span says so."""
    start = STARTS.get(str(own.get(attributes.START, "")), StartKind.UNKNOWN)
    if start is StartKind.UNKNOWN and own.get(attributes.FAAS_COLDSTART) in (True, "true"):
        return StartKind.COLD
    return start


def wait_s(own: dict[str, Value]) -> float:
    """Seconds it says it waited for an instance; 0 when it does not, or says nonsense."""
    told = own.get(attributes.WAIT_MS, 0.0)
    if isinstance(told, str) or not 0.0 <= told <= MAX_WAIT_MS:
        return 0.0
    return told / 1000

"""What functions wrote, per invocation: at most 64 KiB each, a ring per function, 24 hours."""

from collections import OrderedDict
from dataclasses import dataclass, field

PER_INVOCATION = 64 << 10
PER_FUNCTION = 1 << 20
ENTRIES = 1000
FUNCTIONS = 2000
KEEP_S = 24 * 3600.0


@dataclass(slots=True, eq=False)
class InvocationLog:
    invocation_id: str
    version: str
    at: float
    size: int = 0
    cut: bool = False
    parts: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Ring:
    entries: OrderedDict[str, InvocationLog] = field(default_factory=OrderedDict)
    size: int = 0


class LogStore:
    """In memory, bounded in every direction. `function` is a FunctionId."""

    def __init__(self) -> None:
        self._rings: OrderedDict[str, _Ring] = OrderedDict()

    def write(self, function: str, version: str, invocation_id: str, stream: str, text: bytes, now: float) -> None:
        """Adds output of an invocation ("" when it belongs to none); what is over the limit is cut and marked."""
        ring = self._rings.get(function)
        if ring is None:
            ring = self._rings[function] = _Ring()
            if len(self._rings) > FUNCTIONS:
                self._rings.popitem(last=False)
        entry = ring.entries.get(invocation_id)
        if entry is None:
            entry = ring.entries[invocation_id] = InvocationLog(invocation_id, version, now)
        room = PER_INVOCATION - entry.size
        if len(text) > room:
            text, entry.cut = text[:room], True
        if text:
            entry.parts.append((stream, text))
            entry.size += len(text)
            ring.size += len(text)
        while len(ring.entries) > 1 and self._over(ring, now):
            ring.size -= ring.entries.popitem(last=False)[1].size

    @staticmethod
    def _over(ring: _Ring, now: float) -> bool:
        oldest = next(iter(ring.entries.values()))
        return ring.size > PER_FUNCTION or len(ring.entries) > ENTRIES or oldest.at < now - KEEP_S

    def read(self, function: str, invocation_id: str = "", limit: int = 100, now: float = 0.0) -> list[dict[str, object]]:
        """The newest `limit` invocations that wrote something, oldest first; only one when `invocation_id` is given."""
        ring = self._rings.get(function)
        if ring is None:
            return []
        chosen = [
            one
            for one in ring.entries.values()
            if one.at >= now - KEEP_S and (not invocation_id or one.invocation_id == invocation_id)
        ]
        return [
            {
                "invocation_id": one.invocation_id,
                "version": one.version,
                "at": one.at,
                "cut": one.cut,
                "output": [{"stream": stream, "text": text.decode("utf-8", "replace")} for stream, text in one.parts],
            }
            for one in chosen[-limit:]
        ]

    def forget(self, function: str) -> None:
        self._rings.pop(function, None)

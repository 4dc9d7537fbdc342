"""What functions wrote, per invocation: at most 64 KiB each, a ring per function, 24 hours."""

from collections import OrderedDict
from dataclasses import dataclass, field

PER_INVOCATION = 64 << 10  # bytes of text
PARTS = 512  # changes between the streams, per invocation
PER_FUNCTION = 1 << 20
ENTRIES = 1000
FUNCTIONS = 2000
TOTAL = 256 << 20
KEEP_S = 24 * 3600.0
ENTRY_COST, PART_COST = 512, 128  # bytes an entry or a part takes beside its text


@dataclass(slots=True, eq=False)
class InvocationLog:
    """`size` is its text, `cost` what it takes in memory."""

    invocation_id: str
    version: str
    at: float
    size: int = 0
    cost: int = ENTRY_COST
    cut: bool = False
    parts: list[tuple[str, bytearray]] = field(default_factory=list)

    def add(self, stream: str, text: bytes) -> None:
        room = PER_INVOCATION - self.size
        if len(text) > room:
            text, self.cut = text[:room], True
        if not text:
            return
        if not self.parts or self.parts[-1][0] != stream:
            if len(self.parts) >= PARTS:
                self.cut = True
                return
            self.parts.append((stream, bytearray()))
            self.cost += PART_COST
        self.parts[-1][1].extend(text)
        self.size += len(text)
        self.cost += len(text)


@dataclass(slots=True, eq=False)
class _Ring:
    entries: OrderedDict[str, InvocationLog] = field(default_factory=OrderedDict)
    cost: int = 0


class LogStore:
    """In memory, bounded in every direction. `function` is a FunctionId."""

    def __init__(self) -> None:
        self._rings: OrderedDict[str, _Ring] = OrderedDict()  # written longest ago first
        self._cost = 0

    def write(self, function: str, version: str, invocation_id: str, stream: str, text: bytes, now: float) -> None:
        """Adds output of an invocation ("" when it belongs to none); what is over the limit is cut and marked."""
        ring = self._rings.setdefault(function, _Ring())
        self._rings.move_to_end(function)
        before = ring.cost
        entry = ring.entries.get(invocation_id)
        if entry is None:
            entry = ring.entries[invocation_id] = InvocationLog(invocation_id, version, now)
            ring.cost += entry.cost
        cost = entry.cost
        entry.add(stream, text)
        ring.cost += entry.cost - cost
        while len(ring.entries) > 1 and self._over(ring, now):
            ring.cost -= ring.entries.popitem(last=False)[1].cost
        self._cost += ring.cost - before
        while len(self._rings) > FUNCTIONS or self._cost > TOTAL:
            self.forget(next(iter(self._rings)))

    @staticmethod
    def _over(ring: _Ring, now: float) -> bool:
        oldest = next(iter(ring.entries.values()))
        return ring.cost > PER_FUNCTION or len(ring.entries) > ENTRIES or oldest.at < now - KEEP_S

    def read(self, function: str, invocation_id: str = "", limit: int = 100, now: float = 0.0) -> list[dict[str, object]]:
        """The newest `limit` invocations that wrote something, oldest first; only one when `invocation_id` is given."""
        ring = self._rings.get(function)
        if ring is None or limit < 1:
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

    def forget_tenant(self, tenant: str) -> None:
        for function in [one for one in self._rings if one.startswith(f"{tenant}/")]:
            self.forget(function)

    def forget(self, function: str) -> None:
        ring = self._rings.pop(function, None)
        if ring is not None:
            self._cost -= ring.cost

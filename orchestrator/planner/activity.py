"""How much each function did in the last minutes, and what went wrong. Bounded; no I/O, `now` is passed in."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from graph.fairbook import FairBook
from tracing.records import InvocationRecord

BUCKET_S = 60.0
BUCKETS = 15
FUNCTIONS = 20_000
OK = "ok"


@dataclass(slots=True)
class _Function:
    """`minutes`: (number of the minute, count by status), oldest first, at most BUCKETS. `error`: the last one."""

    minutes: list[tuple[int, Counter[str]]] = field(default_factory=list)
    error: dict[str, Any] | None = None


class Activity:
    """Counts per function and status, over BUCKETS minutes; of the FUNCTIONS active last, fairly by tenant."""

    def __init__(self) -> None:
        self._functions: FairBook[str, _Function] = FairBook(FUNCTIONS)

    def add(self, records: Iterable[InvocationRecord]) -> None:
        for record in records:
            held = self._functions.get(record.function) or _Function()
            self._functions.put(record.function.partition("/")[0], record.function, held)
            minute = int(record.ended_at // BUCKET_S)
            if not held.minutes or held.minutes[-1][0] < minute:
                held.minutes.append((minute, Counter()))
                del held.minutes[:-BUCKETS]
            held.minutes[-1][1][record.status] += 1  # one that comes late counts in the newest minute
            if record.status != OK:
                held.error = {
                    "status": record.status,
                    "type": record.error_type,
                    "at": record.ended_at,
                    "trace_id": record.trace_id,
                }

    def forget_tenant(self, tenant: str) -> None:
        self._functions.forget(tenant)

    def calls(self, now: float) -> Counter[str]:
        """Invocations of these minutes by FunctionId, all tenants."""
        oldest = int(now // BUCKET_S) - BUCKETS + 1
        found: Counter[str] = Counter()
        for function, held in self._functions.items():
            found[function] = sum(counts.total() for minute, counts in held.minutes if minute >= oldest)
        return found

    def of(self, tenant: str, now: float) -> dict[str, Any]:
        """{window_s, functions: [{name, invocations, errors, by_status, last_error}]}: those with any, by name."""
        oldest = int(now // BUCKET_S) - BUCKETS + 1
        found = []
        for function, held in self._functions.of(tenant).items():
            name = function.partition("/")[2]
            by_status: Counter[str] = Counter()
            for minute, counts in held.minutes:
                if minute >= oldest:
                    by_status.update(counts)
            if by_status:
                invocations = by_status.total()
                found.append(
                    {
                        "name": name,
                        "invocations": invocations,
                        "errors": invocations - by_status[OK],
                        "by_status": dict(by_status),
                        "last_error": held.error,
                    }
                )
        return {"window_s": BUCKET_S * BUCKETS, "functions": sorted(found, key=lambda one: str(one["name"]))}

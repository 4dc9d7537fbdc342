"""Recent runs: the records of each trace, shown as a tree. Bounded; no I/O."""

from typing import Any

import msgspec

from graph.fairbook import FairBook
from tracing.records import InvocationRecord

RUNS = 2_000
RECORDS_PER_RUN = 2_000


class RunBook:
    """Records by trace; the newest RUNS traces, tenants sharing them fairly."""

    def __init__(self, runs: dict[str, list[InvocationRecord]] | None = None) -> None:
        self._runs: FairBook[str, list[InvocationRecord]] = FairBook(RUNS)
        self.cut = 0
        for trace_id, records in (runs or {}).items():
            if records:
                self._runs.put(records[0].tenant, trace_id, records)

    def add(self, record: InvocationRecord) -> list[InvocationRecord]:
        """Files a record; returns those of its trace so far."""
        records = self._runs.get(record.trace_id)
        if records is None:
            records = []
            self._runs.put(record.tenant, record.trace_id, records)
        if len(records) < RECORDS_PER_RUN:
            records.append(record)
        else:
            self.cut += 1
        return records

    def all(self) -> dict[str, list[InvocationRecord]]:
        return dict(self._runs.items())

    def records(self, trace_id: str) -> "list[InvocationRecord]":
        return self._runs.get(trace_id) or []

    def forget_tenant(self, tenant: str) -> None:
        self._runs.forget(tenant)

    def list(self, tenant: str, limit: int) -> list[dict[str, Any]]:
        """Finished runs, newest last."""
        found = []
        for trace_id, records in reversed(self._runs.of(tenant).items()):
            root = _root(records)
            if root is not None and root.tenant == tenant:
                found.append(_summary(trace_id, root, records))
                if len(found) >= limit:
                    break
        return found[::-1]

    def tree(self, tenant: str, trace_id: str) -> dict[str, Any] | None:
        """One run as a tree of invocations; None when it is not known, not finished, or not this tenant's."""
        records = self.records(trace_id)
        root = _root(records)
        if root is None or root.tenant != tenant:
            return None
        children: dict[str, list[InvocationRecord]] = {}
        for record in records:
            children.setdefault(record.parent_id, []).append(record)
        return {**_summary(trace_id, root, records), "root": _branch(root, children, root.sent_at)}


def _root(records: "list[InvocationRecord]") -> InvocationRecord | None:
    return next((one for one in records if not one.parent_id), None)


def _summary(trace_id: str, root: InvocationRecord, records: "list[InvocationRecord]") -> dict[str, Any]:
    starts: dict[str, int] = {}
    for record in records:
        starts[record.start] = starts.get(record.start, 0) + 1
    return {
        "trace_id": trace_id,
        "entry": root.function.partition("/")[2],
        "started_at": root.sent_at,
        "duration_ms": (root.ended_at - root.sent_at) * 1000,
        "status": root.status,
        "invocations": len(records),
        "starts": starts,
        "link": root.link,
    }


def _branch(
    record: InvocationRecord, children: dict[str, "list[InvocationRecord]"], began: float, depth: int = 0
) -> dict[str, Any]:
    below = sorted(children.get(record.invocation_id, ()), key=lambda one: one.sent_at) if depth < 64 else []
    return {
        "invocation_id": record.invocation_id,
        "function": record.function.partition("/")[2],
        "version": record.version,
        "start": record.start,
        "status": record.status,
        "error_type": record.error_type,
        "node": record.node,
        "offset_ms": (record.sent_at - began) * 1000,
        "duration_ms": (record.ended_at - record.sent_at) * 1000,
        "wait_ms": record.timings.start_ms,
        "timings_ms": msgspec.structs.asdict(record.timings),
        "decision_id": record.decision_id,
        "children": [_branch(one, children, began, depth + 1) for one in below],
    }

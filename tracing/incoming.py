"""Traces from spans as they come in: each waits for its others, for a while, and there is a bound on what waits."""

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping

import msgspec

from graph.calls import Trace
from graph.ids import TenantId
from tracing.invocations import assemble
from tracing.links import joined, leader_of
from tracing.spans import Span

SETTLED_AT_ONCE = 50
"""Traces `Assembler.settled` gives back in one call, about; the rest waits for the next."""

READY = 2_000
"""Traces finished before their time, to make room, that may wait for the next `settled`."""

LINKED = 64
"""Traces that may be linked to one, and that are looked at to tell when it is complete; what is beyond is by itself."""

_Key = tuple[TenantId, str]


class AssemblyBounds(msgspec.Struct, frozen=True):
    """`idle_s`: a trace whose root has come is complete when no span came for this long (exporters send every 5 s).

    `rootless_s`: the same without a root; shorter while there is no room. `age_s`: complete at this age, whatever still comes.
    `spans` and `finished` (ids of completed traces, to know late spans) are over all tenants, `spans_per_tenant` keeps one
    from crowding out others: 10,000 spans a second are about 100,000 that wait, with those of their exporters' delays. A span is
    about half a kilobyte.
    """

    idle_s: float = 6.0
    rootless_s: float = 60.0
    age_s: float = 600.0
    spans_per_trace: int = 10_000
    spans_per_tenant: int = 200_000
    spans: int = 400_000
    finished: int = 50_000


class _Incoming:
    """A trace that is still coming in."""

    __slots__ = ("follows", "rooted", "since", "spans", "touched")

    def __init__(self, now: float) -> None:
        self.since = self.touched = now
        self.rooted = False
        self.follows: _Key | None = None  # the trace its root is linked to
        self.spans: list[Span] = []


class Intake(msgspec.Struct):
    """What came of a tenant since the process started. `early`: traces without a root that were not waited for, to make room."""

    spans: int = 0
    traces: int = 0
    early: int = 0
    left_out: Counter[str] = msgspec.field(default_factory=Counter)


class Assembler:
    """Takes spans as they come and gives traces back. Does nothing by itself: `now` is in seconds of any one epoch.

    `names`: per tenant, observed function names to deployed ones, read when a trace completes. Spans left out are counted by
    reason: those of tracing.invocations.assemble, `late` (their trace was complete), `trace too long`, `too many spans`.
    When there is no room, the traces without a root of which nothing has come for longest are complete early.
    """

    def __init__(self, bounds: AssemblyBounds | None = None, names: Mapping[TenantId, Mapping[str, str]] | None = None) -> None:
        self.intakes: dict[TenantId, Intake] = {}
        self._gone = Intake()  # of tenants that were forgotten: the sums of this process never shrink
        self._bounds = bounds or AssemblyBounds()
        self._names: Mapping[TenantId, Mapping[str, str]] = {} if names is None else names
        self._incoming: dict[_Key, _Incoming] = {}
        self._rootless: dict[TenantId, OrderedDict[_Key, None]] = {}  # the one touched last at the end
        self._followers: dict[_Key, list[_Key]] = {}
        self._looks: list[tuple[float, _Key]] = []  # heap: when to look at a trace next, one entry each
        self._finished: OrderedDict[_Key, None] = OrderedDict()
        self._ready: deque[Trace] = deque()
        self._held: Counter[TenantId] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """Spans held."""
        return self._count

    @property
    def traces(self) -> int:
        """Traces that are not complete yet."""
        return len(self._incoming)

    @property
    def dropped(self) -> Counter[str]:
        """Spans left out by reason, of all tenants."""
        return sum((intake.left_out for intake in self.intakes.values()), self._gone.left_out.copy())

    @property
    def received(self) -> int:
        """Spans that came, of all tenants."""
        return sum(intake.spans for intake in self.intakes.values()) + self._gone.spans

    @property
    def early(self) -> int:
        """Traces that were not waited for, of all tenants."""
        return sum(intake.early for intake in self.intakes.values()) + self._gone.early

    def held(self, tenant: TenantId) -> int:
        """Spans of its traces that are not complete yet."""
        return self._held[tenant]

    def intake(self, tenant: TenantId) -> Intake:
        found = self.intakes.get(tenant)
        if found is None:
            found = self.intakes[tenant] = Intake()
        return found

    def add(self, tenant: TenantId, spans: Iterable[Span], now: float) -> int:
        """Takes spans in; returns how many were kept. The others are counted."""
        kept, came, taken = 0, 0, 0
        intake = self.intake(tenant)
        left_out, bounds = intake.left_out, self._bounds
        incoming, finished = self._incoming, self._finished
        rootless = self._rootless.setdefault(tenant, OrderedDict())
        room = self._room(tenant)
        for span in spans:
            came += 1
            key = (tenant, span.trace_id)
            trace = incoming.get(key)
            if trace is None:
                if key in finished:
                    left_out["late"] += 1
                    continue
            elif len(trace.spans) >= bounds.spans_per_trace:
                left_out["trace too long"] += 1
                continue
            if kept >= room:
                self._held[tenant] += kept
                self._count += kept
                kept, room = 0, self._make_room(tenant, now)
                trace = incoming.get(key)
                if not room:
                    left_out["too many spans"] += 1
                    continue
            if trace is None:
                trace = incoming[key] = _Incoming(now)
                rootless[key] = None
                heapq.heappush(self._looks, (now + min(bounds.idle_s, bounds.age_s), key))
            trace.spans.append(span)
            kept += 1
            taken += 1
            if not span.parent_id:
                self._rooted(key, trace, span, rootless)
            if trace.touched != now:
                trace.touched = now
                if not trace.rooted:
                    rootless.move_to_end(key)
        self._held[tenant] += kept
        self._count += kept
        intake.spans += came
        return taken

    def settled(self, now: float) -> list[Trace]:
        """The traces that are complete, in the order in which they became so. Late spans of them are dropped from here on.

        As long as it gives some back there may be more.
        """
        complete = [self._ready.popleft() for _ in range(min(len(self._ready), SETTLED_AT_ONCE))]
        looks, idle_s = self._looks, self._bounds.idle_s
        while looks and looks[0][0] <= now and len(complete) < SETTLED_AT_ONCE:
            key = heapq.heappop(looks)[1]
            trace = self._incoming.get(key)
            if trace is None:
                continue  # it went with another, or to make room
            due = self._due(key, trace)
            if due > now:
                heapq.heappush(looks, (min(due, now + idle_s), key))  # its root may come before
                continue
            complete += self._finish(key)
        return complete

    def forget_tenant(self, tenant: TenantId) -> None:
        """What is still coming in of it will be nobody's."""
        for key in [key for key in self._incoming if key[0] == tenant]:
            self._incoming[key].spans.clear()
        self._ready = deque(trace for trace in self._ready if trace.tenant != tenant)
        self._count -= self._held.pop(tenant, 0)
        self._rootless.pop(tenant, None)
        gone = self.intakes.pop(tenant, None)
        if gone is not None:
            self._gone.spans += gone.spans
            self._gone.traces += gone.traces
            self._gone.early += gone.early
            self._gone.left_out += gone.left_out

    # -- room

    def _room(self, tenant: TenantId) -> int:
        bounds = self._bounds
        return max(0, min(bounds.spans - self._count, bounds.spans_per_tenant - self._held[tenant]))

    def _make_room(self, tenant: TenantId, now: float) -> int:
        """Finishes the tenant's traces without a root that were idle for longest; those a root may be on its way to stay."""
        rootless = self._rootless[tenant]
        enough = self._bounds.spans_per_tenant // 100 + 1
        while rootless and self._room(tenant) < enough and len(self._ready) < READY:
            key = next(iter(rootless))
            if self._incoming[key].touched + self._bounds.idle_s > now:
                break
            self.intake(tenant).early += 1
            self._ready.extend(self._finish(key))
        return self._room(tenant)

    # -- completion

    def _rooted(self, key: _Key, trace: _Incoming, root: Span, rootless: OrderedDict[_Key, None]) -> None:
        if trace.rooted:
            return
        trace.rooted = True
        rootless.pop(key, None)
        linked = leader_of(root)
        leader = (key[0], linked)
        if linked and len(self._followers.get(leader, ())) < LINKED:
            trace.follows = leader
            self._followers.setdefault(leader, []).append(key)

    def _due(self, key: _Key, trace: _Incoming) -> float:
        """A trace and those whose roots are linked to it complete together."""
        due, seen, waiting = 0.0, {key}, [(key, trace)]
        while waiting:
            one, held = waiting.pop()
            idle = self._bounds.idle_s if held.rooted else self._bounds.rootless_s
            due = max(due, min(held.touched + idle, held.since + self._bounds.age_s))
            beside = [*self._followers.get(one, ())]
            if held.follows is not None:
                beside.append(held.follows)
            for other in beside:
                if len(seen) < LINKED and other not in seen and other in self._incoming:
                    seen.add(other)
                    waiting.append((other, self._incoming[other]))
        return min(due, trace.since + self._bounds.age_s)

    def _finish(self, key: _Key) -> list[Trace]:
        """Takes it out, and what is linked to it; several traces come of it when they were not one after all."""
        tenant = key[0]
        together: dict[str, list[Span]] = {}
        spans = 0
        waiting = [key]
        while waiting and (not together or spans < self._bounds.spans_per_trace):
            one = waiting.pop()
            held = self._incoming.pop(one, None)
            if held is None:
                continue
            together[one[1]] = held.spans
            spans += len(held.spans)
            if tenant in self._rootless:
                self._rootless[tenant].pop(one, None)
            self._finished[one] = None
            if len(self._finished) > self._bounds.finished:
                self._finished.popitem(last=False)
            waiting += self._followers.pop(one, ())
            if held.follows is not None:
                siblings = self._followers.get(held.follows)
                if siblings is not None:
                    siblings.remove(one)
                    if not siblings:
                        del self._followers[held.follows]
                waiting.append(held.follows)
        self._count -= spans
        self._held[tenant] -= spans
        if self._held[tenant] <= 0:
            del self._held[tenant]
        if not spans:
            return []
        intake = self.intake(tenant)
        names = self._names.get(tenant)
        traces: list[Trace] = []
        for heap in joined(together):
            trace, left_out = assemble(tenant, heap, names)
            intake.left_out += left_out
            if trace is not None:
                intake.traces += 1
                traces.append(trace)
        return traces

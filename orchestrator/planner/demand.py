"""How many requests each version has in flight, at its highest within the last seconds. Bounded; no I/O, `now` is passed in.

From two sides: records say how long requests took, which is exact on the mean of a second but late; inventories say how many
instances are busy right now, which knows the peaks but nothing of how many requests an instance serves. The larger counts.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tracing.records import InvocationRecord
from workers.rpc.messages import VersionCount

WINDOW_S = 10
VERSIONS = 20_000


@dataclass(slots=True)
class _Version:
    """By second: time that requests took in it, and the most instances that were busy at once. `busy`: by node, now."""

    took: dict[int, float] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    total: int = 0


class Demand:
    """Of the VERSIONS that did something last. `now` and the times of records are of one clock."""

    def __init__(self) -> None:
        self._versions: OrderedDict[str, _Version] = OrderedDict()

    def observe(self, records: Iterable[InvocationRecord]) -> None:
        for record in records:
            held = self._held(f"{record.function}:{record.version}")
            at, end = max(record.sent_at, record.ended_at - WINDOW_S), record.ended_at
            second = int(at)
            while second < end:
                held.took[second] = held.took.get(second, 0.0) + min(end, second + 1.0) - max(at, float(second))
                second += 1
            _trim(held.took)

    def counts(self, node: str, counts: Sequence[VersionCount], now: float) -> None:
        """What a node said of its instances."""
        second = int(now)
        for count in counts:
            known = self._versions.get(count.version)
            if known is None and not count.busy:
                continue
            held = known if known is not None else self._held(count.version)
            held.total += count.busy - held.busy.get(node, 0)
            if count.busy:
                held.busy[node] = count.busy
            else:
                held.busy.pop(node, None)
            if held.total > held.peaks.get(second, 0):
                held.peaks[second] = held.total
                _trim(held.peaks)

    def gone(self, node: str) -> None:
        """A node is not heard of any more."""
        for held in self._versions.values():
            held.total -= held.busy.pop(node, 0)

    def concurrency(self, version: str, now: float) -> float:
        """Requests in flight, at the highest of the last WINDOW_S."""
        held = self._versions.get(version)
        if held is None:
            return 0.0
        oldest = int(now) - WINDOW_S
        took = max((seconds for second, seconds in held.took.items() if second >= oldest), default=0.0)
        peak = max((count for second, count in held.peaks.items() if second >= oldest), default=0)
        return max(took, float(peak), float(held.total))

    def _held(self, version: str) -> _Version:
        held = self._versions.get(version)
        if held is None:
            held = self._versions[version] = _Version()
            if len(self._versions) > VERSIONS:
                self._versions.popitem(last=False)
        self._versions.move_to_end(version)
        return held


def _trim(by_second: dict[int, float] | dict[int, int]) -> None:
    if len(by_second) > 2 * WINDOW_S:
        newest = max(by_second)
        for second in [one for one in by_second if one < newest - WINDOW_S]:
            del by_second[second]

"""What gateways tell of demand: how many invocations of each version wait and run. Bounded; no I/O, `now` is monotonic and
passed in.

Each gateway tells its last second. What it told last counts for HEARD_S, so that one whose word is late does not look like one
without traffic.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from graph.ids import VersionId, function_of
from orchestrator.planner.peers import GatewayPeer
from orchestrator.scaling.terms import Observed
from workers.rpc.messages import Demand

HEARD_S = 3.0
"""What a gateway told last counts for so long."""

COOLED_S = 2.5
WINDOW_S = 10.0
FRESH = 3
"""Of a gateway so many seconds are kept between two ticks."""


class _Gateway:
    """What it told since the last tick, and before."""

    __slots__ = ("at", "fresh", "last")

    def __init__(self) -> None:
        self.at = 0.0
        self.fresh: list[Demand] = []
        self.last: Demand | None = None


class Heard:
    """Demand of all gateways together, from one `take` to the next."""

    def __init__(self) -> None:
        self._gateways: dict[GatewayPeer, _Gateway] = {}
        self._cooled: dict[str, float] = {}
        self._peaks: deque[tuple[float, dict[str, float]]] = deque()  # the most at once by version, of each time it was taken

    def told(self, gateway: GatewayPeer, message: Demand, now: float) -> None:
        heard = self._gateways.setdefault(gateway, _Gateway())
        heard.at = now
        heard.fresh.append(message)
        del heard.fresh[:-FRESH]

    @property
    def anything(self) -> bool:
        """Some gateway that is there has told what traffic there is."""
        return bool(self._gateways)

    def cool(self, functions: Iterable[str], now: float) -> None:
        """What gateways tell of these in the next moment is of the time before, and counts for nothing."""
        for function in functions:
            self._cooled[function] = now + COOLED_S

    def whole(self) -> bool:
        """Every gateway has told its last second; those that are gone are forgotten."""
        for gateway in [one for one in self._gateways if one.connection is None]:
            del self._gateways[gateway]
        return bool(self._gateways) and all(one.fresh for one in self._gateways.values())

    def take(self, now: float, ready: Mapping[str, int], tick_s: float) -> dict[str, Observed]:
        """Since the last time, of versions with traffic or instances. `ready`: instances idle or busy, by version."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
        for heard in self._gateways.values():
            if now - heard.at > HEARD_S:
                continue
            fresh, heard.fresh = heard.fresh, []
            told = fresh or ([heard.last] if heard.last is not None else [])
            seconds = sum(one.tick_s for one in told)
            peaks: dict[str, int] = {}
            for message in told:
                for one in message.versions:
                    into = sums[one.version]
                    into[0] += one.concurrency * message.tick_s / seconds
                    peaks[one.version] = max(peaks.get(one.version, 0), one.peak)
                    if fresh:  # as many as in the length of a tick, however many seconds were waiting here
                        into[2] += one.arrivals * tick_s / seconds
                        into[3] += one.roots * tick_s / seconds
            for version, peak in peaks.items():
                sums[version][1] += peak
            heard.last = told[-1] if told else None
        self._peaks.append((now, {version: one[1] for version, one in sums.items()}))
        while self._peaks[0][0] <= now - WINDOW_S:
            self._peaks.popleft()
        self._cooled = {function: until for function, until in self._cooled.items() if until > now}
        for version in ready:
            sums.setdefault(version, [0.0, 0.0, 0.0, 0.0])  # what is there is seen without traffic, too
        return {
            version: Observed(area, round(peak), round(arrivals), round(roots), ready.get(version, 0), tick_s)
            for version, (area, peak, arrivals, roots) in sums.items()
            if function_of(VersionId(version)) not in self._cooled
        }

    def concurrency(self, version: str, now: float) -> float:
        """Invocations that waited and ran at once, at the most of the last WINDOW_S."""
        told = sum(
            max((one.peak for message in heard.fresh for one in message.versions if one.version == version), default=0)
            for heard in self._gateways.values()
        )
        return max(told, *(peaks.get(version, 0.0) for at, peaks in self._peaks if at > now - WINDOW_S), 0.0)

    def unheard(self, gateways: Iterable[GatewayPeer]) -> bool:
        """One of these is connected and has told nothing yet, or there is none: what traffic there is is not known."""
        connected = [one for one in gateways if one.connection is not None]
        return not connected or any(one not in self._gateways for one in connected)

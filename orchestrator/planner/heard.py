"""What gateways tell of demand: how many invocations of each version wait and run. Bounded; no I/O, `now` is monotonic and
passed in.

Each gateway tells its last second. What it told last counts for HEARD_S, so that one whose word is late does not look like one
without traffic.
"""

from collections import deque
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

NONE = (0.0, 0.0, 0.0)


class _Gateway:
    """What it told since the last tick, and before."""

    __slots__ = ("at", "fresh", "last", "peer")

    def __init__(self, peer: GatewayPeer) -> None:
        self.peer = peer
        self.at = 0.0
        self.fresh: list[Demand] = []
        self.last: Demand | None = None


class Heard:
    """Demand of all gateways together, from one `take` to the next."""

    def __init__(self) -> None:
        self._gateways: dict[object, _Gateway] = {}  # by who they are
        self._cooled: dict[str, float] = {}
        self._called: dict[str, float] = {}  # by version: when last; those of the last HEARD_S, once a tick
        self._peaks: deque[tuple[float, dict[str, int]]] = deque()  # the most at once by version, of each time it was taken

    def told(self, gateway: GatewayPeer, message: Demand, now: float) -> None:
        """Where two connections lead to one gateway, the same seconds are told twice: they are averaged, not added."""
        heard = self._gateways.setdefault(gateway.who, _Gateway(gateway))
        heard.peer = gateway
        heard.at = now
        heard.fresh.append(message)
        del heard.fresh[:-FRESH]

    def called(self, version: str, now: float) -> None:
        """An invocation of it is about to be sent, which gateways say at once."""
        self._called[version] = now

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
        for who in [who for who, one in self._gateways.items() if one.peer.connection is None]:
            del self._gateways[who]
        return bool(self._gateways) and all(one.fresh for one in self._gateways.values())

    def take(self, now: float, ready: Mapping[str, int], tick_s: float, remembered: Iterable[str] = ()) -> dict[str, Observed]:
        """Since the last time, of versions with traffic. `ready`: instances idle or busy, by version. `remembered`: these are
        seen without traffic, too, where there are instances."""
        sums: dict[str, tuple[float, float, float]] = {}  # tuples: unlike lists, the collector soon leaves them alone
        peaks: dict[str, int] = {}
        for heard in self._gateways.values():
            if now - heard.at > HEARD_S:
                continue
            fresh, heard.fresh = heard.fresh, []
            told = fresh or ([heard.last] if heard.last is not None else [])
            seconds = sum(one.tick_s for one in told)
            most: dict[str, int] = {}
            for message in told:
                part = message.tick_s / seconds
                arrived = tick_s / seconds if fresh else 0.0  # as many as in a tick, however many seconds were waiting here
                for one in message.versions:
                    version, peak = one.version, one.peak
                    area, arrivals, roots = sums.get(version, NONE)
                    sums[version] = (
                        area + one.concurrency * part,
                        arrivals + one.arrivals * arrived,
                        roots + one.roots * arrived,
                    )
                    if peak > most.get(version, -1):
                        most[version] = peak
            if not peaks:
                peaks = most
            else:
                for version, peak in most.items():
                    peaks[version] = peaks.get(version, 0) + peak
            heard.last = told[-1] if told else None
        self._called = {version: at for version, at in self._called.items() if now - at < HEARD_S}
        self._peaks.append((now, peaks))
        while self._peaks[0][0] <= now - WINDOW_S:
            self._peaks.popleft()
        found = {
            version: Observed(area, peaks[version], round(arrivals), round(roots), ready.get(version, 0), tick_s)
            for version, (area, arrivals, roots) in sums.items()
        }
        for version in remembered:
            if version not in found and version in ready:
                found[version] = Observed(ready=ready[version], tick_s=tick_s)
        self._cooled = {function: until for function, until in self._cooled.items() if until > now}
        if not self._cooled:
            return found
        return {version: one for version, one in found.items() if function_of(VersionId(version)) not in self._cooled}

    def concurrency(self, version: str, now: float) -> float:
        """Invocations that waited and ran at once, at the most of the last WINDOW_S."""
        told = sum(
            max((one.peak for message in heard.fresh for one in message.versions if one.version == version), default=0)
            for heard in self._gateways.values()
        )
        return max(told, *(peaks.get(version, 0) for at, peaks in self._peaks if at > now - WINDOW_S), 0)

    def untold(self, version: str, now: float) -> bool:
        """It is being called, and how many at once no gateway has told yet: its traffic has just begun, or gateways are late."""
        return version in self._called and now - self._called[version] < HEARD_S and not self.concurrency(version, now)

    def unheard(self, gateways: Iterable[GatewayPeer]) -> bool:
        """One of these is connected and has told nothing yet, or there is none: what traffic there is is not known."""
        connected = [one for one in gateways if one.connection is not None]
        return not connected or any(one.who not in self._gateways for one in connected)

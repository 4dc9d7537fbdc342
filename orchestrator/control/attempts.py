"""How much of the join listener each may use: strangers by where they come from, members by their name, and both apart, so that
nobody who has no certificate can keep one who has waiting. Pure: `now` is monotonic."""

import ipaddress
from collections import OrderedDict, deque

import msgspec

WINDOW_S = 1.0
KEPT = 4096  # names or sources remembered; each is forgotten after a second


class Limits(msgspec.Struct, frozen=True):
    """In a second, and open at the same time; of all together, and of each."""

    per_second: int
    at_once: int
    each_per_second: int
    each_at_once: int


STRANGERS = Limits(per_second=80, at_once=64, each_per_second=20, each_at_once=16)  # a token has 256 bits: this bounds the work
MEMBERS = Limits(per_second=200, at_once=64, each_per_second=10, each_at_once=4)


class _Use:
    def __init__(self, most: int) -> None:
        self.tries: deque[float] = deque(maxlen=most)
        self.open = 0

    def full(self, now: float, at_once: int) -> bool:
        recent = len(self.tries) == self.tries.maxlen and now - self.tries[0] < WINDOW_S
        return recent or self.open >= at_once

    def begin(self, now: float) -> None:
        self.tries.append(now)
        self.open += 1

    def idle(self, now: float) -> bool:
        return self.open == 0 and (not self.tries or now - self.tries[-1] >= WINDOW_S)


class Attempts:
    """Of one kind of callers. Whoever `enter` lets in must `leave`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all = _Use(limits.per_second)
        self._each: OrderedDict[str, _Use] = OrderedDict()  # who tried last is last

    def __len__(self) -> int:
        return len(self._each)

    def enter(self, who: str, now: float) -> bool:
        """False: not now. What is refused counts for nobody."""
        self._forget(now)
        use = self._each.get(who) or _Use(self._limits.each_per_second)
        known = who in self._each or len(self._each) < KEPT
        if not known or self._all.full(now, self._limits.at_once) or use.full(now, self._limits.each_at_once):
            return False
        for one in (self._all, use):
            one.begin(now)
        self._each[who] = use
        self._each.move_to_end(who)
        return True

    def leave(self, who: str) -> None:
        self._all.open -= 1
        self._each[who].open -= 1

    def _forget(self, now: float) -> None:
        """One that is still open is kept, and those behind it until it has gone: connections are bounded in time."""
        while self._each:
            who, use = next(iter(self._each.items()))
            if not use.idle(now):
                return
            del self._each[who]


def source(host: str) -> str:
    """What counts as one stranger: an address, of IPv6 the network that one host is given whole."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)

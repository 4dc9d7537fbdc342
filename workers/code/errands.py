"""Layers that are on their way at once, and which gives way: what comes ahead of need does, to what somebody waits for."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workers.code.origin import OriginError

if TYPE_CHECKING:
    from workers.code.fetching import Carried

LAYER_S = 300.0
YIELD_S = 0.25
"""What is brought ahead of need moves on by a chunk in this time even while others are being waited for."""


class Ended(OriginError):
    """The errand was given up: nobody is to have the layer any more."""


class Errand:
    """One layer on its way. `urgent`: somebody waits for it now. `rank`: the farthest source that something came from. `carried`:
    the fetcher's, a parcel that has begun to come and was not read yet."""

    def __init__(self, tenant: str, digest: str, urgent: bool) -> None:
        self.tenant = tenant
        self.digest = digest
        self.urgent = urgent
        self.ended = False
        self.rank = 0
        self.carried: Carried | None = None
        self.deadline = time.monotonic() + LAYER_S

    def check(self) -> None:
        """Raises OriginError when it was given up (Ended), or takes too long."""
        if self.ended:
            raise Ended("given up: nobody may have it any more")
        if time.monotonic() > self.deadline:
            raise OriginError(f"not whole within {LAYER_S:g} s")


class Errands:
    """Those of one node. May be used from any thread; what blocks says so."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._under_way: Counter[Errand] = Counter()  # questions
        self._last_urgent = 0.0  # when somebody last waited, by the monotonic clock
        self._closed = False

    def hurry(self, errand: Errand) -> None:
        """Somebody waits for it now; the time that it took before does not count."""
        with self._state:
            if not errand.urgent:
                errand.urgent, errand.deadline = True, time.monotonic() + LAYER_S
            self._state.notify_all()

    def end(self, errand: Errand) -> None:
        """It is given up at its next chunk."""
        with self._state:
            errand.ended = True
            self._state.notify_all()

    @contextmanager
    def under_way(self, errand: Errand) -> Iterator[None]:
        """While this holds, what nobody waits for gives way to the errand, if somebody waits for that. Can be nested."""
        with self._state:
            self._under_way[errand] += 1
        try:
            yield
        finally:
            with self._state:
                if errand.urgent:
                    self._last_urgent = time.monotonic()
                self._under_way[errand] -= 1
                if not self._under_way[errand]:
                    del self._under_way[errand]
                self._state.notify_all()

    def give_way(self, errand: Errand) -> None:
        """Blocks until nobody waits for anything else, for YIELD_S at most; not at all when somebody waits for this one."""
        if errand.urgent:
            return
        with self._state:
            self._state.wait_for(lambda: errand.urgent or errand.ended or not self._waited_for(), YIELD_S)

    def quiet(self, for_s: float, at_most_s: float) -> None:
        """Blocks until nobody has waited for anything for `for_s`, for `at_most_s` at most."""
        deadline = time.monotonic() + at_most_s
        with self._state:
            while not self._closed and (now := time.monotonic()) < deadline:
                left = for_s if self._waited_for() else self._last_urgent + for_s - now
                if left <= 0:
                    return
                self._state.wait(min(left, deadline - now))

    def close(self) -> None:
        """Nobody is kept waiting by `quiet` any more."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _waited_for(self) -> bool:
        return any(one.urgent for one in self._under_way)

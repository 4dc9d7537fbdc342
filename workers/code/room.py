"""What tier 1 holds, in bytes, and what must go for more: bounds, quotas, pins. No disk here: its maker is told what goes."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec
import structlog

from workers.code.eviction import Gdsf, refetch_cost
from workers.code.shelf import Key
from workers.ports import CodeUnavailable

REASONS = ("quota", "bound", "disk")
"""Why layers go to make room."""

log = structlog.get_logger(__name__)


class Bounds(msgspec.Struct, frozen=True):
    """Bytes on the disk, in whole blocks: of all tenants together, and of one. `total` gives way to what requests need now while
    all that could go is pinned; `tenant` does not."""

    total: int = 10 << 30
    tenant: int = 5 << 30


class NoRoom(CodeUnavailable):
    """A quota, a bound or the disk; the message says which, and the way out."""


class Room:
    """`evicted(key, bytes, why)` is called for each layer that goes to make room: why is one of REASONS."""

    def __init__(self, bounds: Bounds, evicted: Callable[[Key, int, str], None]) -> None:
        self._bounds = bounds
        self._evicted = evicted
        self._books: Gdsf[Key] = Gdsf()
        self._pins: Counter[Key] = Counter()
        self._of_tenant: Counter[str] = Counter()  # bytes held, and on their way
        self._coming = 0  # bytes on their way

    def __len__(self) -> int:
        return len(self._books)

    @property
    def bytes_held(self) -> int:
        return self._books.size

    def bytes_of(self, tenant: str) -> int:
        """Held, and on their way."""
        return self._of_tenant[tenant]

    def keys_of(self, tenant: str) -> list[Key]:
        return [key for key in self._books if key[0] == tenant]

    def pin(self, keys: Iterable[Key]) -> None:
        self._pins.update(keys)

    def unpin(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._pins[key] -= 1
            if self._pins[key] <= 0:
                del self._pins[key]

    def keep(self, key: Key, size: int) -> None:
        """It is here now."""
        self._books.add(key, size, refetch_cost(size))
        self._of_tenant[key[0]] += size

    def use(self, key: Key) -> None:
        self._books.use(key)

    def drop(self, key: Key) -> None:
        """It is here no more, for another reason than room."""
        self._take(key[0], self._books.remove(key))

    @contextlib.contextmanager
    def reserved(self, key: Key, size: int, urgent: bool) -> Iterator[None]:
        """`size` bytes count as taken while the layer is on its way. What is `urgent` makes others go; what comes ahead of need
        only what is worth less than itself, and nothing for a quota. Raises NoRoom."""
        self._within_quota(key, size, urgent)
        self._within_bound(size, urgent)
        self._of_tenant[key[0]] += size
        self._coming += size
        try:
            yield
        finally:
            self._coming -= size
            self._take(key[0], size)

    def free(self, size: int) -> int:
        """The disk is full: as much as possible of `size` goes. Returns what went."""
        return self._evict(max(size, 1), "disk")

    def _within_quota(self, key: Key, size: int, urgent: bool) -> None:
        tenant, quota = key[0], self._bounds.tenant
        over = self._of_tenant[tenant] + size - quota
        if over <= 0:
            return
        if not urgent or size > quota or not self._evict(over, "quota", lambda one: one[0] == tenant, all_or_none=True):
            raise NoRoom(
                f"{mib(size)} more would be over the {mib(quota)} of code that a tenant may have on this node "
                f"(FOREGLOW_NODE_CODE_TENANT_BYTES): {mib(self._of_tenant[tenant])} are there"
                + (", all of it in use" if urgent else "")
            )

    def _within_bound(self, size: int, urgent: bool) -> None:
        over = self._books.size + self._coming + size - self._bounds.total
        if over <= 0:
            return
        if urgent:
            if self._evict(over, "bound") < over:
                log.warning("tier1.over_bound", held=self._books.size, bound=self._bounds.total, more=size)
        elif not self._evict(over, "bound", below=self._books.fresh(size, refetch_cost(size)), all_or_none=True):
            raise NoRoom(f"{mib(size)} more would be over the node's bound (FOREGLOW_NODE_CODE_BYTES), and nothing is worth less")

    def _evict(
        self,
        excess: int,
        why: str,
        also: Callable[[Key], bool] = lambda key: True,
        below: float = float("inf"),
        all_or_none: bool = False,
    ) -> int:
        freed = 0
        for key, size in self._books.victims(excess, lambda one: not self._pins[one] and also(one), below, all_or_none):
            freed += size
            self._take(key[0], size)
            self._evicted(key, size, why)
        return freed

    def _take(self, tenant: str, size: int) -> None:
        self._of_tenant[tenant] -= size
        if self._of_tenant[tenant] <= 0:
            del self._of_tenant[tenant]


def mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"

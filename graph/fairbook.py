"""A bounded book that tenants share: when it is full, who has most in it gives up its oldest. Pure."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class FairBook(Generic[Key, Value]):
    """At most `most` values, each of one tenant, by keys that no two tenants have in common.

    So a tenant with no more than its equal part (`most` by the number of tenants) never loses any to the others, however much
    they write; and while there is room, anybody may have all of it.
    """

    def __init__(self, most: int) -> None:
        """Raises ValueError for a `most` below 1."""
        if most < 1:
            raise ValueError(f"most: {most} is not at least 1")
        self._most = most
        self._tenants: dict[str, OrderedDict[Key, Value]] = {}
        self._owner: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def __contains__(self, key: Key) -> bool:
        return key in self._owner

    def get(self, key: Key) -> Value | None:
        owner = self._owner.get(key)
        return None if owner is None else self._tenants[owner][key]

    def put(self, tenant: str, key: Key, value: Value) -> tuple[Key, Value] | None:
        """The tenant's newest from now on; what had to go for it, if anything. Raises ValueError when the key is another's."""
        if self._owner.setdefault(key, tenant) != tenant:
            raise ValueError(f"{key!r} is of another tenant")
        held = self._tenants.setdefault(tenant, OrderedDict())
        held[key] = value
        held.move_to_end(key)
        if len(self._owner) <= self._most:
            return None
        largest = max(self._tenants, key=lambda one: len(self._tenants[one]))
        oldest = next(iter(self._tenants[largest]))
        gone = self.pop(oldest)
        return None if gone is None else (oldest, gone)

    def pop(self, key: Key) -> Value | None:
        tenant = self._owner.pop(key, None)
        if tenant is None:
            return None
        value = self._tenants[tenant].pop(key)
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        return value

    def of(self, tenant: str) -> "OrderedDict[Key, Value]":
        """The tenant's, oldest first. To be read only."""
        return self._tenants.get(tenant, OrderedDict())

    def forget(self, tenant: str) -> None:
        for key in self._tenants.pop(tenant, ()):
            del self._owner[key]

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Everybody's, each tenant's oldest first."""
        for held in self._tenants.values():
            yield from held.items()

    def values(self) -> Iterator[Value]:
        for held in self._tenants.values():
            yield from held.values()

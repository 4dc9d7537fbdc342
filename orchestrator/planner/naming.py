"""Names: which deployed functions stand for functions known from traces of elsewhere. Per tenant, by its people."""

from collections.abc import Mapping

from graph.ids import TenantId

MOST = 10_000
"""Names of a tenant."""


class TooManyNames(Exception):
    """The tenant has as many as it may."""


class Names:
    """`of` is what an Assembler reads. `revision` grows with each change."""

    def __init__(self, of: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.of: dict[TenantId, dict[str, str]] = {TenantId(tenant): dict(names) for tenant, names in (of or {}).items()}
        self.revision = 0

    def change(self, tenant: TenantId, names: Mapping[str, str | None]) -> None:
        """Sets some; None takes one away. It counts for traces that complete from now on. Raises TooManyNames."""
        held = {**self.of.get(tenant, {}), **names}
        kept = {observed: name for observed, name in held.items() if name is not None}
        if len(kept) > MOST:
            raise TooManyNames(f"{len(kept)} names, the limit is {MOST}; take some away first")
        self.revision += 1
        if kept:
            self.of[tenant] = kept
        else:
            self.of.pop(tenant, None)

    def forget_tenant(self, tenant: TenantId) -> None:
        if self.of.pop(tenant, None) is not None:
            self.revision += 1

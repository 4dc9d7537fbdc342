"""Tells nodes which tenants they host, with the tenant's current versions, the most called first: their code is then at hand
before a function's first call.

A tenant is hosted where one of its instances was seen, and where a plan or the next request would go while it is nowhere yet.
It stays so while this planner lives: what a node has no room for, the node lets go.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from graph.ids import FunctionId, TenantId, VersionId, tenant_of
from orchestrator.planner.peers import Fleet, NodePeer
from workers.rpc.messages import VersionCount
from workers.versions import VersionSpec


class Calls(Protocol):
    def __call__(self) -> Counter[str]:
        """Calls of the last minutes by FunctionId."""


class Homes:
    """`current(function)`: its serving version's spec. `right(tenant)`: by what lease and epoch orders for it go out, None while
    another planner decides for it. `choose(spec)`: the node for a tenant that has none yet. What changes is told in the next turn
    of the loop, all of it at once."""

    def __init__(
        self,
        fleet: Fleet,
        current: Callable[[FunctionId], VersionSpec | None],
        right: Callable[[str], tuple[str, int] | None],
        calls: Calls,
        choose: Callable[[VersionSpec], NodePeer | None],
    ) -> None:
        self._choose = choose
        self._fleet = fleet
        self._current = current
        self._right = right
        self._calls = calls
        self._functions: dict[TenantId, set[FunctionId]] = {}
        self._homes: dict[TenantId, set[str]] = {}  # names of nodes
        self._changed: set[TenantId] = set()
        self._told: dict[str, dict[TenantId, tuple[str, ...]]] = {}  # by node: the versions it has heard of

    def function_changed(self, function: FunctionId, exists: bool) -> None:
        tenant = tenant_of(function)
        if exists:
            self._functions.setdefault(tenant, set()).add(function)
        else:
            self._functions.get(tenant, set()).discard(function)
        self._change([tenant])

    def node_came(self, node: NodePeer) -> None:
        """It knows nothing of what was told before."""
        self._told.pop(node.name, None)
        self._change(self._functions)

    def seen(self, node: NodePeer, counts: Iterable[VersionCount]) -> None:
        """Instances are there."""
        name = node.name
        for count in counts:
            tenant = tenant_of(VersionId(count.version))
            if name not in self._homes.get(tenant, ()) and count.idle + count.busy + count.preparing > 0:
                self._homes.setdefault(tenant, set()).add(name)
                self._change([tenant])

    def took_over(self) -> None:
        """Orders may go out for more tenants than before."""
        self._told.clear()
        self._change(self._functions)

    def forget(self, tenant: TenantId) -> None:
        self._functions.pop(tenant, None)
        self._homes.pop(tenant, None)
        self._changed.discard(tenant)
        for told in self._told.values():
            told.pop(tenant, None)

    def _change(self, tenants: Iterable[TenantId]) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_soon(self.tell)
        self._changed.update(tenants)

    def tell(self) -> None:
        """Tells each home of each changed tenant, once for the same versions."""
        changed, self._changed = self._changed, set()
        nodes = self._fleet.up()
        if not nodes:
            return
        calls = self._calls()
        for tenant in changed:
            right = self._right(tenant)
            if right is None:
                continue
            ordered = sorted(self._functions.get(tenant, ()), key=lambda one: (-calls[one], one))
            specs = [spec for function in ordered if (spec := self._current(function)) is not None]
            for node in self._of(tenant, specs, nodes):
                versions = tuple(spec.version for spec in specs)
                told = self._told.setdefault(node.name, {})
                if versions and set(told.get(tenant, ())) != set(versions):
                    told[tenant] = versions
                    node.host(tenant, specs, *right)

    def _of(self, tenant: TenantId, specs: Sequence[VersionSpec], nodes: Sequence[NodePeer]) -> list[NodePeer]:
        homes = self._homes.get(tenant, set())
        found = [node for node in nodes if node.name in homes and node.hosts(tenant)]
        if not found and specs and (first := self._choose(specs[0])) is not None:
            self._homes.setdefault(tenant, set()).add(first.name)
            found = [first]
        return found

"""Two backends as one plane: each Vpc is reached by the better one where that is ready, by the other until then.

A kernel tunnel needs a proxy that speaks its part, in a network that carries it; where either is missing, the portable one is the
way. A sandbox that the other one wired stays with it, for its packets are diverted; what the better one wired is dead until that
attaches it, and in nobody's way.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Sequence

from workers.networks import TunnelState, VpcSpec
from workers.ports import Attachment, NetworkUnavailable, SandboxNetwork, TunnelPlane

REMEMBERED = 4096
"""Sandboxes that were wired ahead."""

LOOK_S = 0.05


class BothPlanes:
    """Implements workers.ports.TunnelPlane over two that were started, the better one first."""

    carries_internet = True

    def __init__(self, better: TunnelPlane, other: TunnelPlane) -> None:
        self._planes = (better, other)
        self._wired: OrderedDict[tuple[int, int], TunnelPlane] = OrderedDict()
        self.backend = better.backend
        self.reason = better.reason

    async def start(self) -> None:
        """Both were."""

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        for plane in self._planes:
            await plane.use(vpcs)

    async def opened(self, vpc: str, timeout_s: float) -> TunnelState:
        end = asyncio.get_running_loop().time() + timeout_s
        while True:
            state = self.state(vpc)
            if state is not None and state.ready:
                return state
            if asyncio.get_running_loop().time() >= end:
                why = state.reason if state is not None else "this node was not told of that Vpc"
                raise NetworkUnavailable(f"{vpc}: {why}; waited {timeout_s:g} s")
            await asyncio.sleep(LOOK_S)

    def states(self) -> Sequence[TunnelState]:
        better, other = ({state.vpc: state for state in plane.states()} for plane in self._planes)
        together = (_both(better.get(vpc), other.get(vpc)) for vpc in sorted({*better, *other}))
        return [state for state in together if state is not None]

    def state(self, vpc: str) -> TunnelState | None:
        return _both(*(plane.state(vpc) for plane in self._planes))

    async def wire(self, network: SandboxNetwork) -> None:
        """By the backend that carries all there is; while that is not one, the sandbox is wired when it is attached."""
        better, other = ({state.vpc: state.ready for state in plane.states()} for plane in self._planes)
        carries = {0 if better.get(vpc) else 1 if other.get(vpc) else None for vpc in {*better, *other}}
        if len(carries) == 1 and (place := next(iter(carries))) is not None:
            plane = self._planes[place]
            await plane.wire(network)
            self._remember(network, plane)

    async def attach(self, vpc: str, egress: str, network: SandboxNetwork) -> Attachment:
        better, other = self._planes
        wired = self._wired.pop(_key(network), None)
        plane = other if wired is other else self._way(vpc) or better
        return await plane.attach(vpc, egress, network)

    async def stop(self) -> None:
        for plane in self._planes:
            await plane.stop()

    def _way(self, vpc: str) -> TunnelPlane | None:
        """The first whose tunnel is ready; out to the Internet alone, the other: it needs no proxy for that."""
        if not vpc:
            return self._planes[1]
        return next((plane for plane in self._planes if (state := plane.state(vpc)) is not None and state.ready), None)

    def _remember(self, network: SandboxNetwork, plane: TunnelPlane) -> None:
        self._wired[_key(network)] = plane
        if len(self._wired) > REMEMBERED:
            self._wired.popitem(last=False)


def _both(first: TunnelState | None, second: TunnelState | None) -> TunnelState | None:
    """A Vpc's tunnel, of the better one and of the other."""
    if first is None or second is None:
        return first or second
    chosen = first if first.ready or not second.ready else second
    reason = chosen.reason
    if chosen is second or not chosen.ready:
        unused = first if chosen is second else second
        reason = f"{chosen.reason}; not {unused.backend or 'the other'}: {unused.reason}"
    backend = chosen.backend if chosen.ready else ""
    return TunnelState(chosen.vpc, chosen.generation, chosen.ready, reason, backend, first.attached + second.attached)


def _key(network: SandboxNetwork) -> tuple[int, int]:
    """Of the namespace itself, whatever descriptor it is shown by."""
    held = os.fstat(network.namespace)
    return held.st_dev, held.st_ino

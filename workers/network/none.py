"""A node without tunnels: it says why, and attaches nothing."""

from collections.abc import Sequence

from workers.networks import TunnelState, VpcSpec
from workers.ports import Attachment, NetworkUnavailable, SandboxNetwork


class NoPlane:
    """Implements workers.ports.TunnelPlane."""

    backend = "none"
    carries_internet = False

    def __init__(self, reason: str = "this node was started without tunnels") -> None:
        self.reason = reason
        self._vpcs: Sequence[VpcSpec] = ()

    async def start(self) -> None:
        """Nothing is here to be swept."""

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        self._vpcs = vpcs

    async def opened(self, vpc: str, timeout_s: float) -> TunnelState:
        raise NetworkUnavailable(f"{vpc}: {self.reason}")

    def states(self) -> Sequence[TunnelState]:
        return [TunnelState(one.vpc, one.generation, False, self.reason, self.backend) for one in self._vpcs]

    def state(self, vpc: str) -> TunnelState | None:
        return next((one for one in self.states() if one.vpc == vpc), None)

    async def wire(self, network: SandboxNetwork) -> None:
        raise NetworkUnavailable(self.reason)

    async def attach(self, vpc: str, egress: str, network: SandboxNetwork) -> Attachment:
        raise NetworkUnavailable(f"{vpc or 'the Internet'}: {self.reason}")

    async def stop(self) -> None:
        """Nothing is left."""

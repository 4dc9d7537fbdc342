"""A node's tunnels in memory, for what a test must control: which are ready, what attaching takes, how it fails."""

from collections.abc import Sequence

from doubles.sandboxes import Valve

from workers.networks import TunnelState, VpcSpec
from workers.ports import NetworkUnavailable, SandboxNetwork


class DoubleAttachment:
    """What was attached, until it is detached."""

    def __init__(self, vpc: str, egress: str, network: SandboxNetwork) -> None:
        self.vpc, self.egress, self.network = vpc, egress, network
        self.detached = 0

    def detach(self) -> None:
        self.detached += 1


class DoublePlane:
    """Opens at once what it is told to, but for what is in `closed`; keeps all it was asked."""

    backend = "double"
    reason = ""
    carries_internet = True

    def __init__(self) -> None:
        self.told: list[VpcSpec] = []
        self.uses = 0
        self.listed = self.looked = 0
        self.closed: dict[str, str] = {}
        self.wired: list[SandboxNetwork] = []
        self.attached: list[DoubleAttachment] = []
        self.attach_turn = Valve()
        self.error: NetworkUnavailable | None = None
        self.stopped = False

    async def start(self) -> None: ...

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        self.told, self.uses = list(vpcs), self.uses + 1

    async def opened(self, vpc: str, timeout_s: float) -> TunnelState:
        state = self.state(vpc)
        if state is None or not state.ready:
            raise NetworkUnavailable(f"{vpc}: {state.reason if state is not None else 'this node was not told of it'}")
        return state

    def states(self) -> Sequence[TunnelState]:
        self.listed += 1
        return self._states()

    def _states(self) -> list[TunnelState]:
        return [
            TunnelState(
                one.vpc,
                one.generation,
                one.vpc not in self.closed,
                self.closed.get(one.vpc, "by the double"),
                self.backend,
                sum(1 for each in self.attached if each.vpc == one.vpc and not each.detached),
            )
            for one in self.told
        ]

    def state(self, vpc: str) -> TunnelState | None:
        self.looked += 1
        return next((one for one in self._states() if one.vpc == vpc), None)

    async def wire(self, network: SandboxNetwork) -> None:
        self.wired.append(network)

    async def attach(self, vpc: str, egress: str, network: SandboxNetwork) -> DoubleAttachment:
        await self.attach_turn.passed()
        if self.error is not None:
            raise self.error
        self.attached.append(DoubleAttachment(vpc, egress, network))
        return self.attached[-1]

    async def stop(self) -> None:
        self.stopped = True

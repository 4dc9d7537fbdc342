"""Starts a new version's instances on the nodes, and gives them up again, over the nodes' RPC. Blocking; for one task each."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from graph.ids import VersionId, tenant_of
from graph.plans import DeployDecision, Outcome, deploy_decision
from orchestrator.flow.dependencies import Busy
from orchestrator.flow.links import NodeLink, Place, linked
from orchestrator.placement import in_reach, spread
from workers.rpc.connection import RpcError
from workers.rpc.messages import Drain, Hello, PrepareItem, Rpc
from workers.rpc.transport import Identity
from workers.versions import VersionSpec

START_S = 120.0
"""How long one try waits; what is ready by then is counted by the next."""

LOOK_S = 0.5
UNUSED_S = 3600.0
"""How long a started instance waits for its first invocation: as long as publishing may be held up, and then for traffic."""

NEEDED_IN_S = 5.0
"""Behind what a request waits for, and what a running workflow is about to need."""

_INIT_FAILED = "init-failed: "
_DIED = "killed: "

log = structlog.get_logger(__name__)


class StartFailed(Exception):
    """The version cannot start: trying again would end the same. The message is the guest's."""


class StartInterrupted(Exception):
    """It may work another time. `died`: the guest ended without a word, which it may do again."""

    def __init__(self, reason: str, died: bool = False) -> None:
        super().__init__(reason)
        self.died = died


class Starter:
    """`places(tenant)` are asked for anew each time: nodes come and go; those that may host it, or all for None. `stopping`: the
    process was told to end."""

    def __init__(
        self,
        places: Callable[[str | None], Sequence[Place]],
        hello: Hello,
        stopping: Callable[[], bool],
        identity: Identity | None = None,
    ) -> None:
        self._identity = identity
        self._places = places
        self._hello = hello
        self._stopping = stopping

    def start(self, spec: VersionSpec, count: int, progress: Callable[[int], None]) -> None:
        """Returns when `count` instances of the version are ready, those of an earlier try included.

        `progress` hears how many are, whenever it changes. Raises StartFailed, StartInterrupted, Busy.
        """
        asyncio.run(self._start(spec, count, progress))

    def drain(self, versions: Sequence[str]) -> None:
        """Gives up what is idle of these versions. A node that is away is left alone: unused instances end by themselves."""
        if versions:
            asyncio.run(self._drain(versions))

    async def _start(self, spec: VersionSpec, count: int, progress: Callable[[int], None]) -> None:
        changed = asyncio.Event()
        async with linked(self._places(spec.tenant), self._hello, changed, self._identity) as (links, away):
            if not links:
                raise StartInterrupted("no node is reachable: " + "; ".join(away))
            left_over = any(link.idle(spec.version) > link.ready(spec.version) for link in links)
            ordered = _order(spec, count, links)
            told = -1
            deadline = asyncio.get_running_loop().time() + START_S
            while True:
                changed.clear()
                _raise_failures(spec, links, ordered, left_over)
                ready = sum(link.ready(spec.version) for link in links)
                if ready >= count:
                    return
                if ready != told:
                    told = ready
                    await asyncio.to_thread(progress, ready)
                if self._stopping():
                    raise Busy("the control flow is being stopped")
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    raise StartInterrupted(f"{ready} of {count} instances ready within {START_S:.0f} s")
                await _either(changed, min(left, LOOK_S))

    async def _drain(self, versions: Sequence[str]) -> None:
        async with linked(self._places(None), self._hello, asyncio.Event(), self._identity) as (links, _):
            for link in links:
                for version in versions:
                    link.send(Rpc.DRAIN, Drain(version))
            tenant = tenant_of(VersionId(versions[0]))
            answers = await asyncio.gather(*(link.ask("counts", tenant=tenant) for link in links), return_exceptions=True)
            for link, answer in zip(links, answers, strict=True):
                if isinstance(answer, RpcError | TimeoutError):
                    log.info("node.not_drained", node=link.name, versions=versions, reason=str(answer))
                elif isinstance(answer, BaseException):
                    raise answer


def _order(spec: VersionSpec, count: int, links: Sequence[NodeLink]) -> set[str]:
    """Orders what is missing, all or nothing: half of it here would only keep others from theirs. Returns the decisions' ids."""
    missing = count - sum(link.idle(spec.version) for link in links)
    chosen = spread(spec.version, spec.memory_mb, missing, in_reach(spec, links))
    if len(chosen) < missing:
        raise StartInterrupted(f"there is memory for {len(chosen)} of {missing} instances of {spec.memory_mb} MB on the nodes")
    attempt = secrets.token_hex(4)
    orders: dict[NodeLink, list[PrepareItem]] = defaultdict(list)
    ids = set()
    for ordinal, link in enumerate(chosen, start=1):
        identity = DeployDecision(VersionId(spec.version), spec.memory_mb, attempt, ordinal).decision_id
        ids.add(identity)
        orders[link].append(PrepareItem(identity, spec.version, expires_s=UNUSED_S, needed_in_s=NEEDED_IN_S))
    for link, items in orders.items():
        link.order(spec, items)
    return ids


def _raise_failures(spec: VersionSpec, links: Sequence[NodeLink], ordered: set[str], left_over: bool) -> None:
    """`left_over`: an earlier try's orders were under way, so that theirs are ours."""
    interrupted: StartInterrupted | None = None
    for link in links:
        if link.lost:
            interrupted = StartInterrupted(f"node {link.name} went away: {link.lost}")
        for update in link.updates:
            if update.decision_id not in ordered:
                found = deploy_decision(update.decision_id) if left_over else None
                if found is None or found.version != spec.version:
                    continue
            if update.outcome not in (Outcome.CANCELLED, Outcome.WASTED):
                continue
            if update.detail.startswith(_INIT_FAILED):
                raise StartFailed(update.detail.removeprefix(_INIT_FAILED))
            interrupted = StartInterrupted(f"{link.name}: {update.detail}", died=update.detail.startswith(_DIED))
        link.updates.clear()
    if interrupted is not None:
        raise interrupted


async def _either(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return

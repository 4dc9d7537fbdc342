"""Runs releases: makes ready what a step needs, opens its gate, watches it, and goes on or back. Thin: when is decided in
orchestrator.releases, each change is one transaction of the catalog, and all that must outlive this process is there.
"""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import SQLAlchemyError

from graph.ids import FunctionId, VersionId, function_id, name_of, number_of, tenant_of, version_id
from graph.plans import EdgeSource, Evidence, Outcome, PrewarmDecision, PrewarmPlan, Trigger
from orchestrator.catalog.model import ReleasePhase
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.releases import OpenRelease, Releases
from orchestrator.placement import in_reach, spread
from orchestrator.planner.demand import Demand
from orchestrator.planner.dispatch import Right
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet, NodePeer
from orchestrator.planner.watching import Watching
from orchestrator.releases import Need, Next, Rules, gate, hold, needed
from orchestrator.splitting import growing, shares
from workers.rpc.messages import PrepareItem
from workers.versions import VersionSpec

TICK_S = 0.1
AWAY_S = 1.0
TELL_S = 0.5
"""What a gate waits for is written down this often at most."""

UNUSED_S = 600.0
"""How long what was made ready waits for its first request."""

NEEDED_IN_S = 1.0
REACH = 0.05
"""What a run calls less often than this is not made ready for a release, as for a run (policy `path`)."""

AT_ONCE = 16
"""A gate is in no hurry: of what is missing a node starts one part in so many at a time, one at least. The cores belong to what
serves meanwhile."""

MOST = 1000
"""Instances of one version that a gate waits for, whatever the traffic."""

DIED = 3
"""A guest that ended without a word so often will do it again."""

FATAL = ("init-failed: ", "killed: ProbeFailed: ")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Step:
    """What this process knows of one release's step, from when it saw it first. Whoever takes over looks for a whole gate or hold
    itself."""

    key: tuple[int, int, str]
    began: float
    ordered: list[str] = field(default_factory=list)
    told: tuple[str, list[dict[str, object]]] = ("", [])
    told_at: float = 0.0


class Releasing:
    """`right(tenant)`: by what lease and epoch orders for it go out, None while another planner decides for it."""

    def __init__(
        self,
        releases: Releases,
        nudge: Nudge,
        fleet: Fleet,
        forecasts: Forecasts,
        decisions: DecisionLog,
        demand: Demand,
        watching: Watching,
        right: Right,
        rules: Rules,
    ) -> None:
        self._releases = releases
        self._nudge = nudge
        self._fleet = fleet
        self._forecasts = forecasts
        self._log = decisions
        self._demand = demand
        self._watching = watching
        self._right = right
        self._rules = rules
        self._steps: dict[int, _Step] = {}
        self.held: set[str] = set()  # versions of releases on their way

    async def run(self) -> None:
        """Never returns. The database away: tries again for ever."""
        while True:
            try:
                await self.tick()
                await asyncio.sleep(TICK_S)
            except SQLAlchemyError as error:
                log.info("releases.database_away", reason=str(error)[:200])
                await asyncio.sleep(AWAY_S)

    async def tick(self) -> None:
        """One look at every release on its way."""
        found = await asyncio.to_thread(self._releases.open)
        if not found and not self._steps:
            return
        ours = [one for one in found if self._right(tenant_of(one.function)) is not None]
        self.held = {spec.version for one in ours for spec in one.specs.values()}
        kept = {one.id for one in ours}
        for gone in self._steps.keys() - kept:
            del self._steps[gone]
        self._watching.keep(kept)
        for release in ours:
            key = (release.id, release.step, release.phase)
            step = self._steps.get(release.id)
            if step is None or step.key != key:
                step = self._steps[release.id] = _Step(key, time.monotonic())
                if release.phase is ReleasePhase.HOLDING:
                    named = {version_id(release.function, one) for one in shares(release.next)}
                    self._watching.begin(release.id, named, time.time())
            if release.phase is ReleasePhase.PREPARING:
                await self._prepare(release, step)
            else:
                await self._watch(release, step)

    # -- a step in preparation

    async def _prepare(self, release: OpenRelease, step: _Step) -> None:
        wanted, failure = self._wanted(release)
        needs = [self._need(spec, count, idle_only) for spec, count, idle_only in wanted]
        failure = failure or self._failed(release, step)
        verdict = gate(needs, failure, time.monotonic() - step.began, self._rules)
        if verdict.next is Next.FLIP:
            if await asyncio.to_thread(self._releases.flip, release.id, release.step, time.time()):
                log.info("release.flipped", release=release.id, function=release.function, alias=release.alias, step=release.step)
                await self._wake()
        elif verdict.next is Next.STOP:
            await self._stop(release, step, verdict.reason)
        else:
            short = self._order(release, step, wanted)
            needs = [Need(one.version, one.wanted, one.ready, short.get(one.version, "")) for one in needs]
            reason = gate(needs, "", 0.0, self._rules).reason
            await self._tell(release, step, needs, reason)

    def _wanted(self, release: OpenRelease) -> tuple[list[tuple[VersionSpec, int, bool]], str]:
        """How many instances of which versions the step needs, those of its call path among them; true: idle ones, for what is
        new on the path. And why it cannot be, when it cannot."""
        now = time.time()
        traffic = sum(self._demand.concurrency(version_id(release.function, one), now) for one in shares(release.now))
        found: list[tuple[VersionSpec, int, bool]] = []
        known: dict[FunctionId, float] = {}
        declared: set[FunctionId] = set()
        share = 0.0
        for number, part in growing(release.now, release.next).items():
            spec = release.specs.get(number)
            if spec is None:
                return [], f"version {number} is not there any more"
            found.append((spec, min(MOST, needed(part, traffic, spec.concurrency, self._rules.target)), False))
            share += part
            declared.update(function_id(spec.tenant, name) for name in release.calls.get(number, ()))
        if traffic <= 0.0 or not found:
            return found, ""
        for call in self._forecasts.expected(release.function)[0]:
            if call.reach >= REACH:
                known[call.function] = max(sum(call.concurrent), REACH)
        for function in sorted(known.keys() | declared - {release.function}):
            spec = self._forecasts.latest(function)
            if spec is None or function == release.function:
                continue
            at_once = share * traffic * min(known.get(function, 1.0), float(MOST))
            busy = self._demand.concurrency(spec.version, now)
            fresh = function in declared and busy <= 0.0
            if not fresh:
                at_once = min(at_once, busy)  # who calls it changes, not how much it is called
            count = min(MOST, max(1, needed(1.0, at_once, spec.concurrency, self._rules.target)))
            found.append((spec, count, fresh))
        return found, ""

    def _need(self, spec: VersionSpec, wanted: int, idle_only: bool) -> Need:
        counts = [count for node in self._fleet.up() if (count := node.counts.get(spec.version)) is not None]
        ready = sum(count.idle + (0 if idle_only else count.busy) for count in counts)
        return Need(_short(spec.version), wanted, ready)

    def _order(self, release: OpenRelease, step: _Step, wanted: Sequence[tuple[VersionSpec, int, bool]]) -> dict[str, str]:
        """Orders what is neither there nor on its way. Returns why something could not be, by version."""
        tenant = tenant_of(release.function)
        right = self._right(tenant)
        short: dict[str, str] = {}
        if right is None:
            return short
        orders: dict[NodePeer, list[PrepareItem]] = defaultdict(list)
        plan = PrewarmPlan(
            f"release-{release.id}-{secrets.token_hex(4)}", tenant, release.function, Trigger.RELEASE, "", time.time(), None
        )
        name = name_of(release.function)
        part = max(growing(release.now, release.next).values(), default=0.0)
        nodes = self._fleet.up()
        for spec, count, idle_only in wanted:
            counts = [one for node in nodes if (one := node.counts.get(spec.version)) is not None]
            there = sum(one.idle + one.preparing + (0 if idle_only else one.busy) for one in counts)
            missing = count - there
            if missing <= 0:
                continue
            if len(step.ordered) >= 4 * sum(one for _, one, _ in wanted) + DIED:
                short[_short(spec.version)] = "what was started before did not last"
                continue
            chosen = spread(spec.version, spec.memory_mb, missing, in_reach(spec, nodes))
            if len(chosen) < missing:
                short[_short(spec.version)] = f"there is memory for {len(chosen)} of {missing} more of {spec.memory_mb} MB"
            reason = f"release {release.id} gives version {release.target} of {name} {part * 100:.3g} % of the traffic"
            coming = sum(one.preparing for one in counts)
            at_once = len(nodes) * max(1, (missing + coming) // AT_ONCE)
            for ordinal, node in enumerate(chosen[: max(0, at_once - coming)], there + 1):
                decision = PrewarmDecision(
                    f"{plan.plan_id}-{spec.version}-{ordinal}",
                    FunctionId(spec.version.rpartition(":")[0]),
                    ordinal,
                    spec.memory_mb,
                    0.0,
                    UNUSED_S,
                    reason,
                    Evidence(EdgeSource.REQUESTED, 1.0, 1.0, 0),
                )
                self._log.add(plan, decision, spec.version, node.name)
                step.ordered.append(decision.decision_id)
                node.define(spec)
                orders[node].append(
                    PrepareItem(decision.decision_id, spec.version, expires_s=UNUSED_S, needed_in_s=NEEDED_IN_S, probe=True)
                )
        for node, items in orders.items():
            node.prepare(items, *right)
        return short

    def _failed(self, release: OpenRelease, step: _Step) -> str:
        """Why an instance that was ordered will never be; empty when that is not known of any."""
        died: dict[str, int] = defaultdict(int)
        for decision_id in step.ordered:
            entry = self._log.one(tenant_of(release.function), decision_id)
            if entry is None or entry.outcome not in (Outcome.CANCELLED, Outcome.WASTED):
                continue
            what = _short(entry.version)
            if entry.detail.startswith(FATAL):
                return f"an instance of {what} did not start: {entry.detail.removeprefix(FATAL[0]).removeprefix(FATAL[1])}"
            if entry.detail.startswith("killed: "):
                died[what] += 1
                if died[what] >= DIED:
                    return f"instances of {what} do not last: {entry.detail}"
        return ""

    # -- a step in force

    async def _watch(self, release: OpenRelease, step: _Step) -> None:
        new = version_id(release.function, release.target)
        others = [version_id(release.function, one) for one in shares(release.next) if one != release.target]
        old = self._watching.seen(release.id, others[0]) if others else self._watching.seen(release.id, "")
        watched_s = time.monotonic() - step.began
        verdict = hold(self._watching.seen(release.id, new), old, watched_s, release.hold_s, self._rules)
        if verdict.next is Next.STOP:
            await self._stop(release, step, verdict.reason)
        elif verdict.next is Next.ADVANCE:  # only what another step follows is watched
            await asyncio.to_thread(self._releases.advance, release.id, release.step, time.time())
        else:
            await self._tell(release, step, (), verdict.reason)

    async def _stop(self, release: OpenRelease, step: _Step, reason: str) -> None:
        if await asyncio.to_thread(self._releases.stop, release.id, release.step, reason, time.time()):
            log.warning(
                "release.stopped", release=release.id, function=release.function, alias=release.alias, reason=reason[:500]
            )
            await self._wake()
        right = self._right(tenant_of(release.function))
        if right is not None and step.ordered:
            for node in self._fleet.up():
                node.revoke(step.ordered, "the release was stopped", *right, release=True)

    async def _tell(self, release: OpenRelease, step: _Step, needs: Sequence[Need], reason: str) -> None:
        document: list[dict[str, object]] = [
            {"version": one.version, "wanted": one.wanted, "ready": one.ready} for one in needs if one.wanted
        ]
        now = time.monotonic()
        if (reason, document) == step.told or now - step.told_at < TELL_S:
            return
        step.told, step.told_at = (reason, document), now
        await asyncio.to_thread(self._releases.progress, release.id, release.step, document, reason, time.time())

    async def _wake(self) -> None:
        await asyncio.to_thread(self._nudge.give)


def _short(version: str) -> str:
    """`name:number`."""
    identity = VersionId(version)
    return f"{name_of(FunctionId(identity.rpartition(':')[0]))}:{number_of(identity)}"

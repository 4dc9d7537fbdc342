"""Runs releases: asks the scaler for what a step needs, opens its gate, watches it, and goes on or back. Thin: when is decided in
orchestrator.releases, instances are ordered by orchestrator.planner.scaling, each change is one transaction of the catalog, and
all that must outlive this process is there.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import SQLAlchemyError

from graph.ids import FunctionId, VersionId, function_id, name_of, number_of, tenant_of, version_id
from graph.plans import Outcome
from orchestrator.catalog.model import ReleasePhase
from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.releases import OpenRelease, Releases
from orchestrator.planner.dispatch import Right
from orchestrator.planner.forecasts import Forecasts
from orchestrator.planner.heard import HEARD_S
from orchestrator.planner.log import DecisionLog
from orchestrator.planner.peers import Fleet, GatewayPeer
from orchestrator.planner.scaling import PLATFORM_MAXIMUM, Scaling
from orchestrator.planner.watching import Watching
from orchestrator.releases import Need, Next, Rules, Seen, gate, hold, needed
from orchestrator.splitting import growing, shares
from workers.versions import VersionSpec

TICK_S = 0.1
AWAY_S = 1.0
TELL_S = 0.5
"""What a gate waits for is written down this often at most."""

HOLD_S = 5.0
"""What is asked for holds so long without being said anew."""

REACH = 0.05
"""What a run calls less often than this is not made ready for a release, as for a run (policy `path`)."""

MOST = PLATFORM_MAXIMUM
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
    ordered: list[str] = field(default_factory=list)  # ids of the decisions made for it
    told: tuple[str, list[dict[str, object]]] = ("", [])
    told_at: float = 0.0


@dataclass(slots=True)
class _Part:
    """What a step needs of one version. `fresh`: only the new version calls it, so none may be busy. `limit`: why it is less than
    the traffic would need."""

    spec: VersionSpec
    count: int
    fresh: bool = False
    limit: str = ""


class Releasing:
    """`right(tenant)`: by what lease and epoch orders for it go out, None while another planner decides for it. `gateways()`:
    those that tell of traffic."""

    def __init__(
        self,
        releases: Releases,
        nudge: Nudge,
        fleet: Fleet,
        forecasts: Forecasts,
        decisions: DecisionLog,
        scaling: Scaling,
        watching: Watching,
        right: Right,
        rules: Rules,
        gateways: Callable[[], Sequence[GatewayPeer]],
    ) -> None:
        self._releases = releases
        self._nudge = nudge
        self._fleet = fleet
        self._forecasts = forecasts
        self._log = decisions
        self._scaling = scaling
        self._watching = watching
        self._right = right
        self._rules = rules
        self._gateways = gateways
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
            self._scaling.let_go(gone)
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
                self._scaling.let_go(release.id)
                await self._watch(release, step)
        self._scaling.again()

    # -- a step in preparation

    async def _prepare(self, release: OpenRelease, step: _Step) -> None:
        shut_s = time.monotonic() - step.began
        if shut_s < HEARD_S and self._unknown(release):
            await self._tell(release, step, [], "how much traffic there is has not been heard yet")
            return
        parts, failure = self._wanted(release)
        failure = failure or self._failed(release, step)
        lacks = self._ask(release, step, parts) if not failure else {}
        needs = [self._need(one, lacks.get(one.spec.version, "")) for one in parts]
        verdict = gate(needs, failure, shut_s, self._rules)
        if verdict.next is Next.FLIP:
            if await asyncio.to_thread(self._releases.flip, release.id, release.step, time.time()):
                log.info("release.flipped", release=release.id, function=release.function, alias=release.alias, step=release.step)
                await self._wake()
        elif verdict.next is Next.STOP:
            await self._stop(release, step, verdict.reason)
        else:
            await self._tell(release, step, _needs(needs, parts), verdict.reason)

    def _unknown(self, release: OpenRelease) -> bool:
        """How much traffic there is: a moment between two requests would be taken for none, and the gate stand open."""
        heard, now = self._scaling.heard, time.monotonic()
        named = [version_id(release.function, one) for one in shares(release.now)]
        return heard.unheard(self._gateways()) or any(heard.untold(one, now) for one in named)

    def _wanted(self, release: OpenRelease) -> tuple[list[_Part], str]:
        """How many instances of which versions the step needs, those of its call path among them. And why it cannot be, when it
        cannot."""
        traffic = sum(self._concurrency(version_id(release.function, one)) for one in shares(release.now))
        found: list[_Part] = []
        known: dict[FunctionId, float] = {}
        declared: set[FunctionId] = set()
        share = 0.0
        for number, part in growing(release.now, release.next).items():
            spec = release.specs.get(number)
            if spec is None:
                return [], f"version {number} is not there any more"
            found.append(_within(_Part(spec, needed(part, traffic, spec.concurrency, self._rules.target))))
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
            busy = self._concurrency(spec.version)
            fresh = function in declared and busy <= 0.0
            if not fresh:
                at_once = min(at_once, busy)  # who calls it changes, not how much it is called
            count = max(1, needed(1.0, at_once, spec.concurrency, self._rules.target))
            found.append(_within(_Part(spec, count, fresh)))
        return found, ""

    def _concurrency(self, version: str) -> float:
        """As gateways tell, or as many instances as are busy: nodes say that sooner."""
        busy = sum(count.busy for node in self._fleet.up() if (count := node.counts.get(version)) is not None)
        return max(self._scaling.heard.concurrency(version, time.monotonic()), float(busy))

    def _need(self, part: _Part, lack: str) -> Need:
        counts = [count for node in self._fleet.up() if (count := node.counts.get(part.spec.version)) is not None]
        ready = sum(count.idle + (0 if part.fresh else count.busy) for count in counts)
        return Need(_short(part.spec.version), part.count, ready, lack)

    def _ask(self, release: OpenRelease, step: _Step, parts: Sequence[_Part]) -> dict[str, str]:
        """The scaler is to have them ready. Returns what keeps it from that, by version, as far as it is known."""
        share = max(growing(release.now, release.next).values(), default=0.0)
        reason = f"version {release.target} of {name_of(release.function)} gets {share * 100:.3g} % (release {release.id})"
        spent = len(step.ordered) >= 4 * sum(one.count for one in parts) + DIED
        lacks: dict[str, str] = {}
        for part in parts:
            counts = [one for node in self._fleet.up() if (one := node.counts.get(part.spec.version)) is not None]
            busy = sum(one.busy for one in counts) if part.fresh else 0
            there = sum(one.idle + one.busy + one.preparing for one in counts)
            count = part.count + busy if not spent else min(part.count + busy, there)
            self._scaling.hold(release.id, part.spec, count, reason, HOLD_S, step.ordered)
            if there < part.count:
                lack = "what was started before did not last" if spent else self._scaling.lack(part.spec.version)
                lacks[part.spec.version] = lack
        return lacks

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
        ours = self._watching.seen(release.id, new)
        verdict = hold(ours, old, watched_s, release.hold_s, self._rules)
        seen = [_row(new, ours), *(_row(one, old) for one in others[:1])]
        if verdict.next is Next.STOP:
            step.told_at = 0.0  # what it is judged by is what is seen of it
            await self._tell(release, step, seen, verdict.reason)
            await self._stop(release, step, verdict.reason)
        elif verdict.next is Next.ADVANCE:  # only what another step follows is watched
            await asyncio.to_thread(self._releases.advance, release.id, release.step, time.time())
        else:
            await self._tell(release, step, seen, verdict.reason)

    async def _stop(self, release: OpenRelease, step: _Step, reason: str) -> None:
        if await asyncio.to_thread(self._releases.stop, release.id, release.step, reason, time.time()):
            log.warning(
                "release.stopped", release=release.id, function=release.function, alias=release.alias, reason=reason[:500]
            )
            await self._wake()
        self._scaling.let_go(release.id)
        right = self._right(tenant_of(release.function))
        if right is not None and step.ordered:
            for node in self._fleet.up():
                node.revoke(step.ordered, "the release was stopped", *right, release=True)

    async def _tell(self, release: OpenRelease, step: _Step, document: list[dict[str, object]], reason: str) -> None:
        now = time.monotonic()
        if (reason, document) == step.told or now - step.told_at < TELL_S:
            return
        step.told, step.told_at = (reason, document), now
        await asyncio.to_thread(self._releases.progress, release.id, release.step, document, reason, time.time())

    async def _wake(self) -> None:
        await asyncio.to_thread(self._nudge.give)


def _needs(needs: Sequence[Need], parts: Sequence[_Part]) -> list[dict[str, object]]:
    limits = {_short(one.spec.version): one.limit for one in parts}
    return [
        {"version": one.version, "wanted": one.wanted, "ready": one.ready, "limit": limits.get(one.version, "")}
        for one in needs
        if one.wanted
    ]


def _row(version: str, seen: Seen) -> dict[str, object]:
    return {
        "version": _short(version), "requests": seen.requests, "errors": seen.errors, "p95_ms": round(1000 * seen.p95_s, 3)
    }  # fmt: skip


def _short(version: str) -> str:
    """`name:number`."""
    identity = VersionId(version)
    return f"{name_of(FunctionId(identity.rpartition(':')[0]))}:{number_of(identity)}"


def _within(part: _Part) -> _Part:
    """What its owner allows of it: more is never started, whatever the traffic."""
    most = min(part.spec.scaling.maximum or MOST, MOST)
    if part.count > most:
        part.limit = f"the traffic needs {part.count}, at most {most} may be"
        part.count = most
    return part

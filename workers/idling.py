"""Instances that nobody uses: how long they stay, and which of them go on request."""

import time
from collections import Counter

from graph.ids import VersionId, function_of
from workers.decisions import DecisionBook
from workers.instances import Instance
from workers.keeping import KeepTimes
from workers.lifecycle import Lifecycle


class Idling:
    """Ends no instance that runs something or is waited for. `keeps`: what planners say they are worth; `ended`: how many were
    given up after their use, by why."""

    def __init__(self, instances: Lifecycle, decisions: DecisionBook) -> None:
        self.keeps = KeepTimes()
        self.ended: Counter[str] = Counter({"lifetime": 0, "price": 0, "wanted": 0})
        self._instances = instances
        self._decisions = decisions

    def expire(self, decision_id: str) -> None:
        """A prewarmed instance stayed unused for its lifetime. It stays where it is wanted, but its decision has ended."""
        kept = next((one for one in self._instances.table if one.decision_id == decision_id and self._held(one)), None)
        if kept is None:
            self.give_up(decision_id, "unused for its lifetime")
        else:
            self._decisions.lost(decision_id, "unused for its lifetime; the instance stays, so many are wanted")
            kept.decision_id = ""

    def give_up(self, decision_id: str, why: str) -> None:
        """Ends the instance of a decision, unless an invocation has taken or adopted it."""
        for instance in self._instances.table:
            if instance.decision_id == decision_id:
                if not instance.served and not instance.waiting:
                    self._instances.kill(instance, why)
                return

    def sweep(self, idle_s: float) -> None:
        """Gives up what has been idle for `idle_s`, or for as long as it is worth keeping; those of an open decision have a
        lifetime of their own. As many stay as planners want here."""
        now = time.monotonic()
        idle = self._instances.table.idle()
        numbers = Counter(one.spec.version for one in idle)
        for version in numbers:  # what was used last is used next: the one idle longest, after all others
            numbers[version] += sum(bool(one.live) for one in self._instances.table.of(version))
        for instance in idle:
            numbers[instance.spec.version] -= 1
            floor, only = self.keeps.floor(instance.spec.version, now)
            if floor and len(self._instances.table.of(instance.spec.version)) <= floor:
                continue
            if only and not self._decided(instance):
                self.ended["wanted"] += 1
                self._instances.kill(instance, f"{floor} are wanted here")
                continue
            worth_s = self.keeps.of(instance.spec.version, now, numbers[instance.spec.version])
            by_price = worth_s is not None and worth_s < idle_s
            if now - instance.idle_since < (worth_s if by_price and worth_s is not None else idle_s):
                continue
            if not self._decided(instance):
                self.ended["price" if by_price else "lifetime"] += 1
                self._instances.kill(instance, f"idle for {worth_s:.3g} s: not worth keeping longer" if by_price else "idle")

    def cool(self, functions: set[str]) -> int:
        """Gives up every idle or preparing instance nobody waits for, of these FunctionIds."""
        chosen = [
            one
            for one in self._instances.table
            if function_of(VersionId(one.spec.version)) in functions and not one.live and not one.waiting
        ]
        for instance in chosen:
            self._instances.kill(instance, "cooled on request")
        return len(chosen)

    def _decided(self, instance: Instance) -> bool:
        """Its decision has not ended."""
        return instance.decision_id in self._decisions

    def _held(self, instance: Instance) -> bool:
        floor, _ = self.keeps.floor(instance.spec.version, time.monotonic())
        return not instance.served and 0 < len(self._instances.table.of(instance.spec.version)) <= floor

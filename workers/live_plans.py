"""How many sandboxes of a kind the largest plan draws, of those that live. Bookkeeping only."""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping

MOST = 1000


class LivePlans:
    """A plan lives until each of its decisions is over; of more than MOST the oldest is forgotten."""

    def __init__(self) -> None:
        self._plans: OrderedDict[int, tuple[Counter[Hashable], set[str]]] = OrderedDict()
        self._of: dict[str, int] = {}
        self._numbers = 0

    def begin(self, kinds: Mapping[str, Hashable]) -> None:
        """`kinds`: decision -> what it draws one of. Decisions known already stay with the plan they came in."""
        fresh = {decision: kind for decision, kind in kinds.items() if decision not in self._of}
        if not fresh:
            return
        self._numbers += 1
        self._plans[self._numbers] = (Counter(fresh.values()), set(fresh))
        self._of.update(dict.fromkeys(fresh, self._numbers))
        while len(self._plans) > MOST:
            self._forget(next(iter(self._plans)))

    def over(self, decision: str) -> None:
        number = self._of.pop(decision, None)
        if number is None:
            return
        left = self._plans[number][1]
        left.discard(decision)
        if not left:
            del self._plans[number]

    def _forget(self, number: int) -> None:
        for decision in self._plans.pop(number)[1]:
            del self._of[decision]

    def largest(self, kind: Hashable) -> int:
        """0: none draws that."""
        return max((counts[kind] for counts, _ in self._plans.values()), default=0)

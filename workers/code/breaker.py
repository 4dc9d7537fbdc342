"""When to leave a replica alone that does not answer: for a while, longer each time, with one try in between. Pure."""

FIRST_S = 1.0
LONGEST_S = 30.0


class Breaker:
    """Closed while the replica works. After a failure nobody is to ask until a pause is over; then one may, and everybody once
    that worked. The pause doubles with each try that failed."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._until = 0.0
        self._trying = False

    @property
    def closed(self) -> bool:
        return not self._pause

    def admits(self, now: float) -> bool:
        """Whether to ask now. Who asks after a pause holds the others off for as long again, should no more be heard of it."""
        if self.closed:
            return True
        if now < self._until:
            return False
        self._trying, self._until = True, now + self._pause
        return True

    def failed(self, now: float) -> None:
        """Of many that were asked before the first failure, only that one counts."""
        if self.closed or self._trying:
            self._pause = min(self._pause * 2, LONGEST_S) if self._pause else FIRST_S
            self._trying, self._until = False, now + self._pause

    def worked(self) -> None:
        self._pause, self._trying = 0.0, False

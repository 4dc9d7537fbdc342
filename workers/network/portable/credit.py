"""Who may send how much: credit windows per stream, and one bound over all windows of a process. Pure."""

from workers.network.portable.words import FIRST_WINDOW, MAX_WINDOW, LinkError


class Budget:
    """Bytes that windows may hold together. `within`: what it is a part of; there may be more parts than fit at once."""

    def __init__(self, limit: int, within: "Budget | None" = None) -> None:
        self.limit = limit
        self.held = 0
        self._within = within

    def take(self, amount: int, of: int = 1) -> bool:
        """False, and nothing taken, when it would be over the limit, or over one part `of` so many of it."""
        if self.held + amount > self.limit // of or (self._within is not None and not self._within.take(amount, of)):
            return False
        self.held += amount
        return True

    def give(self, amount: int) -> None:
        self.held -= amount
        if self._within is not None:
            self._within.give(amount)


class Receiving:
    """One direction of a stream, at its receiver. At any time what the sender may still send, what came and was not taken, and
    what was taken and not yet given back, make up the window: more than that is never in memory here."""

    def __init__(self, budget: Budget) -> None:
        """The first window is the caller's to have taken from the budget; `close` gives back all."""
        self.window = FIRST_WINDOW
        self._budget = budget
        self._granted = FIRST_WINDOW
        self._taken = 0
        self._since_growth = 0

    @property
    def waiting(self) -> int:
        """Bytes that came and were not taken."""
        return self.window - self._granted - self._taken

    def came(self, amount: int) -> None:
        """Raises LinkError when the sender had no credit for that."""
        if amount > self._granted:
            raise LinkError(f"{amount} bytes where the credit was {self._granted}")
        self._granted -= amount

    def taken(self, amount: int) -> int:
        """The bytes have gone on; the credit to give now, 0: later, with more. A stream that has carried a whole window gets
        twice the window while half of the budget is free, so that first windows always find room: a long way wants more bytes
        under way."""
        if amount > self.window - self._granted - self._taken:
            amount = self.waiting
        self._taken += amount
        self._since_growth += amount
        if self._taken < self.window // 2 and self._since_growth < self.window:
            return 0
        grown = 0
        if self._since_growth >= self.window and self.window < MAX_WINDOW and self._budget.take(self.window, of=2):
            grown = self.window
            self.window *= 2
            self._since_growth = 0
        if not grown and self._taken < self.window // 2:
            return 0
        given = self._taken + grown
        self._taken = 0
        self._granted += given
        return given

    def close(self) -> None:
        """Idempotent."""
        self._budget.give(self.window)
        self.window = self._granted = self._taken = 0


class Sending:
    """One direction of a stream, at its sender."""

    def __init__(self) -> None:
        self.credit = FIRST_WINDOW

    def spend(self, amount: int) -> None:
        """Raises ValueError for more than there is: the caller did not look."""
        if amount > self.credit:
            raise ValueError(f"{amount} bytes of {self.credit} credit")
        self.credit -= amount

    def more(self, amount: int) -> None:
        """Raises LinkError when the receiver gives what no window holds."""
        self.credit += amount
        if not 0 < amount <= 2 * MAX_WINDOW or self.credit > MAX_WINDOW:
            raise LinkError(f"credit of {self.credit} bytes is over any window")

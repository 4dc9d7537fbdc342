"""How a command says that it cannot: one line on stderr and exit code 1, never a traceback."""


class Failure(Exception):
    """The message is the line to show; `more` is shown below it, as it is (the stack of a failed handler)."""

    def __init__(self, message: str, more: str = "") -> None:
        super().__init__(message)
        self.more = more

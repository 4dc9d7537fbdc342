"""What the page expects of a view."""

from collections.abc import Callable
from typing import Protocol

from orchestrator.page.api import ControlApi
from orchestrator.page.questions import Questions

Go = Callable[[str], None]
"""Goes to another place of the page: a path below /page/."""


class View(Protocol):
    """Made inside the element it fills. `questions.troubles` is what the page says at its top, and `questions.over` ends it."""

    questions: Questions

    def __init__(self, api: ControlApi, go: Go, argument: str) -> None:
        """`argument`: what stands in the path behind the view's name."""

    async def refresh(self) -> None:
        """Asks what is due and shows what changed; about once a second."""

    def close(self) -> None:
        """Stops what it started."""

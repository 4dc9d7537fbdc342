"""A view's questions to the API: what fails is kept as a sentence, and large answers are asked for less often."""

import time
from typing import Any

from orchestrator.page.api import Absent, Away, ControlApi, SignedOut

COST = 15
"""A question is asked again after this many times as long as its answer took."""


class Questions:
    """`troubles` holds, by path, why it could not be answered the last time. `over`: the session is, so nothing is answered any
    more; also who asks because something was pressed or typed need not know that, the page looks after each refresh."""

    def __init__(self, api: ControlApi) -> None:
        self.troubles: dict[str, str] = {}
        self.over = False
        self._api = api
        self._due: dict[str, float] = {}

    async def ask(self, path: str, **parameters: Any) -> Any | None:
        """The answer; None when there is none."""
        try:
            answer = await self._api.get(path, **parameters)
        except (Away, Absent) as error:
            self.troubles[path] = str(error)
            return None
        except SignedOut:
            self.over = True
            return None
        self.troubles.pop(path, None)
        return answer

    async def ask_every(self, interval_s: float, path: str, **parameters: Any) -> Any | None:
        """As `ask`, but None too when the last answer is young, or was so large that asking again so soon would be a load."""
        began = time.monotonic()
        if self._due.get(path, 0.0) > began:
            return None
        answer = await self.ask(path, **parameters)
        took = time.monotonic() - began
        self._due[path] = began + max(interval_s - 0.1, COST * took if answer is not None else 0.0)
        return answer

    def at_once(self) -> None:
        """Whatever is asked next is asked now."""
        self._due.clear()

"""Guests that call each other by a script."""

import asyncio

import msgspec
from doubles.nodes import Rig
from doubles.sandboxes import DoubleClone

from workers.drivers.frames import FromGuest, ToGuest
from workers.framing import Frame


def path_of(clone: DoubleClone) -> str:
    assert clone.work is not None
    return clone.work.version.partition("/")[2].partition(":")[0]


class Story:
    """What the guests do: `calls[name]` are the functions it calls one after the other before it answers its own name."""

    def __init__(self, rig: Rig, **calls: list[str]) -> None:
        self.calls = calls
        self.silent: set[str] = set()
        self.content = b"payload"
        self.answers: list[tuple[str, dict[str, object], bytes]] = []
        self.seen: list[str] = []
        self._left: dict[tuple[DoubleClone, int], list[str]] = {}
        self._number = 1000
        self._waiting: dict[tuple[DoubleClone, int], int] = {}
        rig.driver.handler = self.handle

    def handle(self, clone: DoubleClone, frame: Frame) -> None:
        name = path_of(clone)
        self.seen.append(name)
        self._left[clone, frame.id] = list(self.calls.get(name, ()))
        if name not in self.silent:
            self.go_on(clone, frame.id)

    def go_on(self, clone: DoubleClone, ident: int) -> None:
        left = self._left[clone, ident]
        if not left:
            clone.answer(ident, path_of(clone).encode())
            return
        self._number += 1
        self._waiting[clone, self._number] = ident
        clone.say(FromGuest.CALL, self._number, {"invocation": ident, "function": left.pop(0)}, self.content)
        asyncio.get_running_loop().call_soon(self.listen, clone, self._number)

    def listen(self, clone: DoubleClone, number: int) -> None:
        if clone.ended:
            return
        for frame in clone.sent:
            if frame.kind == ToGuest.CALL_RESULT and frame.id == number:
                self.answers.append((path_of(clone), msgspec.json.decode(frame.meta), frame.body))
                self.go_on(clone, self._waiting[clone, number])
                return
        asyncio.get_running_loop().call_later(0.001, self.listen, clone, number)

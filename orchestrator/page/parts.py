"""What the views share: filters, sections, empty states, and how many rows of a table are shown."""

from collections.abc import Callable
from typing import Any

from nicegui.element import Element

from orchestrator.page.cells import Column, Row
from orchestrator.page.elements import Plain, Rows, pressed

FIRST = 100
"""Rows shown until all are asked for."""

FILTER_EVERY_S = 0.08


def search(label: str, value: str, on_change: Callable[[str], Any]) -> Element:
    """A labelled field that filters while it is typed in."""
    with Plain("label", classes="field"):
        Plain("span", label)
        field = Plain("input", type="search", autocomplete="off", spellcheck="false")
        if value:
            field.set_attribute("^value", value)  # the attribute: the property would undo what is typed with every update
        heard = "(event) => emit(event.target.value)"
        field.on("input", lambda event: on_change(str(event.args)), js_handler=heard, throttle=FILTER_EVERY_S)
    return field


def select(label: str, options: list[tuple[str, str]], on_change: Callable[[str], Any]) -> Element:
    """`options`: (value, text); the first is chosen."""
    with Plain("label", classes="field"):
        Plain("span", label)
        field = Plain("select")
        field.on("change", lambda event: on_change(str(event.args)), js_handler="(event) => emit(event.target.value)")
        with field:
            for value, text in options:
                Plain("option", text, value=value)
    return field


def button(text: str, on_press: Callable[[], Any], label: str = "") -> Plain:
    made = Plain("button", text, type="button", **({"aria_label": label} if label else {}))
    made.on("click", pressed(on_press), args=[])
    return made


class Empty:
    """Says that there is nothing yet, and the command that changes it."""

    def __init__(self, text: str, command: str) -> None:
        self._box = Plain("div", classes="empty")
        with self._box:
            Plain("p", text)
            with Plain("p"):
                Plain("code", command)

    def show(self, visible: bool) -> None:
        self._box.show(visible)


class Listing:
    """A table of the first rows, and a button for all of them. `make(limit)` gives the rows."""

    def __init__(self, caption: str, columns: list[Column], on_choose: Callable[[str], Any] | None = None) -> None:
        self._limit = FIRST
        self._noun = ""
        self._again: tuple[Callable[[int], list[Row]], int] | None = None
        self.table = Rows(caption, columns, on_choose)
        self._rest = Plain("p", classes="rest")
        with self._rest:
            self._said = Plain("span")
            self._more = button("", self._all)
        self._rest.show(False)

    @property
    def limit(self) -> int:
        return self._limit

    def show(self, make: Callable[[int], list[Row]], total: int, noun: str) -> None:
        self._again, self._noun = (make, total), noun
        self.table.show(make(self._limit))
        over = total > self._limit
        self._rest.show(over)
        if over:
            self._said.say(f"{self._limit:,} of {total:,} {noun} shown")
            self._more.say(f"Show all {total:,}")

    def _all(self) -> None:
        if self._again is not None:
            make, total = self._again
            self._limit = 1_000_000
            self.show(make, total, self._noun)

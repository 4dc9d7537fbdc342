"""The page's own elements: a table, drawn call graph, step charts, HTML with text. Their browser halves lie in components/."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nicegui
from nicegui.element import Element
from nicegui.events import GenericEventArguments

from orchestrator.page.cells import Column, Row

ECHARTS = Path(nicegui.__file__).parent / "elements" / "echart" / "dist"


class Plain(Element):
    """An HTML element with a text of its own."""

    def __init__(self, tag: str, text: str = "", classes: str = "", **attributes: str) -> None:
        super().__init__(tag)
        self._text = text or None
        self.classes(classes)
        for name, value in attributes.items():
            self._props[name.rstrip("_").replace("_", "-")] = value

    def say(self, text: str) -> None:
        """Sets the text, and tells the browser when it is another."""
        if text != self._text:
            self._text = text
            self.update()

    def set_attribute(self, name: str, value: str | None) -> None:
        """None takes it away."""
        if self._props.get(name) == value:
            return
        if value is None:
            del self._props[name]
        else:
            self._props[name] = value
        self.update()

    def show(self, visible: bool) -> None:
        self.set_attribute("hidden", None if visible else "hidden")


class Rows(Element, component="components/rows.js"):
    """A table. `on_choose` hears what a pressed cell selects."""

    def __init__(self, caption: str, columns: list[Column], on_choose: Callable[[str], Any] | None = None) -> None:
        super().__init__()
        self._props["caption"] = caption
        self._props["columns"] = columns
        self._props["rows"] = []
        if on_choose is not None:
            self.on("choose", lambda event: on_choose(str(event.args)))

    def show(self, rows: list[Row]) -> None:
        """Sent only when something is different."""
        if rows != self._props["rows"]:
            self._props["rows"] = rows
            self.update()


class CallGraphPicture(Element, component="components/callgraph.js", esm={"nicegui-echart": str(ECHARTS)}):
    """The drawing. Pictures are sent once and not kept here: a state that changes costs its name and a word."""

    def __init__(self, on_choose: Callable[[str], Any]) -> None:
        super().__init__()
        self._props["label"] = "Call graph; the table below says the same"
        self.on("choose", lambda event: on_choose(str(event.args)))

    def draw(self, picture: Mapping[str, Any], chosen: str) -> None:
        self.run_method("set_picture", picture, chosen)

    def set_states(self, states: Mapping[str, str], chosen: str) -> None:
        self.run_method("set_states", states, chosen)

    def zoom(self, factor: float) -> None:
        """1: as it is; 0: all of it."""
        self.run_method("zoom", factor)


class Courses(Element, component="components/courses.js"):
    """Step charts. Points are sent once and not kept here; `large`: with axes, and a point in time that can be chosen."""

    def __init__(self, label: str, on_choose: Callable[[str], Any] | None = None, large: bool = False) -> None:
        super().__init__()
        self._props["label"] = label
        self._props["large"] = large
        self._props["cards"] = []
        if on_choose is not None:
            self.on("choose", lambda event: on_choose(str(event.args)))

    def show(self, cards: list[dict[str, Any]]) -> None:
        """Sent only when something is different. The key of a card is that of its points."""
        if cards != self._props["cards"]:
            self._props["cards"] = cards
            self.update()

    def tell(self, now: float, span_s: float, gone: list[str], points: Mapping[str, list[list[Any]]]) -> None:
        """What happened since: the time that is shown ends at `now` (Unix time); the points of `gone` are forgotten first."""
        self.run_method("tell", now, span_s, gone, points)


def pressed(handler: Callable[[], Any]) -> Callable[[GenericEventArguments], Any]:
    """A handler that does not care what was pressed."""
    return lambda event: handler()

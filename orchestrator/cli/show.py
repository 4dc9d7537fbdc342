"""What commands print: JSON for programs, tables and trees for people. Results go to stdout, progress to stderr."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.tree import Tree

START_COLOURS = {
    "warm": "green",
    "prewarmed": "cyan",
    "almost-warm": "blue",
    "standby": "yellow",
    "cold": "red",
}
OUTCOME_COLOURS = {"hit": "green", "late": "yellow", "wasted": "magenta", "cancelled": "dim", "ready": "cyan", "pending": "dim"}


def console() -> "Console":
    """Stdout; wide when it is a file, so that no line is broken for a reader that is a program."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=200, soft_wrap=True)


def progress_console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def as_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> "Table":
    """A column whose name ends in `>` is aligned right. Cells that are no text are shown as text; None as nothing."""
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else cell if isinstance(cell, str) else str(cell) for cell in row))
    return made


def start_text(start: str) -> str:
    colour = START_COLOURS.get(start)
    return f"[{colour}]{start}[/]" if colour else start


def outcome_text(outcome: str) -> str:
    colour = OUTCOME_COLOURS.get(outcome)
    return f"[{colour}]{outcome}[/]" if colour else outcome


def ms(value: float | None) -> str:
    """Milliseconds with as many digits as they are worth."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def percent(value: float) -> str:
    return f"{value * 100:.0f} %" if value >= 0.1 or value == 0 else f"{value * 100:.1f} %"


def ago(at: float | None) -> str:
    """How long ago a moment (seconds since the epoch) was."""
    if not at:
        return ""
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def clock(at: float | None) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) if at else ""


def plain(text: object) -> str:
    """Text of somebody else, its square brackets no markup."""
    from rich.markup import escape

    return escape(str(text))


def run_tree(run: Mapping[str, Any]) -> "Tree":
    """One run: each invocation with how it started, how long it waited for its instance, and how long it took."""
    from rich.tree import Tree

    tree = Tree(_invocation(run["root"]))
    _branches(tree, run["root"]["children"])
    return tree


def _branches(tree: "Tree", children: Iterable[Mapping[str, Any]]) -> None:
    for child in children:
        _branches(tree.add(_invocation(child)), child["children"])


def _invocation(one: Mapping[str, Any]) -> str:
    status = "" if one["status"] == "ok" else f"  [red]{one['status']}[/] {plain(one['error_type'])}"
    return (
        f"[bold]{plain(one['function'])}[/]:{one['version']}  {start_text(one['start'])}  "
        f"{ms(one['duration_ms'])} ms [dim](waited {ms(one['wait_ms'])}, at +{ms(one['offset_ms'])})[/]{status}"
    )

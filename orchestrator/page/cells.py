"""What a table of the page is made of, as components/rows.js draws it. Plain documents; text is never markup.

A cell is a text, or a document of: text; mark (a state, shown as a sign and a colour beside the text); sub (a second, quieter
line); choose (what pressing it selects); at (a moment, seconds since the epoch, shown in the reader's time zone); depth (of an
indented text); track (pieces on a time line). A piece is {left, width, tone, title}, in percent of the line.
"""

from collections.abc import Sequence
from typing import Any

Cell = str | dict[str, Any]
Row = dict[str, Any]
Column = dict[str, str]

SIGNS = {
    "warm": "●",
    "preparing": "▲",
    "cold": "○",
    "not deployed": "□",
    "unknown": "◇",
    "hit": "✓",
    "late": "◔",
    "wasted": "✕",
    "cancelled": "–",
    "pending": "…",
    "ready": "◐",
    "ok": "✓",
    "error": "!",
    "prewarmed": "◆",
    "almost-warm": "◑",
    "standby": "◈",
    "true": "✓",
    "false": "✕",
    "not needed": "–",
    "min": "▁",
    "provisioned": "■",
    "reactive": "◆",
    "feed-forward": "»",
    "release": "⇪",
    "plans": "✎",
    "holding": "◷",
    "done": "✓",
    "stopped": "✕",
    "aborted": "⊘",
    "superseded": "↷",
    "in force": "●",
    "was in force": "✓",
    "to come": "○",
    "not reached": "–",
}
"""Each state has a sign of its own: none is told by colour alone."""


def column(title: str, kind: str = "") -> Column:
    """`kind`: "" (text), number, wide or line (takes what is left)."""
    return {"title": title, "kind": kind}


def mark(state: str, text: str = "", sub: str = "") -> Cell:
    """A state as a sign and a word."""
    return {"mark": {"sign": SIGNS.get(state, "!"), "tone": state.replace(" ", "-")}, "text": text or state, "sub": sub}


def choice(text: str, choose: str, sub: str = "") -> Cell:
    return {"text": text, "choose": choose, "sub": sub}


def row(key: str, cells: Sequence[Cell], chosen: bool = False) -> Row:
    """`key` is unique in its table: a reader's focus stays on the row when others come and go."""
    return {"key": key, "cells": list(cells), "chosen": chosen}

"""The decision feed: decisions as rows, what they came to as figures, and which are kept while they stream in. Pure."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.page import cells, figures
from orchestrator.page.cells import Row

OUTCOMES = ("hit", "late", "wasted", "cancelled", "ready", "pending")
KEPT = 1_000

COLUMNS = [
    cells.column("Decided"),
    cells.column("Function"),
    cells.column("Outcome"),
    cells.column("Why", "wide"),
    cells.column("Evidence", "wide"),
    cells.column("Preparing", "number"),
    cells.column("Saved", "number"),
]


class Feed:
    """The newest KEPT decisions by id; a decision that changed takes the place of what was known of it."""

    def __init__(self) -> None:
        self._decisions: OrderedDict[str, Mapping[str, Any]] = OrderedDict()

    def take(self, decisions: Iterable[Mapping[str, Any]]) -> None:
        """Decisions in the order they were made, or changed."""
        for one in decisions:
            self._decisions[one["decision_id"]] = one
        while len(self._decisions) > KEPT:
            self._decisions.popitem(last=False)

    def get(self, decision_id: str) -> Mapping[str, Any] | None:
        return self._decisions.get(decision_id)

    def newest(self, function: str = "", outcome: str = "") -> list[Mapping[str, Any]]:
        """Newest first; `function` is part of a name, `outcome` one of OUTCOMES, empty ones let everything through."""
        found = [
            one
            for one in self._decisions.values()
            if (not outcome or one["outcome"] == outcome) and function.lower() in one["function"].lower()
        ]
        return sorted(found, key=lambda one: (one["created_at"], one["decision_id"]), reverse=True)

    def __len__(self) -> int:
        return len(self._decisions)


def rows(decisions: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [_row(one) for one in decisions]


def _row(one: Mapping[str, Any]) -> Row:
    which = f" #{one['ordinal']}" if one["ordinal"] > 1 else ""
    because = f"for a run of {one['entry']}" if one["trigger"] == "invocation" else f"{one['trigger']} {one['entry']}"
    instead = one["detail"] if one["outcome"] in ("cancelled", "wasted") else ""
    asked = cells.choice(one["reason"], f"why {one['decision_id']}", instead)
    function = f"standby for {len(one['covers'])}" if one["level"] == "standby" else one["function"] + which
    return cells.row(
        one["decision_id"],
        [
            {"at": one["created_at"]},
            cells.choice(function, f"run {one['trace_id']}", because) if one["trace_id"] else {"text": function, "sub": because},
            cells.mark(one["outcome"]),
            asked,
            evidence(one["evidence"]),
            figures.milliseconds(one["start_ms"] or None),
            figures.milliseconds(one["saved_ms"] or None),
        ],
    )


def evidence(found: Mapping[str, Any]) -> str:
    """What a decision stands on, in one line."""
    parts = [f"reach {figures.percent(found['reach'])}"]
    parts.append(f"{found['source']}, {figures.count(found['samples'], 'trace')}" if found["samples"] else found["source"])
    if found["lead_ms"] is not None:
        parts.append(f"needed in {figures.milliseconds(found['lead_ms'])}")
    if found["price"]:
        parts.append(f"price {found['price']:.2f}")
    return " · ".join(parts)


def tiles(totals: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, what it says) of each total; the API's definitions are in orchestrator.planner.totals."""
    outcomes = totals["outcomes"]
    ended = outcomes["hit"] + outcomes["late"] + outcomes["wasted"]
    hit = "no figure yet" if totals["hit_ratio"] is None else figures.percent(totals["hit_ratio"])
    return [
        ("Hit ratio", hit, f"{outcomes['hit']:,} of {figures.count(ended, 'prepared instance')}"),
        ("Time saved", figures.seconds(totals["saved_s"]), "preparing that no invocation waited for"),
        ("Wasted", figures.seconds(totals["wasted_instance_s"]), "instances kept ready that nobody used"),
        (
            "Decisions",
            f"{totals['decisions']:,}",
            ", ".join(f"{outcomes[name]:,} {name}" for name in OUTCOMES if outcomes[name]) or "none yet",
        ),
    ]

"""Instances wanted, ready and busy over time, and who decided: what charts and tables say of functions. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.page import cells, figures
from orchestrator.page.cells import Row

KEPT = 600
"""Points of one version; the planner keeps as many."""

COLUMNS = [
    cells.column("Function"),
    cells.column("Wanted", "number"),
    cells.column("Ready", "number"),
    cells.column("Busy", "number"),
    cells.column("Coming", "number"),
    cells.column("Decided by"),
    cells.column("Why", "wide"),
]
TERM_COLUMNS = [
    cells.column("Version"),
    cells.column("Term"),
    cells.column("Asks for", "number"),
    cells.column("Why", "wide"),
]
CHANGE_COLUMNS = [
    cells.column("When"),
    cells.column("Wanted"),
    cells.column("Ready"),
    cells.column("Busy"),
    cells.column("Decided by"),
    cells.column("Why", "wide"),
]
COUNTS = ("wanted", "ready", "busy")

Version = Mapping[str, Any]
Point = list[Any]
"""[at, wanted, ready, busy], and in a chart of one version who decided, why, and what limited it; from `at` on."""


def by_function(versions: Iterable[Version]) -> dict[str, list[Version]]:
    """`versions` as GET /v1/scaling tells of them, "name:number" each; the one that most is wanted of comes first."""
    found: dict[str, list[Version]] = {}
    for one in versions:
        found.setdefault(one["version"].rpartition(":")[0], []).append(one)
    for of_function in found.values():
        of_function.sort(key=lambda one: (-one["wanted"], -_number(one)))
    return found


def busiest(functions: Mapping[str, Sequence[Version]], wanted: str = "") -> list[str]:
    """Names that hold `wanted`, those with most instances first."""
    names = [name for name in functions if wanted.lower() in name.lower()]
    return sorted(names, key=lambda name: (-max(_sum(functions[name], count) for count in (*COUNTS, "coming")), name))


class Course:
    """One function's points, its versions added up, as far as they are known."""

    def __init__(self) -> None:
        self._now: dict[str, tuple[int, ...]] = {}
        self._until: dict[str, float] = {}

    def take(self, versions: Iterable[Version]) -> list[Point]:
        """What is new in the histories of the API, oldest first; what is known already may be among it."""
        versions = list(versions)
        for gone in self._now.keys() - {one["version"] for one in versions}:
            del self._now[gone]
        fresh = [
            (point["at"], one["version"], tuple(point[count] for count in COUNTS))
            for one in versions
            for point in one["history"]
            if point["at"] > self._until.get(one["version"], 0.0)
        ]
        added: dict[float, Point] = {}
        for at, version, counts in sorted(fresh):
            self._now[version], self._until[version] = counts, at
            added[at] = [round(at, 2), *(sum(one) for one in zip(*self._now.values(), strict=True))]
        return list(added.values())


class Chronicle:
    """Every point of a function's versions, the newest KEPT of each."""

    def __init__(self) -> None:
        self.points: dict[str, list[Mapping[str, Any]]] = {}

    def take(self, versions: Iterable[Version]) -> dict[str, list[Point]]:
        """What is new, by version, as a chart takes it."""
        added: dict[str, list[Point]] = {}
        for one in versions:
            known = self.points.setdefault(one["version"], [])
            fresh = [point for point in one["history"] if not known or point["at"] > known[-1]["at"]]
            known.extend(fresh)
            del known[:-KEPT]
            if fresh:
                added[one["version"]] = [
                    [round(point["at"], 2), *(point[name] for name in (*COUNTS, "by", "reason", "limit"))] for point in fresh
                ]
        return added


def said(policy: str, functions: Mapping[str, Sequence[Version]], matching: Sequence[str]) -> str:
    """What all of it comes to, in a line."""
    sums = {count: sum(_sum(functions[name], count) for name in matching) for count in (*COUNTS, "coming", "short")}
    told = [f"{sums[count]:,} {count}" for count in (*COUNTS, "coming") if sums[count] or count in COUNTS]
    told += [f"no room for {sums['short']:,}"] * bool(sums["short"])
    return f"{figures.count(len(matching), 'function')}: {', '.join(told)}; policy {policy}"


def cards(names: Iterable[str], functions: Mapping[str, Sequence[Version]], chosen: str) -> list[dict[str, Any]]:
    """One for each function, as components/courses.js draws it."""
    return [_card(name, functions[name], name == chosen) for name in names]


def _card(name: str, versions: Sequence[Version], chosen: bool) -> dict[str, Any]:
    live = sorted(_number(one) for one in versions if any(one[count] for count in (*COUNTS, "coming")))
    many = "version" if len(live) == 1 else "versions"
    return {
        "key": name,
        "name": name,
        "choose": name,
        "chosen": chosen,
        "sub": f"{many} {', '.join(map(str, live))}" if live else "no instance",
        "counts": [[f"{_sum(versions, count):,}", count] for count in COUNTS],
        **_decided(versions[0]),
        "note": _note(versions),
    }


def version_cards(versions: Iterable[Version]) -> list[dict[str, Any]]:
    """Each version of one function by itself, the newest first."""
    return [
        {
            "key": one["version"],
            "name": f"Version {_number(one)}",
            "counts": [[f"{one[count]:,}", count] for count in COUNTS],
            **_decided(one),
            "note": _note([one]),
        }
        for one in sorted(versions, key=_number, reverse=True)
    ]


def _decided(one: Version) -> dict[str, Any]:
    if not one["by"]:
        return {"by": None, "why": "nothing asks for one"}
    why = one["reason"] + (f" (limited: {one['limit']})" if one["limit"] else "")
    return {"by": {"sign": cells.SIGNS.get(one["by"], "!"), "text": one["by"]}, "why": why}


def _note(versions: Sequence[Version]) -> str:
    coming, short = _sum(versions, "coming"), _sum(versions, "short")
    return ", ".join([f"{coming:,} coming"] * bool(coming) + [f"no node has room for {short:,}"] * bool(short))


def rows(names: Iterable[str], functions: Mapping[str, Sequence[Version]], chosen: str) -> list[Row]:
    """The same as a table."""
    return [_row(name, functions[name], name == chosen) for name in names]


def _row(name: str, versions: Sequence[Version], chosen: bool) -> Row:
    first, coming, short = versions[0], _sum(versions, "coming"), _sum(versions, "short")
    return cells.row(
        name,
        [
            cells.choice(name, name),
            *(f"{_sum(versions, count):,}" for count in COUNTS),
            {"text": f"{coming:,}", "sub": f"no room for {short:,}"} if short else f"{coming:,}" if coming else "",
            cells.mark(first["by"]) if first["by"] else "",
            {"text": first["reason"] or "nothing asks for one", "sub": first["limit"]},
        ],
        chosen,
    )


def term_rows(versions: Iterable[Version]) -> list[Row]:
    """What each policy asks for, now; the one that decided is marked."""
    return [
        cells.row(
            f"{one['version']} {place}",
            [
                str(_number(one)),
                cells.mark(term["source"], sub="decided" if term["source"] == one["by"] else ""),
                f"{term['count']:,}",
                {"text": term["reason"], "sub": one["limit"] if term["source"] == one["by"] else ""},
            ],
            term["source"] == one["by"],
        )
        for one in sorted(versions, key=_number, reverse=True)
        for place, term in enumerate(sorted(one["terms"], key=lambda term: (term["source"] != one["by"], -term["count"])))
    ]


def change_rows(points: Mapping[str, Sequence[Mapping[str, Any]]], every: bool, limit: int) -> tuple[list[Row], int]:
    """The newest `limit` changes of all versions, and how many there are. Those of what is wanted, of who decided, and of what
    limits it; `every`: of what is ready and busy, too."""
    told = ("wanted", "by", "limit") + (("ready", "busy") if every else ())
    found = [
        (point["at"], version, before, point)
        for version, of_version in points.items()
        for before, point in zip([None, *of_version], of_version, strict=False)
        if before is None or any(point[one] != before[one] for one in told)
    ]
    found.sort(key=lambda one: (-one[0], one[1]))
    several = len(points) > 1
    return [_change(*one, several) for one in found[:limit]], len(found)


def _change(at: float, version: str, before: Mapping[str, Any] | None, point: Mapping[str, Any], several: bool) -> Row:
    counts = [
        f"{before[count]:,} → {point[count]:,}" if before is not None and before[count] != point[count] else f"{point[count]:,}"
        for count in COUNTS
    ]
    return cells.row(
        f"{version} {at}",
        [
            {"at": at, "sub": f"version {version.rpartition(':')[2]}" if several else ""},
            *counts,
            cells.mark(point["by"]),
            {"text": point["reason"], "sub": point["limit"]},
        ],
    )


def _sum(versions: Iterable[Version], count: str) -> int:
    return sum(int(one[count]) for one in versions)


def _number(one: Version) -> int:
    return int(one["version"].rpartition(":")[2])

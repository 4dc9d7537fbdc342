"""What a run prints: one JSON object a line as soon as it is known, and a table at the end."""

import json
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from benchmarks.estimates import Estimate
from benchmarks.metrics import METRICS, Metric
from benchmarks.processes import TICKS, machine_ticks

OURS = "foreglow"


def _own_cpu_s() -> float:
    """CPU of this process and of everything it started that has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@dataclass(frozen=True)
class Line:
    metric: Metric
    system: str
    estimate: Estimate
    ratio: bool
    details: dict[str, Any]

    @property
    def met(self) -> bool | None:
        return self.metric.met(self.estimate.value) if self.system == OURS and not self.ratio else None


@dataclass
class Report:
    """`driver` and `tier` are what the node said of itself; peers have none."""

    topic: str
    out: TextIO = field(default_factory=lambda: sys.stdout)
    driver: str = ""
    tier: str = ""
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _ticks: tuple[int, int, int] = field(default_factory=machine_ticks)
    _used_s: float = field(default_factory=_own_cpu_s)

    def emit(self, name: str, estimate: Estimate, system: str = OURS, **details: Any) -> None:
        """Raises KeyError for a metric benchmarks.metrics does not define."""
        self._add(Line(METRICS[name], system, estimate, False, details))

    def emit_ratio(self, name: str, estimate: Estimate, peer: str, **details: Any) -> None:
        """Ours / the peer's, of metric `name`."""
        self._add(Line(METRICS[name], peer, estimate, True, details))

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        ours = line.system == OURS or line.ratio
        document: dict[str, Any] = {
            "metric": line.metric.name + (".ratio" if line.ratio else ""),
            "value": _rounded(line.estimate.value),
            "unit": f"{OURS}/{line.system}" if line.ratio else line.metric.unit,
            "n": line.estimate.n,
            "low": _rounded(line.estimate.low),
            "high": _rounded(line.estimate.high),
            "system": line.system,
            "driver": self.driver if ours else None,
            "tier": self.tier if ours else None,
            **line.details,
        }
        if line.met is not None:
            document |= {"budget": line.metric.budget, "met": line.met}
        print(json.dumps(document), file=self.out, flush=True)

    def note(self, text: str) -> None:
        """Something a reader of the numbers must know; printed at once and below the table."""
        self.notes.append(text)
        print(f"note: {text}", file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def machine(self) -> dict[str, Any]:
        """Where this ran, and how undisturbed: CPU that others here, and other machines, took, in % of all since it began."""
        total, idle, stolen = (now - then for now, then in zip(machine_ticks(), self._ticks, strict=True))
        others = (total - idle - stolen) - (_own_cpu_s() - self._used_s) * TICKS
        memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return {
            "cores": os.cpu_count(),
            "memory_gb": round(memory_gb),
            "kernel": ".".join(platform.release().split(".")[:2]),
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "others_percent": round(100 * max(0.0, others) / max(1, total), 1),
            "stolen_percent": round(100 * stolen / max(1, total), 1),
            "load_1min": round(os.getloadavg()[0], 1),
            "seconds": round(time.monotonic() - self._began),
        }

    def close(self) -> None:
        """The machine's line, then the table."""
        machine = self.machine()
        print(
            json.dumps(
                {
                    "metric": "run.machine",
                    "value": machine["cores"],
                    "unit": "cores",
                    "n": 1,
                    "topic": self.topic,
                    "driver": self.driver,
                    "tier": self.tier,
                    **machine,
                }
            ),
            file=self.out,
            flush=True,
        )
        others = f"others took {machine['others_percent']} %"
        where = f"driver {self.driver or '-'}, tier {self.tier or '-'}, {machine['cores']} cores, {others}"
        title = f"{self.topic}: {where}, {machine['seconds']} s"
        table = Table(title=title, title_justify="left")
        for heading in ("metric", "system", "of", "value", "95 %", "n", "budget", ""):
            table.add_column(heading, justify="right" if heading in ("value", "n", "budget") else "left")
        for line in self.lines:
            table.add_row(*_cells(line))
        console = Console(file=self.out, width=None if self.out.isatty() else 160)
        console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)


def _cells(line: Line) -> list[str]:
    estimate, metric = line.estimate, line.metric
    unit = "x" if line.ratio else metric.unit
    budget = "" if line.met is None else f"{'<=' if metric.better == 'lower' else '>='} {metric.budget:g}"
    spread = "" if estimate.low == estimate.high else f"{_short(estimate.low)} .. {_short(estimate.high)}"
    of = ", ".join(f"{key} {value}" for key, value in line.details.items())
    name, system = (f"{metric.name} ratio", f"{OURS} / {line.system}") if line.ratio else (metric.name, line.system)
    state = {True: "met", False: "NOT MET", None: ""}[line.met]
    return [name, system, of, f"{_short(estimate.value)} {unit}", spread, str(estimate.n), budget, state]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"

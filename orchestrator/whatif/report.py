"""The comparison as one document: what was replayed under which assumptions, and what each policy came to."""

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.whatif.compare import Basis, Result
from orchestrator.whatif.engine import Settings
from orchestrator.whatif.load import Load
from orchestrator.whatif.recorded import Recorded
from orchestrator.whatif.starts import Spread

HEADINGS = (
    "policy",
    "stages waited>",
    "runs with one>",
    "slower p50>",
    "p99>",
    "added s>",
    "95 %",
    "wasted GB*s>",
    "95 %",
    "cost>",
    "what it does",
)


def document(
    recorded: Recorded, load: Load, settings: Settings, basis: Basis, skip: int, results: Sequence[Result]
) -> dict[str, Any]:
    """All of it, for programs. Per 1,000 runs: added_s, wasted_s, wasted_gb_s, cost."""
    starts = settings.starts
    return {
        "traces": {
            "runs": len(recorded.traces),
            "entries": len({trace.entry for trace in recorded.traces}),
            "functions": len(functions(recorded)),
            "spans": recorded.spans,
            "left_out": dict(recorded.left_out),
        },
        "load": {"runs": len(load.arrivals), "not_counted": skip, "told": load.told},
        "starts": {
            "driver": starts.driver.name,
            "clone_ms": _ms(starts.driver.clone),
            "standby_ms": _ms(starts.driver.standby),
            "init_ms": _ms(starts.init),
            "source": starts.driver.source,
        },
        "memory_mb": settings.default_memory_mb,
        "prices": msgspec.structs.asdict(basis.prices) | {"keep_gb_s": basis.keeping.idle_gb_s},
        "keep_alive_s": basis.keep_s,
        "policies": [
            {
                "policy": result.policy,
                "rule": result.rule,
                "calibration_error": result.calibration,
                **msgspec.to_builtins(result.figures),
            }
            for result in results
        ],
    }


def functions(recorded: Recorded) -> set[str]:
    return {trace.entry for trace in recorded.traces} | {call.callee for trace in recorded.traces for call in trace.calls}


def assumptions(told: dict[str, Any]) -> list[str]:
    """The same for people, before the table."""
    traces, load, starts, prices = told["traces"], told["load"], told["starts"], told["prices"]
    left = ", ".join(f"{count} {reason}" for reason, count in traces["left_out"].items())
    return [
        f"traces   {_counted(traces['runs'], 'run')} of {_counted(traces['entries'], 'entry', 'entries')}, "
        f"{_counted(traces['functions'], 'function')}" + (f"; spans left out: {left}" if left else ""),
        f"load     {load['runs']} runs: {load['told']}; the first {load['not_counted']} teach and are not counted",
        f"starts   {starts['driver']}: clone {_range(starts['clone_ms'])}, out of a standby {_range(starts['standby_ms'])}, "
        f"init {_range(starts['init_ms'])} (median - 99 %)",
        f"prices   a second late {prices['late_s']:g}, a GB*s idle {prices['idle_gb_s']:g}, "
        f"kept after a use {prices['keep_gb_s']:g}; "
        f"{told['memory_mb']} MB an instance, kept {told['keep_alive_s']:g} s after a call where a policy has no rule of its own",
    ]


def _counted(many: int, one: str, more: str = "") -> str:
    return f"{many} {one if many == 1 else more or one + 's'}"


def row(result: Result) -> list[str]:
    """One line under HEADINGS."""
    found = result.figures
    return [
        result.policy,
        _percent(found.stages.waited),
        _percent(found.chain_cold),
        f"x{found.slowdown_p50:.2f}",
        f"x{found.slowdown_p99:.2f}",
        _short(found.added_s.value),
        f"{_short(found.added_s.low)}..{_short(found.added_s.high)}",
        _short(found.wasted_gb_s.value),
        f"{_short(found.wasted_gb_s.low)}..{_short(found.wasted_gb_s.high)}",
        _short(found.cost),
        result.rule,
    ]


def _ms(spread: Spread) -> list[float]:
    return [round(spread.p50_s * 1000, 3), round(spread.p99_s * 1000, 3)]


def _range(ms: Sequence[float]) -> str:
    return f"{ms[0]:g} ms" if ms[0] >= ms[1] else f"{ms[0]:g}-{ms[1]:g} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""Decisions and plans in the API's terms: names without their tenant, milliseconds."""

from typing import Any

import msgspec

from graph.ids import FunctionId, VersionId, name_of, number_of
from graph.plans import Evidence, PrewarmPlan
from orchestrator.planner.log import LogEntry


def decision_json(entry: LogEntry) -> dict[str, Any]:
    return {
        "revision": entry.revision,
        "decision_id": entry.decision_id,
        "plan_id": entry.plan_id,
        "function": entry.function.partition("/")[2],
        "version": number_of(VersionId(entry.version)),
        "ordinal": entry.ordinal,
        "entry": entry.entry.partition("/")[2],
        "node": entry.node,
        "trigger": entry.trigger,
        "trace_id": entry.trace_id,
        "reason": entry.reason,
        "evidence": _evidence_json(entry.evidence),
        "memory_mb": entry.memory_mb,
        "level": entry.level,
        "covers": [one.partition("/")[2] for one in entry.covers],
        "start_in_ms": entry.start_in_s * 1000,
        "expires_s": entry.expires_s,
        "created_at": entry.created_at,
        "outcome": entry.outcome,
        "ready_at": entry.ready_at or None,
        "ended_at": entry.ended_at or None,
        "start_ms": entry.start_s * 1000,
        "saved_ms": entry.saved_s * 1000,
        "idle_ms": entry.idle_s * 1000,
        "steps_ms": msgspec.structs.asdict(entry.timings),
        "source": entry.source,
        "became": entry.became.partition("/")[2],
        "invocation_id": entry.invocation_id,
        "detail": entry.detail,
    }


def _evidence_json(evidence: Evidence) -> dict[str, Any]:
    return {
        "source": evidence.source,
        "reach": evidence.reach,
        "concurrent": evidence.concurrent,
        "samples": evidence.samples,
        "lead_ms": None if evidence.lead_s is None else evidence.lead_s * 1000,
        "start_ms": None if evidence.start_s is None else evidence.start_s * 1000,
        "price": evidence.price,
        "trace_ids": list(evidence.trace_ids),
        "lead_quantiles_ms": [one * 1000 for one in evidence.lead_quantiles_s],
        "wait_cost": evidence.wait_cost,
        "idle_cost": evidence.idle_cost,
        "idle_ms": evidence.idle_s * 1000,
        "kappa": evidence.kappa,
        "alternatives": [
            {
                "what": one.what,
                "cost": one.cost,
                "start_in_ms": None if one.start_in_s is None else one.start_in_s * 1000,
            }
            for one in evidence.alternatives
        ],
    }


def plan_json(plan: PrewarmPlan) -> dict[str, Any]:
    return {
        "plan_id": plan.plan_id,
        "entry": name_of(plan.entry),
        "trigger": plan.trigger,
        "policy": plan.policy,
        "created_at": plan.created_at,
        "decisions": [
            {
                "decision_id": one.decision_id,
                "function": name_of(one.function),
                "ordinal": one.ordinal,
                "memory_mb": one.memory_mb,
                "level": one.level,
                "covers": _names(one.covers),
                "start_in_ms": one.start_in_s * 1000,
                "expires_s": one.expires_s,
                "reason": one.reason,
                "evidence": msgspec.to_builtins(one.evidence),
            }
            for one in plan.decisions
        ],
        "ready": _names(plan.ready),
        "skipped": [{"function": name_of(one.function), "why": one.why, "reach": one.reach} for one in plan.skipped],
    }


def _names(functions: tuple[FunctionId, ...]) -> list[str]:
    return [name_of(one) for one in functions]

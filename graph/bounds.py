"""The bounds of a plan: what one more instance would exceed, and what others leave. Pure."""

from collections.abc import Sequence

import msgspec

from graph.plans import Budget, PrewarmDecision


def over(budget: Budget, instances: int, memory_mb: int, more_mb: int) -> str:
    """Why one more of `more_mb` does not fit beside what is there; empty when it does."""
    if instances >= budget.instances:
        return f"the budget of {budget.instances} instances is used up"
    if memory_mb + more_mb > budget.memory_mb:
        return f"{more_mb} MB more would exceed the budget of {budget.memory_mb} MB"
    return ""


def left(budget: Budget, kept: Sequence[PrewarmDecision]) -> Budget:
    """What `kept` leave of the bounds on what may be alive."""
    return msgspec.structs.replace(
        budget,
        instances=max(0, budget.instances - len(kept)),
        memory_mb=max(0, budget.memory_mb - sum(decision.memory_mb for decision in kept)),
    )

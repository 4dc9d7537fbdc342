"""The one wanted count per version: every policy contributes a term, nothing else decides.

wanted = max(terms) within [0, max] and the tenant's budget. It is a floor: what is above it goes by idle time on the node.
"""

from collections.abc import Mapping


def wanted(terms: Mapping[str, int], maximum: int) -> int:
    """`terms`: policy name -> instances it wants now. Raises ValueError for a negative term."""
    for name, count in terms.items():
        if count < 0:
            raise ValueError(f"term {name!r} is negative: {count}")
    return min(max(terms.values(), default=0), maximum)


def missing(want: int, idle: int, busy: int, preparing: int) -> int:
    """How many more to prepare so that `want` exist, counting what runs and what is on its way."""
    return max(0, want - idle - busy - preparing)

"""What nodes have together: what is kept from look to look is what a count of everything finds."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner.inventory import Inventory
from workers.rpc.messages import VersionCount

NODES, VERSIONS = 3, ("acme/a:1", "acme/b:1", "beta/a:1")


class Node:
    def __init__(self) -> None:
        self.counts: dict[str, VersionCount] = {}


def counted(up: list[Any]) -> dict[str, Any]:
    """Anew, from what each says now."""
    found: dict[str, Any] = {"ready": {}, "have": {}, "busy": {}, "holders": {}, "tenants": {}}
    for version in VERSIONS:
        here = [(node, one) for node in up if (one := node.counts.get(version)) and one.idle + one.busy + one.preparing]
        if here:
            found["ready"][version] = sum(one.idle + one.busy for _, one in here)
            found["have"][version] = sum(one.idle + one.busy + one.preparing for _, one in here)
            found["busy"][version] = sum(one.busy for _, one in here)
            found["holders"][version] = [(node, one.idle + one.busy + one.preparing) for node, one in here]
            tenant = version.partition("/")[0]
            found["tenants"][tenant] = found["tenants"].get(tenant, 0) + 1
    return found


COUNT = st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
CHANGE = st.tuples(st.integers(0, NODES - 1), st.sampled_from(VERSIONS), COUNT)
STEP = st.tuples(st.lists(CHANGE, max_size=5), st.sampled_from(["", "", "", "goes", "turns"]))


@given(st.lists(STEP, max_size=12))
def test_it_is_what_counting_anew_finds(steps: list[tuple[list[tuple[int, str, tuple[int, int, int] | None]], str]]) -> None:
    nodes, inventory = [Node() for _ in range(NODES)], Inventory()
    up: list[Any] = list(nodes)
    for changes, fleet in steps:
        for number, version, count in changes:
            if count is None:
                nodes[number].counts.pop(version, None)
            else:
                nodes[number].counts[version] = VersionCount(version, *count)
        up = up[1:] or list(nodes) if fleet == "goes" else up[::-1] if fleet == "turns" else up
        inventory.follow(up)
        assert inventory.up == up
        assert {name: getattr(inventory, name) for name in ("ready", "have", "busy", "holders", "tenants")} == counted(up)

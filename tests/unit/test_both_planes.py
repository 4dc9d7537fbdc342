"""Two backends as one: who carries what, what is said of it, and a sandbox that one of them has wired."""

import os
from collections.abc import Iterator

import pytest
from doubles.loop import in_loop
from doubles.planes import DoublePlane

from workers.network.both import BothPlanes
from workers.networks import VpcSpec
from workers.ports import NetworkUnavailable, SandboxNetwork

VPC, OTHER = (VpcSpec(f"acme/{name}", "acme", number, 1, ("10.0.0.0/16",)) for number, name in enumerate(("db", "cache"), 1))


class Named(DoublePlane):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend


async def pair() -> tuple[BothPlanes, Named, Named]:
    kernel, portable = Named("kernel"), Named("portable")
    both = BothPlanes(kernel, portable)
    await both.use([VPC, OTHER])
    return both, kernel, portable


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    made = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield SandboxNetwork(made)
    os.close(made)


@in_loop
async def test_the_better_one_carries_what_it_reaches_and_the_other_the_rest(network: SandboxNetwork) -> None:
    both, kernel, portable = await pair()
    kernel.closed["acme/cache"] = "it has no fixed address"
    states = {one.vpc: one for one in both.states()}
    assert (states["acme/db"].backend, states["acme/cache"].backend) == ("kernel", "portable")
    assert "not kernel: it has no fixed address" in states["acme/cache"].reason
    for spec in (VPC, OTHER):
        assert (await both.opened(spec.vpc, 0.1)).ready
        await both.attach(spec.vpc, "none", network)
    await both.attach("", "internet", network)
    assert [one.vpc for one in kernel.attached] == ["acme/db"]
    assert [one.vpc for one in portable.attached] == ["acme/cache", ""]
    assert {one.vpc: one.attached for one in both.states()} == {"acme/db": 1, "acme/cache": 1}


@in_loop
async def test_where_neither_reaches_it_both_say_why() -> None:
    both, kernel, portable = await pair()
    kernel.closed["acme/db"], portable.closed["acme/db"] = "no underlay", "the proxy is away"
    with pytest.raises(NetworkUnavailable, match=r"no underlay; not .*: the proxy is away"):
        await both.opened("acme/db", 0.01)
    with pytest.raises(NetworkUnavailable, match="was not told"):
        await both.opened("acme/none", 0.01)


@in_loop
async def test_a_sandbox_that_the_other_one_wired_stays_with_it(network: SandboxNetwork) -> None:
    both, kernel, portable = await pair()
    kernel.closed |= dict.fromkeys(("acme/db", "acme/cache"), "no proxy")
    await both.wire(network)
    assert len(portable.wired) == 1
    kernel.closed.clear()
    again = SandboxNetwork(os.dup(network.namespace))
    try:
        await both.attach("acme/db", "none", again)
    finally:
        os.close(again.namespace)
    assert (len(kernel.attached), len(portable.attached)) == (0, 1), "by whatever descriptor it is shown"


@in_loop
async def test_what_the_better_one_wired_is_in_nobodys_way(network: SandboxNetwork) -> None:
    both, kernel, portable = await pair()
    for vpc, egress in (("", "internet"), ("acme/db", "none")):
        kernel.closed.clear()
        await both.wire(network)
        kernel.closed["acme/db"] = "lost"
        await both.attach(vpc, egress, network)
    assert [one.vpc for one in portable.attached] == ["", "acme/db"], "the Internet alone, and a way that was lost meanwhile"
    assert (len(kernel.wired), len(kernel.attached)) == (2, 0)


@in_loop
async def test_nothing_is_wired_ahead_while_it_is_open_who_carries(network: SandboxNetwork) -> None:
    both, kernel, portable = await pair()
    kernel.closed["acme/cache"] = "it has no fixed address"
    await both.wire(network)
    assert kernel.wired == portable.wired == []
    await both.stop()
    assert kernel.stopped
    assert portable.stopped


@in_loop
async def test_what_a_start_takes_does_not_grow_with_the_networks_of_others(network: SandboxNetwork) -> None:
    both, kernel, portable = await pair()
    await both.use([VpcSpec(f"acme/{number}", "acme", number, 1, ("10.0.0.0/16",)) for number in range(1, 200)])
    await both.wire(network)
    assert kernel.listed + portable.listed <= 2, "a standby: each is looked through once"
    assert kernel.looked + portable.looked <= 2
    kernel.listed = portable.listed = 0
    await both.opened("acme/7", 0.1)
    await both.attach("acme/7", "none", network)
    assert kernel.listed + portable.listed == 0, "a start: only its own is looked at"

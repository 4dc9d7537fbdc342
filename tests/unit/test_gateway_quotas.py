"""Quotas at the gateway: who is refused, how it is said, and that nobody waits for himself."""

import asyncio
from pathlib import Path

import pytest
from doubles.gateways import OTHER_TOKEN, running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.sandboxes import silent
from doubles.stories import Story

from orchestrator.catalog.routes import TenantRoute
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.allowances import Allowances, OverQuota
from orchestrator.quotas import OwnQuotas, Quotas

ECHO = spec("echo")


@in_loop
async def test_over_its_concurrency_a_tenant_gets_429_with_the_reason_and_nobody_else_does(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(ECHO, spec("echo", tenant="other"))
        gate.allow("acme", concurrency=2)
        rig.driver.handler = silent
        running = [asyncio.ensure_future(gate.post("echo")) for _ in range(2)]
        await until(lambda: len(gate.runs) == 2)
        refused = await gate.post("echo")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        problem = refused.json()
        assert problem["type"] == "foreglow:over-quota"
        for word in ("concurrency", "acme", "is 2", "2 invocations are in flight", "operator", "--concurrency"):
            assert word in problem["detail"]
        assert gate.allowances.in_flight() == {"acme": 2}
        other = asyncio.ensure_future(gate.post("echo", authorization=f"Bearer {OTHER_TOKEN}"))
        await until(lambda: gate.allowances.in_flight() == {"acme": 2, "other": 1})
        for one in (*running, other):
            one.cancel()
        await asyncio.gather(*running, other, return_exceptions=True)
        await until(lambda: not gate.allowances.in_flight())


@in_loop
async def test_a_run_that_was_admitted_is_never_stopped_by_its_own_quota(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        gate.serve(spec("entry"), spec("middle"), spec("leaf"))
        gate.allow("acme", concurrency=1, invocations_per_s=0.1)
        Story(rig, entry=["middle", "leaf"], middle=["leaf:1"])
        async with asyncio.timeout(30):
            assert (await gate.post("entry")).status_code == 200
        assert gate.allowances.in_flight() == {}
        late = await gate.post("entry")  # the children have taken the tokens of the next
        assert late.status_code == 429
        assert 10 < int(late.headers["retry-after"]) <= 20, "its own would be there after ten seconds"


@in_loop
async def test_what_fails_gives_its_place_back(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig, max_payload=10) as gate:
        gate.serve(ECHO)
        gate.allow("acme", concurrency=1)
        for content, status in ((bytes(11), 413), (b"1", 200), (bytes(11), 413), (b"1", 200)):
            assert (await gate.post("echo", content)).status_code == status
        assert gate.allowances.in_flight() == {}


def table_with(**quotas: float) -> RouteTable:
    table = RouteTable()
    table.change("tenant", "acme", TenantRoute("acme", 1, OwnQuotas(**quotas)))  # type: ignore[arg-type]
    return table


def admitted(allowances: Allowances, asked: int, now: float = 1000.0) -> int:
    count = 0
    for _ in range(asked):
        try:
            allowances.enter("acme", "k", now)
        except OverQuota:
            continue
        count += 1
    return count


@pytest.mark.parametrize(("gateways", "expected"), [(1, 10), (2, 5), (3, 4), (50, 1)])
def test_each_gateway_has_its_share(gateways: int, expected: int) -> None:
    allowances = Allowances(table_with(concurrency=10), Quotas())
    allowances.gateways = gateways
    assert admitted(allowances, 20) == expected


def test_a_new_quota_is_in_force_at_once_and_takes_nothing_from_what_runs() -> None:
    table = table_with(concurrency=3)
    allowances = Allowances(table, Quotas())
    assert admitted(allowances, 9) == 3
    table.change("tenant", "acme", TenantRoute("acme", 2, OwnQuotas(concurrency=1)))
    assert admitted(allowances, 9) == 0
    table.change("tenant", "acme", TenantRoute("acme", 3, OwnQuotas(concurrency=5)))
    assert admitted(allowances, 9) == 2
    table.change("tenant", "acme", None)
    assert admitted(allowances, 9) == 9  # the defaults


def test_a_rate_lets_through_its_burst_and_then_so_many_a_second() -> None:
    allowances = Allowances(table_with(invocations_per_s=5.0), Quotas())
    assert admitted(allowances, 20, 1000.0) == 5
    assert admitted(allowances, 20, 1000.5) == 2
    with pytest.raises(OverQuota, match=r"invocations_per_s of tenant acme is 5") as refused:
        allowances.enter("acme", "k", 1000.5)
    assert refused.value.retry_after_s == 1


def test_a_quota_of_nothing_stops_a_tenant() -> None:
    assert admitted(Allowances(table_with(concurrency=0), Quotas()), 3) == 0
    assert admitted(Allowances(table_with(invocations_per_s=0), Quotas()), 3) == 0

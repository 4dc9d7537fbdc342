"""A removed tenant leaves nothing: on nodes no instance, standby, template, code or log; in the planner nothing learned."""

import asyncio
import io
import time
from pathlib import Path

from doubles.gateways import OTHER_TOKEN, running_gateway
from doubles.loop import in_loop, until
from doubles.nodes import running_node, spec
from doubles.planners import deploy, running_planner
from doubles.sandboxes import silent
from doubles.stories import Story

from graph.ids import TenantId
from orchestrator.catalog.routes import TenantRoute
from orchestrator.quotas import OwnQuotas
from workers.code.chunks import chunk_key
from workers.code.layers import Source
from workers.code.origin import Origin
from workers.code.publishing import publish_layer
from workers.code.tier1 import Tier1
from workers.versions import CodePackage, Kind, VersionSpec

CLUSTER_KEY = b"the cluster's key"
GONE = TenantRoute("acme", 9, OwnQuotas(), removed=True)
CALLS = {"entry": ["a"]}


@in_loop
async def test_everything_of_a_removed_tenant_goes_and_nothing_of_another(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path, standbys=1) as rig,
        running_gateway(rig) as gate,
        running_planner(gate, tmp_path, rig) as mind,
    ):
        others = spec("entry", tenant="other")
        deploy(gate, mind, spec("entry"), spec("a"), others, calls=CALLS)
        Story(rig, **CALLS)
        for token in ("", f"Bearer {OTHER_TOKEN}"):
            assert (await gate.post("entry", **({"authorization": token} if token else {}))).status_code == 200
        await mind.heard(1)
        mind.settle()
        await until(lambda: {clone.tenant for clone in rig.driver.alive if clone.work is None} == {"acme", "other"})
        rig.driver.handler = silent
        running = asyncio.ensure_future(gate.post("entry"))
        await until(lambda: gate.allowances.in_flight() == {"acme": 1})
        mind.planner.loop.policies["acme"] = "off"
        assert mind.planner.graph.functions(TenantId("acme"))

        mind.planner.table.change("tenant", "acme", GONE)
        assert (await running).status_code == 502
        await until(lambda: rig.driver.retired == ["acme"])
        assert rig.code.forgotten == ["acme"]
        await until(lambda: {clone.tenant for clone in rig.driver.alive} == {"other"})
        assert await (await rig.caller("control")).connection.ask("logs", 5.0, tenant="acme", function="entry") == []
        late = await gate.post("entry")  # a gateway that does not know yet
        assert late.status_code == 503
        await until(lambda: not gate.reports._records)
        await asyncio.sleep(0.1)
        mind.settle()
        planner = mind.planner
        assert planner.graph.functions(TenantId("acme")) == []
        assert "other/entry" in planner.graph.functions(TenantId("other"))
        assert planner.runs.list("acme", 10) == []
        assert planner.activity.of("acme", time.time())["functions"] == []
        assert len(planner.runs.list("other", 10)) == 1
        assert {one.tenant for one in planner.decisions.entries()} <= {"other"}
        assert "acme" not in planner.loop.policies
        assert {clone.tenant for clone in rig.driver.alive} == {"other"}


@in_loop
async def test_who_was_away_hears_of_it_when_he_is_back(tmp_path: Path) -> None:
    async with running_node(tmp_path) as rig, running_gateway(rig) as gate:
        async with running_planner(gate, tmp_path, rig) as mind:
            deploy(gate, mind, spec("entry"), spec("a"), calls=CALLS)
            Story(rig, **CALLS)
            assert (await gate.post("entry")).status_code == 200
            await mind.heard(1)
            mind.settle()
            await mind.planner.save()
        async with running_planner(gate, tmp_path, rig) as mind:
            assert mind.planner.runs.list("acme", 10)
            mind.planner.table.replace({}, {}, tenant={"acme": GONE})
            assert mind.planner.runs.list("acme", 10) == []
            assert mind.planner.graph.functions(TenantId("acme")) == []
            await until(lambda: "acme" in rig.driver.retired)
            await mind.planner.save()
        async with running_planner(gate, tmp_path, rig) as mind:
            assert mind.planner.runs.list("acme", 10) == []


def test_tier_1_forgets_a_tenant_whole_and_no_other(tmp_path: Path) -> None:
    origin = Origin((tmp_path / "origin").as_uri())

    def layer_of(tenant: str) -> VersionSpec:
        source = Source("handler.py", False, 1, lambda: io.BytesIO(b"1"))
        manifest = publish_layer(origin, tenant, chunk_key(CLUSTER_KEY, tenant), [source])
        return VersionSpec(
            f"{tenant}/f:1", tenant, "handler:f", Kind.EVENT, "python3.11", 128, 30.0, 1, CodePackage(manifest.digest)
        )

    async def story() -> None:
        tier = Tier1(tmp_path / "code", [origin], CLUSTER_KEY)
        acme, other = layer_of("acme"), layer_of("other")
        for one in (acme, other):
            await tier.fetch(one)
        tier.pin(acme)
        await tier.forget("acme")
        assert not tier.held(acme)
        assert tier.held(other)
        assert tier.bytes_held == 4096  # a block
        assert {one.name for one in (tmp_path / "code").iterdir() if one.is_dir()} == {"other"}
        await tier.forget("acme")
        tier.unpin(acme)
        tier.close()

    asyncio.run(story())
    origin.forget_tenant("acme")
    origin.forget_tenant("acme")
    assert not origin.holds("acme", layer_digest := layer_of("other").package.layers[0])
    assert origin.holds("other", layer_digest)

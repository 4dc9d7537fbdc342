"""Where code comes from, and what happens when it does not come, or comes damaged."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.layers import CLUSTER_KEY, Faulty, Parcels, publish, version
from doubles.loop import in_loop, settle, until

from workers.code import errands, fetching, hosting, sweeping
from workers.code.manifest import PARCEL_CHUNKS
from workers.code.origin import Origin
from workers.code.room import Bounds
from workers.code.tier1 import Tier1
from workers.ports import CodeUnavailable
from workers.versions import VersionSpec

KIB = 1 << 10
CHUNK = 512 * KIB


class Scene:
    """A tier 1 with a zone and an origin behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Origin((folder / "origin").as_uri())
        self.zone = Faulty(self.store, "tier2")
        self.origin = Faulty(self.store, "origin")
        self.made: list[Tier1] = []

    def tier(self, bounds: Bounds | None = None) -> Tier1:
        self.made.append(Tier1(self.folder / "code", [self.zone, self.origin], CLUSTER_KEY, bounds))
        return self.made[-1]

    def layer(self, size: int, name: str = "f", tenant: str = "acme") -> VersionSpec:
        return version(publish(self.store, {"handler.py": os.urandom(size)}, tenant), tenant=tenant, name=name)

    def left(self) -> list[str]:
        return [path.name for path in (self.folder / "code").glob("*/*") if "." in path.name]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    for source in (made.zone, made.origin):
        source.turn.set()
    for tier in made.made:
        tier.close()


@in_loop
async def test_what_the_zone_has_comes_from_there_and_then_it_is_here(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(3 * CHUNK)
    assert (await tier.fetch(one)).source == "tier2"
    assert (await tier.fetch(one)).source == "tier1"
    assert scene.origin.asked.total() == 0
    assert tier.tally.requests == {"tier2": 1, "tier1": 1}
    assert tier.fetcher.brought == {"tier2": 3 * CHUNK}


@in_loop
async def test_with_the_zone_down_the_origin_serves(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(3 * CHUNK)
    scene.zone.away = True
    fetched = await tier.fetch(one)
    assert fetched.source == "origin"
    assert (fetched.folders[0] / "handler.py").stat().st_size == 3 * CHUNK


@in_loop
async def test_without_the_zone_chunks_still_come_several_at_a_time(scene: Scene) -> None:
    tier = scene.tier()
    for spoilt in ("away", "there"):
        setattr(scene.zone, spoilt, spoilt == "away")
        one = scene.layer(12 * CHUNK, spoilt)
        scene.zone.asked.clear()
        scene.origin.asked.clear()
        scene.origin.held[one.package.code] = threading.Event()
        fetching_it = asyncio.ensure_future(tier.fetch(one))
        await until(lambda: scene.origin.asked["chunk"] == fetching.AHEAD)
        scene.origin.held[one.package.code].set()
        assert (await fetching_it).source == "origin"
        assert scene.zone.asked.total() == (1 if spoilt == "away" else 0)


@in_loop
async def test_a_zone_that_stands_still_is_left_alone_for_a_moment(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "REST_S", 60.0)
    tier = scene.tier()
    tier.fetcher._lanes[0].answer_s = 0.2  # the origin may take its time
    first, second = scene.layer(3 * CHUNK), scene.layer(CHUNK, "g")
    scene.zone.turn.clear()
    assert (await tier.fetch(first)).source == "origin"
    asked = scene.zone.asked.total()
    assert (await tier.fetch(second)).source == "origin"
    assert scene.zone.asked.total() == asked == 1, "it was asked once, and nobody waited for it again"
    assert tier.fetcher.silent == {"tier2": 1}


@in_loop
async def test_a_zone_that_stops_in_the_middle_of_a_layer_is_passed_by(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(20 * CHUNK)
    tier.fetcher._lanes[0].answer_s = 0.2
    scene.zone.on_chunk = lambda number: scene.zone.turn.clear() if number == 4 else None
    fetched = await tier.fetch(one)
    assert fetched.source == "origin"
    assert (fetched.folders[0] / "handler.py").stat().st_size == 20 * CHUNK
    assert scene.left() == []


@in_loop
async def test_a_chunk_damaged_on_its_way_is_asked_for_once_more(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(CHUNK)
    scene.zone.spoil = lambda number, stored: stored[:-1] + bytes([stored[-1] ^ 1]) if number == 1 else stored
    assert (await tier.fetch(one)).source == "tier2"
    assert (scene.zone.asked["chunk"], scene.origin.asked["chunk"]) == (2, 0)
    assert tier.fetcher.damaged == {"tier2": 1}


@in_loop
async def test_a_chunk_that_stays_damaged_comes_from_the_next_source(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(CHUNK)
    scene.zone.spoil = lambda number, stored: b"\0" * len(stored)
    assert (await tier.fetch(one)).source == "origin"
    assert (scene.zone.asked["chunk"], scene.origin.asked["chunk"]) == (2, 1)


@in_loop
async def test_damaged_everywhere_is_a_clear_error_and_leaves_nothing(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(4 * CHUNK)
    for source in (scene.zone, scene.origin):
        source.spoil = lambda number, stored: stored[:-1]
    with pytest.raises(CodeUnavailable, match=r"layer sha256:\w+ of tenant acme: tier2: chunk \w+: .*; origin: chunk \w+: "):
        await tier.fetch(one)
    assert list((scene.folder / "code").glob("acme/*")) == []
    assert tier.bytes_held == tier.bytes_of("acme") == 0
    scene.zone.spoil = lambda number, stored: stored
    assert (await tier.fetch(one)).source == "tier2", "the next start tries again"


@in_loop
async def test_what_is_here_needs_no_source(scene: Scene) -> None:
    tier, here, missing = scene.tier(), scene.layer(CHUNK), scene.layer(CHUNK, "g")
    await tier.fetch(here)
    scene.zone.away = True
    scene.origin.turn.clear()
    waiting = asyncio.ensure_future(tier.fetch(missing))
    await until(lambda: scene.origin.asked["manifest"])
    assert (await tier.fetch(here)).source == "tier1"
    assert not waiting.done()
    scene.origin.turn.set()
    assert (await waiting).source == "origin"


@in_loop
async def test_a_version_deleted_while_it_is_fetched_fails_clearly_and_leaves_nothing(scene: Scene) -> None:
    tier, one = scene.tier(), scene.layer(20 * CHUNK)

    def delete(number: int) -> None:
        if number == 5:
            scene.store.forget_tenant("acme")

    scene.zone.on_chunk = delete
    with pytest.raises(CodeUnavailable, match="not in the origin"):
        await tier.fetch(one)
    assert list((scene.folder / "code").glob("acme/*")) == []
    assert tier.bytes_of("acme") == 0


@in_loop
async def test_forgetting_a_tenant_ends_what_is_on_its_way_and_it_never_comes_back(scene: Scene) -> None:
    tier, one, other = scene.tier(), scene.layer(20 * CHUNK), scene.layer(CHUNK, tenant="rival")
    await tier.fetch(other)
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if number == 5:
            loop.call_soon_threadsafe(reached.set)
            scene.zone.turn.clear()

    scene.zone.asked.clear()
    scene.zone.on_chunk = stop
    fetching_it = asyncio.ensure_future(tier.fetch(one))
    await reached.wait()
    forgetting = asyncio.ensure_future(tier.forget("acme"))
    await settle()
    scene.zone.turn.set()
    await forgetting
    with pytest.raises(CodeUnavailable, match=r"given up|gone"):
        await fetching_it
    scene.zone.on_chunk = lambda number: None
    with pytest.raises(CodeUnavailable, match="gone"):
        await tier.fetch(one)
    tier.bring("acme", [one])
    await settle()
    assert [path.name for path in (scene.folder / "code").iterdir() if path.is_dir()] == ["rival"]
    assert (tier.bytes_of("acme"), tier.held(other)) == (0, True)


@in_loop
async def test_what_was_evicted_is_deleted_when_nobody_waits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "PUT_OFF_S", 60.0)
    tier = scene.tier(Bounds(CHUNK, 1 << 30))
    await tier.fetch(scene.layer(CHUNK))
    behind = scene.layer(2 * CHUNK, "g")
    gate = scene.zone.held[behind.package.code] = threading.Event()
    coming = asyncio.ensure_future(tier.fetch(behind))
    await until(lambda: scene.zone.asked["chunk"] >= 2)
    await asyncio.sleep(3 * sweeping.QUIET_S)
    assert any(".gone-" in name for name in scene.left()), "it is out of the way, and not deleted while another one is waited for"
    gate.set()
    await coming
    await until(lambda: not scene.left())


@in_loop
async def test_what_was_evicted_is_deleted_all_the_same_when_somebody_always_waits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PUT_OFF_S", 2.0)
    tier = scene.tier(Bounds(CHUNK, 1 << 30))
    await tier.fetch(scene.layer(CHUNK))
    behind = scene.layer(2 * CHUNK, "g")
    scene.zone.held[behind.package.code] = threading.Event()
    coming = asyncio.ensure_future(tier.fetch(behind))
    await until(lambda: any(".gone-" in name for name in scene.left()))
    await until(lambda: not any(".gone-" in name for name in scene.left()))
    assert not coming.done()
    scene.zone.held[behind.package.code].set()
    await coming


# -- parcels


class ParcelScene(Scene):
    """The zone sends parcels."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.zone: Parcels = Parcels(self.store, "tier2")


@pytest.fixture
def parcels(tmp_path: Path) -> Iterator[ParcelScene]:
    made = ParcelScene(tmp_path)
    yield made
    for tier in made.made:
        tier.close()
    assert made.zone.open == 0, "every parcel was closed"


@in_loop
async def test_a_small_layer_comes_in_one_answer(parcels: ParcelScene) -> None:
    tier, one = parcels.tier(), parcels.layer(PARCEL_CHUNKS * CHUNK)
    fetched = await tier.fetch(one)
    assert fetched.source == "tier2"
    assert (fetched.folders[0] / "handler.py").stat().st_size == PARCEL_CHUNKS * CHUNK
    assert parcels.zone.asked == {"parcel": 1}
    assert tier.fetcher.brought == {"tier2": PARCEL_CHUNKS * CHUNK}


@in_loop
async def test_of_a_larger_layer_and_of_what_nobody_waits_for_each_chunk_is_asked_for(parcels: ParcelScene) -> None:
    tier, large, small = parcels.tier(), parcels.layer((PARCEL_CHUNKS + 1) * CHUNK), parcels.layer(CHUNK, "g")
    assert (await tier.fetch(large)).source == "tier2"
    assert parcels.zone.asked == {"parcel": 1, "chunk": PARCEL_CHUNKS + 1}
    await tier.bring_ahead(small)
    assert parcels.zone.asked == {"parcel": 1, "manifest": 1, "chunk": PARCEL_CHUNKS + 2}


@pytest.mark.parametrize("wrong", ["not held", "broken off", "damaged"])
@in_loop
async def test_what_a_parcel_lacks_is_asked_for_alone(parcels: ParcelScene, wrong: str) -> None:
    tier, one = parcels.tier(), parcels.layer(5 * CHUNK)
    if wrong == "not held":
        parcels.zone.holds = lambda number: number != 2
    elif wrong == "broken off":
        parcels.zone.breaks = lambda number: number == 4
    else:
        spoilt = iter([b"damaged"])
        parcels.zone.spoil = lambda number, stored: next(spoilt, stored) if number == 3 else stored
    assert (await tier.fetch(one)).source == "tier2"
    assert parcels.zone.asked == {"parcel": 1, "chunk": 2 if wrong == "broken off" else 1}
    assert tier.fetcher.damaged == ({"tier2": 1} if wrong == "damaged" else {})


@in_loop
async def test_a_parcel_for_which_there_is_no_room_is_given_up(parcels: ParcelScene) -> None:
    tier, one = parcels.tier(Bounds(1 << 30, CHUNK)), parcels.layer(2 * CHUNK)
    with pytest.raises(CodeUnavailable, match="TENANT_BYTES"):
        await tier.fetch(one)
    assert parcels.zone.asked == {"parcel": 1}


@in_loop
async def test_a_parcel_that_comes_when_the_zone_was_left_alone_is_closed(parcels: ParcelScene) -> None:
    tier, one = parcels.tier(), parcels.layer(CHUNK)
    tier.fetcher._lanes[0].answer_s = 0.2
    parcels.zone.turn.clear()
    assert (await tier.fetch(one)).source == "origin"
    parcels.zone.turn.set()
    await until(lambda: parcels.zone.opened and not parcels.zone.open)


# -- ahead of need


@in_loop
async def test_a_hosted_tenants_versions_come_in_their_order_and_count_as_no_request(scene: Scene) -> None:
    tier = scene.tier()
    versions = [scene.layer(CHUNK, name) for name in ("often", "seldom", "never")]
    tier.bring("acme", versions)
    await until(lambda: all(tier.held(one) for one in versions))
    assert scene.zone.order == [one.package.code for one in versions]
    assert tier.tally.requests.total() == 0
    assert tier.tally.ahead == 3
    await until(lambda: tier.hosting.waiting == 0)
    assert (await tier.fetch(versions[2])).source == "tier1"


@in_loop
async def test_two_hosted_tenants_take_turns(scene: Scene) -> None:
    tier = scene.tier()
    scene.zone.turn.clear()
    mine = [scene.layer(CHUNK, f"f{number}") for number in range(3)]
    theirs = [scene.layer(CHUNK, f"f{number}", "rival") for number in range(3)]
    tier.bring("acme", mine)
    tier.bring("rival", theirs)
    scene.zone.turn.set()
    await until(lambda: all(tier.held(one) for one in mine + theirs))
    tenants = [{one.package.code: one.tenant for one in mine + theirs}[digest] for digest in scene.zone.order]
    assert tenants == ["acme", "rival"] * 3


@in_loop
async def test_what_comes_ahead_gives_way_to_what_somebody_waits_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "YIELD_S", 5.0)
    tier, ahead, wanted = scene.tier(), scene.layer(12 * CHUNK, "ahead"), scene.layer(12 * CHUNK, "wanted")
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def meet(number: int) -> None:
        if number == 2:  # the background has begun
            loop.call_soon_threadsafe(reached.set)
            scene.zone.turn.clear()

    scene.zone.on_chunk = meet
    tier.bring("acme", [ahead])
    await reached.wait()
    waiting = asyncio.ensure_future(tier.fetch(wanted))
    await until(lambda: scene.zone.asked["manifest"] == 2)
    scene.zone.on_chunk = lambda number: None
    scene.zone.turn.set()
    await waiting
    before = scene.zone.order[: len(scene.zone.order) - scene.zone.order[::-1].index(wanted.package.code)]
    assert before.count(ahead.package.code) <= 2 * fetching.AHEAD_IN_BACKGROUND + 1, "only what was under way went on"
    await until(lambda: tier.held(ahead))


@in_loop
async def test_a_request_makes_what_came_ahead_urgent(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "YIELD_S", 60.0)
    tier, one, other = scene.tier(), scene.layer(12 * CHUNK), scene.layer(12 * CHUNK, "g")
    scene.zone.held[other.package.code] = threading.Event()
    first = asyncio.ensure_future(tier.fetch(other))
    await until(lambda: scene.zone.asked["chunk"])
    tier.bring("acme", [one])
    await until(lambda: scene.zone.asked["manifest"] == 2)
    await settle()
    assert one.package.code not in scene.zone.order, "it gives way"
    assert (await tier.fetch(one)).source == "tier2"
    scene.zone.held[other.package.code].set()
    await first
    assert scene.zone.asked["manifest"] == 2, "what was on its way was not fetched twice"


@in_loop
async def test_the_background_stops_at_the_tenants_quota_and_takes_nothing_worth_more(scene: Scene) -> None:
    tier = scene.tier(Bounds(total=4 * CHUNK, tenant=2 * CHUNK))
    versions = [scene.layer(CHUNK, f"f{number}") for number in range(4)]
    tier.bring("acme", versions)
    await until(lambda: tier.hosting.stopped)
    assert [tier.held(one) for one in versions] == [True, True, False, False]
    assert tier.bytes_of("acme") == 2 * CHUNK
    used = [scene.layer(CHUNK, f"g{number}", "rival") for number in range(2)]
    for _ in range(3):
        for one in used:
            await tier.fetch(one)
    tier.bring("third", [scene.layer(2 * CHUNK, "h", "third")])
    await until(lambda: tier.hosting.stopped == 2)
    assert all(tier.held(one) for one in used + versions[:2])


@in_loop
async def test_sources_that_are_away_are_tried_again_and_only_so_often(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, one, two = scene.tier(), scene.layer(CHUNK), scene.layer(CHUNK, "g")
    tier.hosting._pause_s = 0.01
    scene.zone.away = scene.origin.away = True
    tier.bring("acme", [one])
    await until(lambda: tier.hosting.failed == 1)
    assert scene.origin.asked["manifest"] == hosting.TRIES
    scene.zone.away = False
    tier.bring("acme", [one, two])
    await until(lambda: tier.held(one) and tier.held(two))


@in_loop
async def test_a_tenants_quota_makes_its_own_go_and_refuses_when_all_is_in_use(scene: Scene) -> None:
    tier = scene.tier(Bounds(total=100 * CHUNK, tenant=2 * CHUNK))
    one, two, three = (scene.layer(CHUNK, name) for name in "abc")
    other = scene.layer(CHUNK, "d", "rival")
    await tier.fetch(other)
    await tier.fetch(one)
    tier.pin(two)
    await tier.fetch(two)
    await tier.fetch(three)
    assert [tier.held(each) for each in (one, two, three, other)] == [False, True, True, True]
    tier.pin(three)
    with pytest.raises(CodeUnavailable, match=r"quota|a tenant may have on this node \(FOREGLOW_NODE_CODE_TENANT_BYTES\)"):
        await tier.fetch(one)
    assert tier.tally.evictions == {"quota": 1}
    tier.unpin(three)
    assert (await tier.fetch(one)).source == "tier2"

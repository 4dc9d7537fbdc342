"""The routes in a real Valkey and a real Redis: generations never go back, the sequence has no gap, all of it can be rebuilt."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from graph.ids import FunctionId
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus
from orchestrator.catalog.publish import GENERATIONS_KEY, SOURCE_KEY, Published, Publisher
from orchestrator.catalog.routes import FUNCTIONS_KEY, KEYS_KEY, SEQUENCE_KEY, STREAM_KEY, STREAM_LENGTH, Route, decode_route
from orchestrator.catalog.store import PublishedFunction, PublishedKey, Store
from orchestrator.catalog.watch import RouteTable, RouteWatcher

pytestmark = pytest.mark.system

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")


@pytest.fixture
def server(redis_url: str) -> str:
    return redis_url


@pytest.fixture
def raw(server: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(server)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def publisher(server: str, raw: redis.Redis) -> Iterator[Publisher]:
    made = Publisher(server)
    yield made
    made.close()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(database_url)
    made.migrate()
    made.keys.create_tenant("acme", 1)
    made.packages.register("acme", DIGEST, 1, 1, (), "", 1)
    yield made
    made.close()


def deploy(store: Store, name: str = "f") -> Route:
    settings = VersionSettings(DIGEST, "h:f", "event", "python3.11", 128, 30.0, 1)
    number = store.functions.put("acme", name, settings, 1).versions[0].number
    function = FunctionId(f"acme/{name}")
    for name in (ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(function, number, name, ConditionStatus.TRUE, "", 1)
    route = store.functions.mark_serving(function, number)
    assert route is not None
    return route


def changes(raw: redis.Redis) -> list[tuple[int, str]]:
    return [(int(fields[b"s"]), fields[b"id"].decode()) for _, fields in raw.xrange(STREAM_KEY)]


def test_a_lower_generation_never_replaces_a_higher_one(raw: redis.Redis, publisher: Publisher, store: Store) -> None:
    publisher.rebuild(store)
    older, newer = deploy(store), deploy(store)
    assert publisher.publish_route(newer) is Published.TOLD
    assert publisher.publish_route(older) is Published.NOTHING
    assert publisher.publish_route(newer) is Published.NOTHING
    assert decode_route(raw.hget(FUNCTIONS_KEY, F)) == newer
    assert len(changes(raw)) == 1


def test_a_removed_function_is_not_brought_back_by_a_late_publisher(raw: redis.Redis, publisher: Publisher, store: Store) -> None:
    publisher.rebuild(store)
    route = deploy(store)
    publisher.publish_route(route)
    store.functions.remove("acme", "f", 2)
    (removed,) = store.published_functions()
    assert publisher.publish_function(removed) is Published.TOLD
    assert publisher.publish_route(route) is Published.NOTHING
    assert raw.hget(FUNCTIONS_KEY, F) is None
    assert publisher.publish_route(deploy(store)) is Published.TOLD


def test_the_sequence_has_no_gap_however_many_publish(raw: redis.Redis, server: str, publisher: Publisher, store: Store) -> None:
    publisher.rebuild(store)
    routes = [deploy(store, f"f{number % 5}") for number in range(60)]
    others = [Publisher(server) for _ in range(3)]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: others[pair[0] % 3].publish_route(pair[1]), enumerate(routes)))
    numbers = [number for number, _ in changes(raw)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert int(raw.get(SEQUENCE_KEY) or 0) == numbers[-1]
    for number in range(5):
        newest = max((route for route in routes if route.function == f"acme/f{number}"), key=lambda route: route.generation)
        assert decode_route(raw.hget(FUNCTIONS_KEY, newest.function)) == newest
    for other in others:
        other.close()


def test_the_stream_is_bounded(raw: redis.Redis, publisher: Publisher, store: Store) -> None:
    publisher.rebuild(store)
    for number in range(STREAM_LENGTH + 1500):
        publisher.publish_key(PublishedKey(f"{number}", 1, None))
    assert raw.xlen(STREAM_KEY) < STREAM_LENGTH + 1000


def test_all_of_it_comes_back_from_the_database(raw: redis.Redis, publisher: Publisher, store: Store) -> None:
    store.keys.make_key("acme", "one", 1)
    revoked = store.keys.make_key("acme", "two", 1)
    store.keys.revoke_key("acme", revoked.key_id, 2)
    f, g = deploy(store, "f"), deploy(store, "g")
    store.functions.remove("acme", "g", 3)
    assert publisher.lost(store)
    publisher.rebuild(store)
    assert not publisher.lost(store)
    before = (raw.hgetall(FUNCTIONS_KEY), raw.hgetall(KEYS_KEY), raw.hgetall(GENERATIONS_KEY))
    assert decode_route(before[0][F.encode()]) == f
    assert len(before[1]) == 1
    raw.flushall()
    assert publisher.lost(store)
    publisher.rebuild(store)
    assert (raw.hgetall(FUNCTIONS_KEY), raw.hgetall(KEYS_KEY), raw.hgetall(GENERATIONS_KEY)) == before
    assert publisher.publish_route(g) is Published.NOTHING


def test_events_whose_tasks_were_lost_with_the_routes_are_sent_again(
    raw: redis.Redis, publisher: Publisher, store: Store
) -> None:
    publisher.rebuild(store)
    deploy(store)
    now = time.time()
    for event, module in store.outbox.due(now):
        store.outbox.claim(event, module, now)
    assert store.outbox.due(now + 1) == []
    raw.flushall()
    publisher.rebuild(store)
    assert len(store.outbox.due(time.time() + 1)) > 0


def test_a_loss_in_the_middle_of_a_rebuild_is_not_taken_for_whole(
    raw: redis.Redis, publisher: Publisher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, g = deploy(store, "f"), deploy(store, "g")
    told = publisher.publish_function

    def emptied_after(one: PublishedFunction) -> Published:
        published = told(one)
        if one.function == f.function:
            raw.flushall()
        return published

    monkeypatch.setattr(publisher, "publish_function", emptied_after)
    publisher.rebuild(store)
    assert publisher.lost(store)
    assert raw.exists(SEQUENCE_KEY) == 0
    monkeypatch.undo()
    publisher.rebuild(store)
    assert not publisher.lost(store)
    assert {decode_route(value) for value in raw.hgetall(FUNCTIONS_KEY).values()} == {f, g}


def test_several_may_rebuild_at_once_and_no_reader_loads_a_part(
    raw: redis.Redis, server: str, publisher: Publisher, store: Store
) -> None:
    routes = [deploy(store, f"f{number}") for number in range(12)]
    others = [Publisher(server) for _ in range(4)]
    for _ in range(5):
        raw.flushall()
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(other.rebuild, store) for other in others]
            while not all(one.done() for one in running):
                with raw.pipeline(transaction=True) as pipe:
                    pipe.get(SEQUENCE_KEY)
                    pipe.hlen(FUNCTIONS_KEY)
                    sequence, count = pipe.execute()
                assert sequence is None or count == len(routes)
            for one in running:
                one.result()
        assert not publisher.lost(store)
    for other in others:
        other.close()


def test_publishing_into_an_emptied_server_is_noticed_and_tells_nobody(
    raw: redis.Redis, publisher: Publisher, store: Store
) -> None:
    """A reader that loaded now would see one function and forget the others: there is no sequence, so it does not load."""
    assert publisher.publish_route(deploy(store)) is Published.LOST
    assert raw.exists(SEQUENCE_KEY) == 0
    assert changes(raw) == []


def test_another_databases_routes_are_replaced(raw: redis.Redis, publisher: Publisher, store: Store, tmp_path: Path) -> None:
    for _ in range(5):
        deploy(store, "f")
    deploy(store, "only-there")
    publisher.rebuild(store)
    other = Store(f"sqlite:///{tmp_path / 'other.db'}")
    other.migrate()
    other.keys.create_tenant("acme", 1)
    other.packages.register("acme", DIGEST, 1, 1, (), "", 1)
    route = deploy(other)
    assert publisher.lost(other)
    publisher.rebuild(other)
    assert [decode_route(value) for value in raw.hgetall(FUNCTIONS_KEY).values()] == [route]
    assert raw.get(SOURCE_KEY) == other.identity().encode()
    other.close()


def test_a_reader_ends_up_with_what_the_database_says_through_a_loss(
    raw: redis.Redis, server: str, publisher: Publisher, store: Store
) -> None:
    publisher.rebuild(store)

    async def follow() -> None:
        table = RouteTable()
        watching = asyncio.create_task(RouteWatcher(server, table).run())

        async def until(latest: dict[str, int]) -> None:
            async with asyncio.timeout(20):
                while {name: route.latest for name, route in table.routes.items()} != latest:  # noqa: ASYNC110  # no such event
                    await asyncio.sleep(0.01)

        try:
            await until({})
            publisher.publish_route(deploy(store, "f"))
            publisher.publish_route(deploy(store, "g"))
            await until({"acme/f": 1, "acme/g": 1})
            raw.flushall()
            publisher.publish_route(deploy(store, "f"))  # before anybody noticed
            await asyncio.sleep(0.2)
            assert "acme/g" in table.routes
            publisher.rebuild(store)
            await until({"acme/f": 2, "acme/g": 1})
            store.functions.remove("acme", "g", 3)
            for function in store.published_functions():
                publisher.publish_function(function)
            await until({"acme/f": 2})
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(follow())


def test_a_server_that_is_away_is_an_error_soon(tmp_path: Path, store: Store) -> None:
    away = Publisher(f"unix://{tmp_path / 'none.sock'}")
    assert not away.ping()
    for call in (lambda: away.rebuild(store), lambda: away.lost(store), lambda: away.publish_route(deploy(store))):
        with pytest.raises(redis.RedisError):
            call()
    away.close()

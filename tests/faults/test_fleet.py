"""The same platform on PostgreSQL and Redis, as a fleet has them: deploys, invocations and removals while these fail."""

import time
from collections.abc import Iterator

import pytest
import redis
from doubles.servers import Postgres, RedisServer
from faults.bench import FLUSH, KILL, STOP, Bench, Fault, recorded, settings
from faults.running import Running

pytestmark = pytest.mark.system

SINGLES = [(name, fault) for name in ("database", "redis") for fault in (KILL, STOP)] + [("redis", FLUSH)]
DOWN_S = 2.0


class Fleet(Bench):
    """The test stands for whoever runs the servers: a killed one is started again."""

    def __init__(self, platform: Running, database: Postgres, queue: RedisServer) -> None:
        super().__init__(platform)
        self._database = database
        self._queue = queue

    def flush(self) -> None:
        with redis.Redis.from_url(self._queue.url) as client:
            client.flushall()

    def pids(self, name: str) -> list[int]:
        if name == "database":
            return self._database.tree()
        if name == "redis":
            assert self._queue.process is not None
            return [self._queue.process.pid]
        return super().pids(name)

    def kill(self, name: str) -> int:
        if name == "database":
            self._database.kill()
            return 0
        if name == "redis":
            self._queue.kill()
            return 0
        return super().kill(name)

    def back(self, name: str, pid: int) -> None:
        time.sleep(DOWN_S)
        if name in ("database", "redis"):
            (self._database if name == "database" else self._queue).start()
        else:
            super().back(name, pid)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    database, queue = Postgres(), RedisServer("redis")
    try:
        database.start()
        queue.start()
        where = settings(FOREGLOW_DATABASE_URL=database.fresh(), FOREGLOW_REDIS_URL=queue.url)
        with Running(tmp_path_factory.mktemp("fleet"), where) as platform:
            assert platform.pid("valkey") is None
            with recorded(Fleet(platform, database, queue)) as made:
                yield made
    finally:
        queue.close()
        database.close()


@pytest.mark.parametrize("fault", SINGLES, ids=lambda fault: f"{fault[0]}-{fault[1].split()[0]}")
def test_one_fault_of_a_fleet(bench: Bench, fault: Fault) -> None:
    bench.suffer([fault])


def test_two_faults_of_a_fleet(bench: Bench) -> None:
    bench.suffer([("database", KILL), ("redis", KILL)])


def test_after_all_of_it_nothing_is_lost_and_nothing_is_left_on_a_fleet(bench: Bench) -> None:
    bench.finish()

"""Zone caches as real processes: killed, stopped, with damaged files, without their origin, two of them."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from doubles.zones import WAIT_S, ZoneProcess, big_layer, publish, read_all, wait_for

from orchestrator.ops.catalogue import FAMILIES, ZONE_CACHE
from workers.code.manifest import Manifest, hex_of
from workers.code.origin import Origin, OriginError
from workers.code.rendezvous import ranked
from workers.code.zone import FILL_READ_S, ZoneClient

pytestmark = pytest.mark.system

TENANT = "acme"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "origin").as_uri()


@pytest.fixture
def origin(url: str) -> Origin:
    return Origin(url)


@pytest.fixture
def zone(url: str) -> Iterator[ZoneProcess]:
    with ZoneProcess(url) as running:
        yield running


@pytest.fixture
def client(zone: ZoneProcess) -> Iterator[ZoneClient]:
    made = ZoneClient("default", None, [zone.socket])
    yield made
    made.close()


def names(manifest: Manifest) -> list[str]:
    return [chunk.name for chunk in manifest.chunks]


def http(zone: ZoneProcess) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(zone.socket)), base_url="http://zone", timeout=10)


def break_origin(url: str) -> None:
    """It is away: nothing of it can be read."""
    shutil.rmtree(url.removeprefix("file://"))


# -- reading


def test_what_it_was_asked_once_it_has_without_the_origin(
    zone: ZoneProcess, client: ZoneClient, origin: Origin, url: str
) -> None:
    layer = big_layer(origin, TENANT, 3)
    content = read_all(client, TENANT, layer)
    break_origin(url)
    assert read_all(client, TENANT, layer) == content
    assert zone.metric("foreglow_zone_requests_total", result="miss") == 4
    assert zone.metric("foreglow_zone_bytes") > layer.size


def test_many_that_ask_for_one_chunk_cost_the_origin_one(zone: ZoneProcess, client: ZoneClient, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 1)
    found: list[bytes] = []
    asking = [
        threading.Thread(target=lambda: found.append(client.chunk(TENANT, layer.digest, names(layer)[0]))) for _ in range(12)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join(WAIT_S)
    assert len(set(found)) == 1
    assert len(found) == 12
    assert zone.metric("foreglow_zone_requests_total", result="miss") == 2, "the manifest and the chunk"


def test_parts_of_a_chunk_and_one_the_caller_has_already(zone: ZoneProcess, origin: Origin) -> None:
    layer = publish(origin, TENANT, {"a.py": b"print(1)\n" * 100})
    path = f"/v1/layers/{TENANT}/{hex_of(layer.digest)}/chunks/{names(layer)[0]}"
    with http(zone) as asked:
        whole = asked.get(path)
        part = asked.get(path, headers={"range": "bytes=3-9"})
        assert (part.status_code, part.content) == (206, whole.content[3:10])
        assert part.headers["content-range"] == f"bytes 3-9/{len(whole.content)}"
        assert asked.get(path, headers={"range": f"bytes={len(whole.content)}-"}).status_code == 416
        assert asked.get(path, headers={"if-none-match": whole.headers["etag"]}).status_code == 304


def test_a_chunk_is_given_out_only_as_part_of_a_layer_that_names_it(zone: ZoneProcess, origin: Origin) -> None:
    mine, other = publish(origin, TENANT, {"a.py": b"mine"}), publish(origin, TENANT, {"b.py": b"other"})
    theirs = publish(origin, "globex", {"a.py": b"mine"})
    assert names(mine) != names(theirs), "one content, two tenants, two names"
    with http(zone) as asked:
        for tenant, layer, name, status in (
            (TENANT, mine.digest, names(mine)[0], 200),
            (TENANT, mine.digest, names(other)[0], 404),
            (TENANT, theirs.digest, names(theirs)[0], 404),
            ("globex", mine.digest, names(mine)[0], 404),
            (TENANT, mine.digest, "nonsense", 400),
            (TENANT, "sha256:" + "0" * 64, names(mine)[0], 404),
            ("..", mine.digest, names(mine)[0], 404),
        ):
            path = f"/v1/layers/{tenant}/{layer.partition(':')[2]}/chunks/{name}"
            assert asked.get(path).status_code == status, path
        fill = f"/v1/layers/{TENANT}/{hex_of(mine.digest)}/fill"
        assert asked.post(fill, json={"chunks": names(other)}).status_code == 404
        assert asked.post(fill, content=b"[]").status_code == 400
        assert asked.post(fill, content=b"x" * (2 << 20)).status_code == 400
        assert asked.get(f"/v1/layers/{TENANT}/nonsense/manifest").status_code == 400


def test_a_damaged_file_is_dropped_and_brought_again(zone: ZoneProcess, client: ZoneClient, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 2)
    content = read_all(client, TENANT, layer)
    chunk = zone.file((TENANT, "chunks", names(layer)[0]))
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    assert read_all(client, TENANT, layer) == content
    assert zone.metric("foreglow_zone_damaged_total") == 1
    assert chunk.read_bytes() != damaged
    zone.file((TENANT, "manifests", hex_of(layer.digest))).write_bytes(b"half of it")
    zone.kill()  # who knows the manifest by heart does not read it
    zone.start()
    assert read_all(client, TENANT, layer) == content
    assert zone.metric("foreglow_zone_damaged_total") == 1


def test_a_chunk_that_is_damaged_in_the_origin_is_neither_kept_nor_given_out(
    zone: ZoneProcess, client: ZoneClient, origin: Origin
) -> None:
    layer = big_layer(origin, TENANT, 1)
    good = origin.chunk(TENANT, layer.digest, names(layer)[0])
    origin.put_chunk(TENANT, names(layer)[0], good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(OriginError, match="damaged in the origin"):
        client.chunk(TENANT, layer.digest, names(layer)[0])
    assert names(layer)[0] not in zone.objects()
    origin.put_chunk(TENANT, names(layer)[0], good)
    assert client.chunk(TENANT, layer.digest, names(layer)[0]) == good


def test_it_keeps_within_its_bound_and_still_serves_what_does_not_fit(url: str, origin: Origin) -> None:
    with ZoneProcess(url, FOREGLOW_ZONE_CACHE_BYTES=str(64 << 20)) as zone:
        client = ZoneClient("default", None, [zone.socket])
        layers = [big_layer(origin, TENANT, 60, seed) for seed in (0, 1000, 2000)]
        for layer in layers:
            read_all(client, TENANT, layer)
        assert zone.metric("foreglow_zone_bytes") <= 64 << 20
        assert zone.metric("foreglow_zone_evictions_total") > 0
        client.close()


def test_its_metrics_are_the_documented_ones(zone: ZoneProcess, client: ZoneClient, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 1)
    assert client.fill(TENANT, layer.digest, names(layer), WAIT_S) == ""
    listed = {line.split()[2] for line in zone.ops("/metrics").text.splitlines() if line.startswith("# TYPE foreglow_")}
    documented = {one.name for one in FAMILIES.values() if ZONE_CACHE in one.processes}
    assert {one.removesuffix("_total") for one in listed} == documented
    assert zone.metric("foreglow_zone_fill_seconds_count") >= 1, "one, or more where it takes more than a second"
    assert zone.metric("foreglow_zone_fetched_bytes_total") == zone.metric("foreglow_zone_bytes") > layer.size


# -- killed and stopped


def test_killed_in_the_middle_of_a_fill_it_goes_on_from_what_it_had(
    zone: ZoneProcess, client: ZoneClient, origin: Origin, url: str, tmp_path: Path
) -> None:
    layer = big_layer(origin, TENANT, 120)
    last = max(names(layer))
    path, aside = Path(url.removeprefix("file://"), "chunks", TENANT, last[:2], last), tmp_path / "aside"
    path.rename(aside)
    os.mkfifo(path)  # whoever reads it waits: no fill is over before the kill
    said: list[str] = []

    def fill() -> None:
        while not said or "are missing" in said[-1]:  # given up for the one that does not come
            said.append(client.fill(TENANT, layer.digest, names(layer), WAIT_S))

    filling = threading.Thread(target=fill)
    filling.start()
    wait_for(lambda: len(zone.objects()) >= 5, "some of it is there")
    zone.kill()
    had = zone.objects()
    assert last not in had
    filling.join(WAIT_S)
    aside.replace(path)
    assert "zone-cache.sock" in said[-1], "who fills hears of it, and does not wait for ever"
    zone.start()
    assert had <= zone.objects(), "what was there is there"
    wait_for(lambda: not client.fill(TENANT, layer.digest, names(layer), WAIT_S), "it is filled in the end")
    misses = zone.metric("foreglow_zone_requests_total", result="miss")
    assert misses <= len(layer.chunks) - len(had & set(names(layer))) + 1
    content = read_all(origin, TENANT, layer)
    break_origin(url)
    assert read_all(client, TENANT, layer) == content


def test_killed_in_the_middle_of_a_fetch_the_caller_goes_to_the_origin_and_comes_back(
    zone: ZoneProcess, client: ZoneClient, origin: Origin
) -> None:
    layer = big_layer(origin, TENANT, 60)
    from_zone, from_origin, done = [], [], threading.Event()

    def fetch() -> None:
        while not done.is_set():
            for name in names(layer):
                try:
                    from_zone.append(client.chunk(TENANT, layer.digest, name))
                except OriginError:
                    from_origin.append(origin.chunk(TENANT, layer.digest, name))

    fetching = threading.Thread(target=fetch)
    fetching.start()
    wait_for(lambda: len(from_zone) > 10, "the zone serves")
    zone.kill()
    wait_for(lambda: len(from_origin) > 10, "the origin serves")
    zone.start()
    before = len(from_zone)
    wait_for(lambda: len(from_zone) > before + 10, "the zone serves again")
    done.set()
    fetching.join(WAIT_S)
    known = {origin.chunk(TENANT, layer.digest, name) for name in names(layer)}
    assert {*from_zone, *from_origin} <= known


def test_one_that_stands_still_costs_one_wait_and_then_none(zone: ZoneProcess, client: ZoneClient, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 4)
    zone.signal(signal.SIGSTOP)
    with pytest.raises(OriginError, match="TimeoutError"):
        client.manifest(TENANT, layer.digest)
    with pytest.raises(OriginError, match="left alone"):
        client.manifest(TENANT, layer.digest)
    zone.signal(signal.SIGCONT)
    wait_for(lambda: _reads(client, layer), "it is asked again once it goes on")


def test_filling_one_that_stands_still_ends_with_the_reason(zone: ZoneProcess, client: ZoneClient, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 2)
    zone.signal(signal.SIGSTOP)
    assert "TimeoutError" in client.fill(TENANT, layer.digest, names(layer), within_s=10 * FILL_READ_S)


def test_without_the_origin_it_says_so_and_the_layer_is_not_filled(
    zone: ZoneProcess, client: ZoneClient, origin: Origin, url: str
) -> None:
    layer = big_layer(origin, TENANT, 3)
    client.manifest(TENANT, layer.digest)
    shutil.rmtree(url.removeprefix("file://") + "/chunks")
    assert "not in the origin" in client.fill(TENANT, layer.digest, names(layer), WAIT_S)
    with pytest.raises(OriginError, match="not in the origin"):
        client.chunk(TENANT, layer.digest, names(layer)[0])


# -- two of them


def test_two_replicas_share_the_chunks_and_one_stands_in_for_the_other(url: str, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 40)
    with ZoneProcess(url) as one, ZoneProcess(url) as two:
        client = ZoneClient("default", None, [one.socket, two.socket])
        assert client.fill(TENANT, layer.digest, names(layer), WAIT_S) == ""
        held = [zone.objects() & set(names(layer)) for zone in (one, two)]
        assert held[0] | held[1] == set(names(layer))
        assert not held[0] & held[1], "each is where nodes ask for it first, and nowhere else"
        for name in names(layer):
            first = ranked(name, [str(one.socket), str(two.socket)])[0]
            assert name in (held[0] if first == str(one.socket) else held[1])
        before = [zone.metric("foreglow_zone_fetched_bytes_total") for zone in (one, two)]
        content = read_all(client, TENANT, layer)
        assert [zone.metric("foreglow_zone_fetched_bytes_total") for zone in (one, two)] <= [size + 4096 for size in before]
        one.kill()
        assert read_all(client, TENANT, layer) == content
        assert two.objects() >= set(names(layer)), "the other has read through what it lacked"
        client.close()


def test_a_replica_that_is_away_loses_its_share_of_a_fill_to_the_other(url: str, origin: Origin) -> None:
    layer = big_layer(origin, TENANT, 20)
    with ZoneProcess(url) as one, ZoneProcess(url) as two:
        client = ZoneClient("default", None, [one.socket, two.socket])
        one.signal(signal.SIGSTOP)
        assert client.fill(TENANT, layer.digest, names(layer), WAIT_S) == ""
        assert two.objects() >= set(names(layer))
        client.close()


def _reads(client: ZoneClient, layer: Manifest) -> bool:
    try:
        return client.manifest(TENANT, layer.digest) == layer
    except OriginError:
        return False

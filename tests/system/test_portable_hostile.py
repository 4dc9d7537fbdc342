"""A function, then a node, that tries to cross over: ten thousand attempts, and none may succeed."""

import asyncio
import concurrent.futures
import contextlib
import errno
import itertools
import select
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest
from doubles.cluster import identity
from doubles.links import Raw, hostile
from doubles.loop import until
from doubles.portable_networks import PORT, World, worlds
from doubles.private_networks import (
    ECHO_PORT,
    INTERNET,
    POSTGRES_PORT,
    REDIS_PORT,
    ROUTER,
    SERVER,
    TENANTS,
    Host,
    echo,
    greeting,
    redis,
    sandbox,
)

from workers.framing import FrameParser
from workers.network.portable.words import MAX_STREAMS, PROTOCOL, Hello, Kind, Open, Reason
from workers.networks import Rule
from workers.ports import SandboxNetwork
from workers.rpc.transport import HostPort, NotTrusted

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

METADATA = "169.254.169.254"
ATTEMPTS = 10_000
PATIENCE_S = 0.2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """acme's functions may reach Redis only. On node and proxies something listens wherever a function has no business."""
    with worlds(tmp_path_factory.mktemp("hostile")) as made:
        for host in (made.bed.nodes[0], *made.bed.proxies["acme"]):
            host.ip("address", "add", f"{METADATA}/32", "dev", "lo")
            for address in (METADATA, "127.0.0.1", host.address):
                echo(host, "host", address)
        made.tell(made.bed.spec("acme", Rule("10.0.1.0/24", "tcp", REDIS_PORT, REDIS_PORT), generation=2))
        made.opened("acme")
        yield made


def forbidden(world: World) -> list[tuple[str, int]]:
    hosts = [METADATA, "127.0.0.1", "0.0.0.0", "100.64.0.1", "100.64.0.2", "100.64.0.53", "224.0.0.1", "255.255.255.255"]
    hosts += [
        world.bed.nodes[0].address,
        "198.18.0.1",
        INTERNET,
        ROUTER,
        SERVER,
        "10.0.0.11",
        "10.0.0.12",
        "10.1.1.5",
        "192.168.1.1",
    ]
    hosts += [host.address for tenant in TENANTS for host in world.bed.proxies[tenant]]
    ports = (ECHO_PORT, POSTGRES_PORT, PORT, 1, 22, 53, 80)
    return list(itertools.product(hosts, ports)) + [
        (host, REDIS_PORT) for host in hosts if host != SERVER and not host.startswith("10.0.1.")
    ]


def try_over(places: list[tuple[str, int]], times: int) -> list[str]:
    """What a function does: connections and datagrams, over and over. Every answer it gets to any of them."""
    answered = []
    waiting: list[socket.socket] = []

    def collect() -> None:
        """Whoever answers does so at once; all are waited for together."""
        watch = select.poll()
        by_number = {sock.fileno(): sock for sock in waiting}
        for sock in waiting:
            watch.register(sock, select.POLLIN)
        end = time.monotonic() + PATIENCE_S
        while by_number and (left := end - time.monotonic()) > 0:
            for number, _ in watch.poll(left * 1000):
                watch.unregister(number)
                with contextlib.suppress(OSError):
                    if found := by_number.pop(number).recv(100):
                        answered.append(f"{found!r}")
        for sock in waiting:
            sock.close()
        waiting.clear()

    for number in range(times):
        place = places[number % len(places)]
        kind = socket.SOCK_DGRAM if number // len(places) % 3 == 2 else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        error = sock.connect_ex(place)
        if error in (0, errno.EINPROGRESS):
            with contextlib.suppress(OSError):
                sock.send(b"GET tenant\r\n")
            waiting.append(sock)
        else:
            sock.close()
        if len(waiting) >= 400:
            collect()
    collect()
    return answered


def test_a_function_never_crosses_over(world: World) -> None:
    places = forbidden(world)
    with world.function("acme") as function:
        assert function.run(lambda: try_over(places, ATTEMPTS)) == []
        assert function.run(lambda: redis("GET", "tenant")) == "acme"  # and is served as before


def test_a_function_of_no_vpc_and_one_that_was_detached_reach_nothing(world: World) -> None:
    places = [*forbidden(world), (SERVER, REDIS_PORT)]
    made = sandbox()
    assert made.run(lambda: try_over(places, 1000)) == []
    attached = world.attach("umbra", SandboxNetwork(made.namespace.descriptor))
    world.node.call(attached.detach)
    assert made.run(lambda: try_over(places, 300)) == []
    made.close()


def _tenant(function: Host, tenant: str) -> list[str]:
    return [function.run(lambda: redis("GET", "tenant")) for _ in range(10)]


def test_attaches_that_race_never_mix_tenants_up(world: World) -> None:
    for _ in range(3):
        made = [(tenant, sandbox()) for tenant in TENANTS * 6]

        async def all_at_once(made: list[tuple[str, Host]] = made) -> list[object]:
            return await asyncio.gather(
                *(world.plane.attach(f"{tenant}/main", "none", SandboxNetwork(one.namespace.descriptor)) for tenant, one in made)
            )

        attached = world.node.do(all_at_once())
        with concurrent.futures.ThreadPoolExecutor(len(made)) as pool:
            found = list(pool.map(lambda pair: _tenant(pair[1], pair[0]), made))
        assert found == [[tenant] * 10 for tenant, _ in made]
        for one in attached:
            world.node.call(one.detach)  # type: ignore[attr-defined]
        for _, one in made:
            one.close()


def test_the_same_after_failover(world: World) -> None:
    places = forbidden(world)
    primary = world.proxies["acme"][0]
    with world.function("acme") as function, world.function("umbra") as other:
        primary.kill()
        assert function.run(lambda: try_over(places, 2000)) == []
        assert function.run(lambda: redis("GET", "tenant")) == "acme"
        end = time.monotonic() + 20
        while (seen := other.run(greeting)) != ("umbra", "10.0.0.11"):  # the backup while the primary gets no CPU
            assert seen[0] == "umbra"
            assert time.monotonic() < end
            time.sleep(0.05)
    primary.start([world.specs["acme"]])


def test_a_node_that_lies_gets_no_stream_to_where_the_vpc_does_not_reach(world: World) -> None:
    """It has a good certificate and may use acme's Vpc. It says what no honest node would."""
    node, proxy = identity(world.authority, world.folder, "node", "n1"), world.bed.proxies["acme"][1]
    places = forbidden(world)
    asked = [(protocol, *place, egress) for place in places for protocol in ("tcp", "udp", "sctp") for egress in (False, True)]
    asked += [
        ("tcp", text, 80, egress)
        for text in ("::1", "localhost", "10.0.1.5/32", "", "x" * 300, "127.1")
        for egress in (False, True)
    ]
    may = {("tcp", SERVER, REDIS_PORT, egress) for egress in (False, True)}  # and names and the Internet, for who asked for that
    asked = [one for one in asked if one not in may and not (one[3] and one[1] in ("", INTERNET))]

    async def lie() -> tuple[int, int]:
        raw: Raw = await hostile(HostPort(proxy.address, PORT), node)
        raw.say(Kind.HELLO, 0, msgspec.msgpack.encode(Hello(PROTOCOL, "acme/main", 2)))
        count = 0
        while count < ATTEMPTS:
            for one in asked:
                count += 1
                raw.say(Kind.OPEN, count, msgspec.msgpack.encode(Open(*one)))
            await asyncio.sleep(0.05)
        raw.say(Kind.PING)
        pieces = FrameParser()
        accepted = answers = 0
        async with asyncio.timeout(60):
            while answers < count:
                data, raw.got = bytes(raw.got), bytearray()
                for frame in pieces.feed(data):
                    answers += frame.kind in (Kind.REFUSED, Kind.ACCEPTED)
                    accepted += frame.kind == Kind.ACCEPTED
                await asyncio.sleep(0.02)
        raw.transport.abort()
        return count, accepted

    asked_for, accepted = world.node.do(lie(), 90)
    assert asked_for >= ATTEMPTS
    assert accepted == 0


def test_a_node_that_opens_and_resets_has_no_more_under_way_than_streams(world: World) -> None:
    """Nobody answers at that address; what was reset goes on connecting for a while, and counts until it has ended."""
    node, proxy = identity(world.authority, world.folder, "node", "n3"), world.bed.proxies["acme"][1]

    async def flood() -> list[Reason]:
        raw: Raw = await hostile(HostPort(proxy.address, PORT), node)
        raw.say(Kind.HELLO, 0, msgspec.msgpack.encode(Hello(PROTOCOL, "acme/main", 2)))
        for ident in range(1, 3 * MAX_STREAMS):
            raw.say(Kind.OPEN, ident, msgspec.msgpack.encode(Open("tcp", "10.0.1.77", REDIS_PORT)))
            raw.say(Kind.RESET, ident)
        refused: list[Reason] = []
        pieces = FrameParser()

        def enough() -> bool:
            data, raw.got = bytes(raw.got), bytearray()
            refused.extend(msgspec.msgpack.decode(one.meta, type=Reason) for one in pieces.feed(data) if one.kind == Kind.REFUSED)
            return sum(reason.code == "limit" for reason in refused) >= MAX_STREAMS

        await until(enough, "what is over the limit is refused", 20)
        raw.transport.abort()
        return refused

    assert sum(reason.code == "limit" for reason in world.node.do(flood())) >= MAX_STREAMS


@pytest.mark.parametrize(("role", "vpc"), [("node", "umbra/main"), ("node", "nobody/nothing"), ("gateway", "acme/main")])
def test_who_has_no_business_with_a_vpc_gets_no_link(world: World, role: str, vpc: str) -> None:
    who, proxy = identity(world.authority, world.folder, role, "m1"), world.bed.proxies["acme"][1]

    async def knock() -> bytes:
        with contextlib.suppress(OSError, NotTrusted):
            raw = await hostile(HostPort(proxy.address, PORT), who)
            raw.say(Kind.HELLO, 0, msgspec.msgpack.encode(Hello(PROTOCOL, vpc, 2)))
            raw.say(Kind.OPEN, 1, msgspec.msgpack.encode(Open("tcp", SERVER, REDIS_PORT)))
            await asyncio.wait_for(raw.closed, 30)
            return bytes(raw.got)
        return b""

    assert not any(frame.kind in (Kind.WELCOME, Kind.ACCEPTED) for frame in FrameParser().feed(world.node.do(knock())))

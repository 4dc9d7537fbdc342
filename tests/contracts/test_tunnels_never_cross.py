"""A hostile function, with root in its own namespace, at everything it must not reach: 10,000 attempts, none may succeed.

Also while instances come and go on the same node, after an address was used again, and while the proxies change over.
"""

import contextlib
import functools
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from doubles.private_networks import ECHO_PORT, INTERNET, REDIS_PORT, SERVER, Host, echo, greeting, redis, sandbox
from doubles.tunnel_planes import BACKENDS, Backend, Network, private_network

from workers.networks import Rule

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

ATTEMPTS = 10_000
ROUND = 200
WAIT_S = 0.25
TELLTALE = 7779
"""A port on which whatever must not be reached answers with who it is, and every server of either tenant too."""


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def running(request: pytest.FixtureRequest) -> Iterator[Network]:
    """acme's functions may reach the echo and Redis; on everything else of the bed somebody listens, who would answer."""
    backend: Backend = request.param
    with private_network(backend) as made:
        allowed = [Rule(f"{SERVER}/32", "tcp", port, port) for port in (ECHO_PORT, REDIS_PORT)]
        made.use(made.bed.spec("acme", *allowed, generation=2))
        for host in (*made.bed.nodes, *made.bed.proxies["acme"], *made.bed.proxies["umbra"], made.bed.underlay):
            echo(host, "crossed", "0.0.0.0", TELLTALE)
        for network in made.bed.networks.values():
            for host in (network.lan, network.server):
                echo(host, "crossed", "0.0.0.0", TELLTALE)
        yield made


def targets(running: Network, chance: random.Random, neighbours: Sequence[str]) -> list[tuple[str, int]]:
    """Where it must not come: (address, port)."""
    hosts = [*running.bed.nodes, *running.bed.proxies["acme"], *running.bed.proxies["umbra"]]
    fixed = [host.address for host in hosts] + ["198.18.0.1", "10.0.0.1", "10.0.0.11", "10.0.0.12", "10.0.0.10", SERVER, INTERNET]
    fixed += [
        "169.254.169.254",
        "169.254.170.2",
        "100.64.0.1",
        "100.64.0.53",
        "100.80.0.1",
        "100.80.255.1",
        "100.96.0.10",
        "100.112.0.10",
    ]
    fixed += ["255.255.255.255", "224.0.0.18", "0.0.0.1", "172.16.0.1", "192.168.0.1", *neighbours]
    found = []
    for _ in range(ROUND):
        address = chance.choice(fixed)
        if chance.random() < 0.2:
            address = f"100.64.{chance.randrange(2)}.{chance.randrange(256)}"
        usual = [TELLTALE, TELLTALE, 22, 53, 80, 443, 4788, 4789, 3780, REDIS_PORT, ECHO_PORT]
        port = chance.choice([*usual, chance.randrange(1, 65536)])
        if (address, port) in ((SERVER, ECHO_PORT), (SERVER, REDIS_PORT)):
            port = TELLTALE
        found.append((address, port))
    return found


def attempts(function: Host, places: Sequence[tuple[str, int]], chance: random.Random) -> int:
    """One round of connections and datagrams at once; how many of them got any answer."""

    def run() -> int:
        answered = 0
        with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as opened:
            for number, place in enumerate(places):
                kind = socket.SOCK_DGRAM if number % 3 == 0 else socket.SOCK_STREAM
                sock = opened.enter_context(socket.socket(socket.AF_INET, kind))
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    if chance.random() < 0.2:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, chance.getrandbits(31))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sock.connect_ex(place)
                    if kind == socket.SOCK_DGRAM:
                        sock.send(b"who are you")
                with contextlib.suppress(OSError):
                    waiting.register(sock, selectors.EVENT_READ)
            end = time.monotonic() + WAIT_S
            while (left := end - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    with contextlib.suppress(OSError):
                        if key.fileobj.recv(100):  # type: ignore[union-attr]
                            answered += 1
                    waiting.unregister(key.fileobj)
        return answered

    return function.run(run)


def forged(function: Host, sources: Sequence[str], chance: random.Random) -> int:
    """A round of packets with somebody else's source address, at servers that it may reach and at those it may not."""

    def run() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for _ in range(ROUND):
                words = b"forged"
                source, target = chance.choice(sources), chance.choice([SERVER, SERVER, *sources])
                datagram = struct.pack(">HHHH", chance.randrange(1, 65536), ECHO_PORT, 8 + len(words), 0) + words
                header = struct.pack(
                    ">BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), chance.getrandbits(16), 0, 64, 17, 0,
                    socket.inet_aton(source), socket.inet_aton(target),
                )  # fmt: skip
                with contextlib.suppress(OSError):
                    raw.sendto(header + datagram, (target, 0))
        return 0

    return function.run(run)


@contextlib.contextmanager
def listening(hosts: Sequence[Host], words: bytes) -> Iterator[list[str]]:
    """What of the words comes in at any device of these hosts, by any protocol."""
    heard: list[str] = []
    ended = threading.Event()

    def listen(host: Host) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
            sock.settimeout(0.05)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    if words in sock.recv(65536):
                        heard.append(host.name)

    threads = [threading.Thread(target=host.run, args=(functools.partial(listen, host),)) for host in hosts]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    try:
        yield heard
    finally:
        time.sleep(0.1)
        ended.set()
        for thread in threads:
            thread.join()


def address_of(function: Host) -> str:
    """Its own, as it leaves; backends that give it none: loopback."""

    def ask() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((SERVER, 9))
            return str(sock.getsockname()[0])

    return function.run(ask)


def tempted(neighbours: Sequence[Host]) -> list[Host]:
    """They would answer."""
    for neighbour in neighbours:
        echo(neighbour, "crossed", "0.0.0.0", TELLTALE)
    return list(neighbours)


def besiege(running: Network, hostile: Host, neighbours: Sequence[Host], count: int, seed: int) -> None:
    chance = random.Random(seed)
    others = [address_of(neighbour) for neighbour in neighbours]
    for number in range(0, count, ROUND):
        crossed = attempts(hostile, targets(running, chance, others), chance)
        assert not crossed, f"{crossed} of {ROUND} answered in round {number // ROUND}"


def test_ten_thousand_attempts(running: Network) -> None:
    """From acme, beside another instance of acme and one of umbra, all on one node."""
    plane = running.planes[0]
    with plane.attached("acme/main") as hostile, plane.attached("umbra/main") as stranger, plane.attached("acme/main") as twin:
        assert hostile.run(greeting)[0] == "acme", "what it may reach is there"
        besiege(running, hostile, tempted([stranger, twin]), ATTEMPTS, 1)
        assert hostile.run(greeting)[0] == "acme"
        assert stranger.run(greeting)[0] == "umbra"


def test_forged_sources_arrive_nowhere(running: Network) -> None:
    plane, chance = running.planes[0], random.Random(2)
    everybody = [host for network in running.bed.networks.values() for host in (network.server, network.lan)]
    everybody += [*running.bed.proxies["umbra"], *running.bed.nodes]
    with plane.attached("acme/main") as hostile, plane.attached("umbra/main") as stranger:
        sources = [address_of(stranger), "100.96.0.10", "100.112.0.10", "100.80.0.1", SERVER, "10.0.0.10", "127.0.0.1", INTERNET]
        sources += [running.bed.nodes[0].address, "169.254.1.1"]
        with listening([*everybody, stranger], b"forged") as heard:
            for _ in range(10):
                forged(hostile, sources, chance)
        assert not heard
        assert stranger.run(greeting)[0] == "umbra"


def test_what_it_makes_of_its_own_network_helps_nobody(running: Network) -> None:
    """With every right in its namespace: another address, the stranger's even, forwarding, no filter."""
    plane = running.planes[0]
    with plane.attached("acme/main") as hostile, plane.attached("umbra/main") as stranger:
        theirs = address_of(stranger)
        devices = [line.split()[1].split("@")[0] for line in hostile.ip("-o", "link").splitlines()]
        device = next((name for name in devices if name != "lo:"), "lo")
        with contextlib.suppress(AssertionError):
            hostile.ip("address", "add", f"{theirs}/32", "dev", device.rstrip(":"))

        def as_the_stranger() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(WAIT_S)
                try:
                    sock.bind((theirs, 0))
                    sock.connect((SERVER, ECHO_PORT))
                    return sock.recv(100).startswith(b"umbra")
                except OSError:
                    return False

        for _ in range(10):
            assert not hostile.run(as_the_stranger)
        besiege(running, hostile, [], 400, 3)
        assert stranger.run(greeting)[0] == "umbra"


def test_while_instances_come_and_go(running: Network) -> None:
    """Tenants by turns on the same places: every answer is the own tenant's, attached or not a moment ago."""
    plane = running.planes[0]
    wrong: list[str] = []

    def live(tenant: str, rounds: int) -> None:
        for _ in range(rounds):
            function = sandbox()
            try:
                detach = plane.attach(f"{tenant}/main", function)
                connection = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5))
                with connection:
                    connection.settimeout(2)
                    if not connection.recv(100).startswith(tenant.encode()):
                        wrong.append(tenant)
                    detach()
                    connection.settimeout(0.05)
                    with contextlib.suppress(OSError):
                        connection.send(b"still there")
                        if connection.recv(100):
                            wrong.append(f"{tenant} after detaching")
            finally:
                function.close()

    threads = [threading.Thread(target=live, args=(tenant, 25)) for tenant in ("acme", "umbra") * 2]
    for thread in threads:
        thread.start()
    with plane.attached("acme/main") as hostile:
        besiege(running, hostile, [], 1000, 4)
    for thread in threads:
        thread.join()
    assert not wrong


def test_while_the_proxies_change_over(running: Network) -> None:
    plane = running.planes[0]
    with plane.attached("acme/main") as hostile, plane.attached("umbra/main") as stranger:
        running.proxies["acme"][0].kill()
        besiege(running, hostile, tempted([stranger]), 1000, 5)
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                assert hostile.run(lambda: redis("GET", "tenant", timeout_s=0.3)) == "acme"
                break
            assert time.monotonic() < end
        besiege(running, hostile, [stranger], 400, 6)
        assert stranger.run(lambda: redis("GET", "tenant")) == "umbra"


def test_without_the_own_server_nobody_elses_answers(running: Network) -> None:
    running.bed.networks["acme"].echo.kill()
    running.bed.networks["acme"].server.ip("link", "set", "lan0", "down")
    with running.planes[0].attached("acme/main") as function, running.planes[0].attached("umbra/main") as stranger:
        for _ in range(5):
            with contextlib.suppress(OSError):
                assert function.run(lambda: greeting(timeout_s=WAIT_S))[0] == ""
        assert stranger.run(greeting)[0] == "umbra"

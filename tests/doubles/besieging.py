"""A hostile function at everything it must not reach, round by round; how often anything answered."""

import contextlib
import functools
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

from doubles.private_networks import ECHO_PORT, INTERNET, REDIS_PORT, SERVER, Host, echo
from doubles.tunnel_planes import Network

from workers.networks import Rule

ROUND = 400  # fewer than a backend lets one instance have at once: it is not for their number that they come to nothing
WAIT_S = 0.25
TELLTALE = 7779
"""A port on which whatever must not be reached answers with who it is, and every server of either tenant too."""


def bait(running: Network) -> None:
    """acme's functions may reach the echo and Redis; on everything else of the bed somebody listens, who would answer."""
    allowed = [Rule(f"{SERVER}/32", "tcp", port, port) for port in (ECHO_PORT, REDIS_PORT)]
    running.use(running.bed.spec("acme", *allowed, generation=2))
    made = running.bed
    hosts = [*made.nodes, *made.proxies["acme"], *made.proxies["umbra"], made.underlay]
    for network in made.networks.values():
        hosts += [network.lan, network.server]
    for host in hosts:
        echo(host, "crossed", "0.0.0.0", TELLTALE)


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


def besiege(running: Network, hostile: Host, neighbours: Sequence[Host], count: int, seed: int) -> int:
    """How many of `count` attempts got any answer."""
    chance = random.Random(seed)
    others = [address_of(neighbour) for neighbour in neighbours]
    crossed = 0
    for _ in range(0, count, ROUND):
        crossed += attempts(hostile, targets(running, chance, others), chance)
    return crossed


def neighbourhood(running: Network) -> list[Host]:
    """Where nothing of acme's that is not allowed may arrive."""
    hosts = [host for network in running.bed.networks.values() for host in (network.server, network.lan)]
    return [*hosts, *running.bed.proxies["umbra"], *running.bed.nodes]


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

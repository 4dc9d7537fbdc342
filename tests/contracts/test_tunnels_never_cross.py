"""A hostile function, with root in its own namespace, at everything it must not reach: 10,000 attempts, none may succeed.

Also while instances come and go on the same node, after an address was used again, and while the proxies change over.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from doubles.besieging import WAIT_S, address_of, bait, besiege, forged, listening, neighbourhood, tempted
from doubles.private_networks import ECHO_PORT, INTERNET, SERVER, greeting, redis, sandbox
from doubles.tunnel_planes import BACKENDS, PATIENCE_S, Backend, Network, private_network

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

ATTEMPTS = 10_000


@contextlib.contextmanager
def baited(backend: Backend) -> Iterator[Network]:
    with private_network(backend) as made:
        bait(made)
        yield made


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.name)
def running(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One for the file; a test leaves it as it found it."""
    with baited(request.param) as made:
        yield made


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def breaking(request: pytest.FixtureRequest) -> Iterator[Network]:
    """The test's own."""
    with baited(request.param) as made:
        yield made


def test_ten_thousand_attempts(running: Network) -> None:
    """From acme, beside another instance of acme and one of umbra, all on one node."""
    plane = running.planes[0]
    with plane.attached("acme/main") as hostile, plane.attached("umbra/main") as stranger, plane.attached("acme/main") as twin:
        assert hostile.run(greeting)[0] == "acme", "what it may reach is there"
        assert besiege(running, hostile, tempted([stranger, twin]), ATTEMPTS, 1) == 0
        assert hostile.run(greeting)[0] == "acme"
        assert stranger.run(greeting)[0] == "umbra"


def test_forged_sources_arrive_nowhere(running: Network) -> None:
    plane, chance = running.planes[0], random.Random(2)
    everybody = neighbourhood(running)
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
        assert besiege(running, hostile, [], 400, 3) == 0
        assert stranger.run(greeting)[0] == "umbra"


def test_while_instances_come_and_go(running: Network) -> None:
    """Tenants by turns on the same places: every answer is the own tenant's, attached or not a moment ago."""
    plane = running.planes[0]
    wrong: list[str] = []

    def live(tenant: str, rounds: int) -> None:
        for _ in range(rounds):
            function = sandbox()
            try:
                detach = plane.attach(f"{tenant}/main", function, patience_s=PATIENCE_S)
                connection = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 30))
                with connection:
                    connection.settimeout(30)
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
        assert besiege(running, hostile, [], 1000, 4) == 0
    for thread in threads:
        thread.join()
    assert not wrong


def test_while_the_proxies_change_over(breaking: Network) -> None:
    plane = breaking.planes[0]
    with plane.attached("acme/main") as hostile, plane.attached("umbra/main") as stranger:
        breaking.proxies["acme"][0].kill()
        assert besiege(breaking, hostile, tempted([stranger]), 1000, 5) == 0
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                assert hostile.run(lambda: redis("GET", "tenant", timeout_s=0.3)) == "acme"
                break
            assert time.monotonic() < end
        assert besiege(breaking, hostile, [stranger], 400, 6) == 0
        assert stranger.run(lambda: redis("GET", "tenant")) == "umbra"


def test_without_the_own_server_nobody_elses_answers(breaking: Network) -> None:
    breaking.bed.networks["acme"].echo.kill()
    breaking.bed.networks["acme"].server.ip("link", "set", "lan0", "down")
    with breaking.planes[0].attached("acme/main") as function, breaking.planes[0].attached("umbra/main") as stranger:
        for _ in range(5):
            with contextlib.suppress(OSError):
                assert function.run(lambda: greeting(timeout_s=WAIT_S))[0] == ""
        assert stranger.run(greeting)[0] == "umbra"

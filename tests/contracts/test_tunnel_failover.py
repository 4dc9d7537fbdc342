"""A pair of proxies under traffic: the primary is killed, its machine cut off, started again."""

import socket
import time
from collections.abc import Iterator

import pytest
from doubles.private_networks import ECHO_PORT, SERVER, VIRTUAL, Host, greeting, redis
from doubles.tunnel_planes import BACKENDS, Backend, Network, private_network

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

TRY_S = 0.3
PATIENCE_S = 20.0


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def running(request: pytest.FixtureRequest) -> Iterator[Network]:
    backend: Backend = request.param
    with private_network(backend) as made:
        yield made


def carrier(running: Network, place: int | None = None) -> int:
    """The place of the proxy that carries acme's tunnel; waits until it is `place`."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        state = running.planes[0].states()["acme/main"]
        for number, host in enumerate(running.bed.proxies["acme"]):
            if state.ready and host.name in state.reason and place in (None, number):  # while it is not, all are named
                return number
        time.sleep(0.05)
    raise AssertionError(f"not carried by {place}: {running.planes[0].states()}")


def test_the_backup_serves_when_the_primary_is_killed_under_traffic(running: Network) -> None:
    with running.planes[0].attached("acme/main") as function:
        first = carrier(running)
        assert function.run(lambda: redis("GET", "tenant")) == "acme"
        running.proxies["acme"][first].kill()
        assert carrier(running, 1 - first) == 1 - first  # until then the kernel of the dead one may still forward, and stop
        assert served(function) in at_home(running)
        assert function.run(lambda: redis("GET", "tenant")) == "acme"
    running.proxies["acme"][first] = running.backend.proxy(running.bed, "acme", first, [running.specs["acme"]])
    with running.planes[0].attached("acme/main") as function:
        running.proxies["acme"][1 - first].kill()  # and back again
        assert served(function) in at_home(running)
    assert carrier(running, first) == first


def at_home(running: Network) -> set[tuple[str, str]]:
    own = {"10.0.0.11", "10.0.0.12"} if running.backend.name == "portable" else set()
    return {("acme", address) for address in {VIRTUAL, *own}}


def served(function: Host) -> tuple[str, str]:
    """Who answers, and from which address it saw the function come: the fixed one, where the pair has one for both. The portable
    backend's proxies leave with it as long as their host has it, and with their own when not."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return function.run(lambda: greeting(timeout_s=TRY_S))
        except OSError:
            assert time.monotonic() < end


def test_the_backup_serves_when_the_primarys_machine_is_cut_off(running: Network) -> None:
    """Neither its processes nor its kernel say goodbye."""
    with running.planes[0].attached("acme/main") as function:
        first = carrier(running)
        host = running.bed.proxies["acme"][first]
        for nic in ("eth0", "lan0"):
            host.ip("link", "set", nic, "down")
        assert served(function) in at_home(running)
        assert carrier(running, 1 - first) == 1 - first
        for nic in ("eth0", "lan0"):
            host.ip("link", "set", nic, "up")
        for _ in range(20):
            assert served(function) in at_home(running)
            time.sleep(0.05)


def test_what_becomes_of_connections(running: Network) -> None:
    """The kernel backend's go on: the other proxy knows them. A backend that ends them says so at once, and does not hang."""
    with running.planes[0].attached("acme/main") as function:
        first = carrier(running)
        connection = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5))
        with connection:
            connection.settimeout(PATIENCE_S)
            assert connection.recv(100)
            for number in range(20):
                connection.send(b"%d" % number)
                assert connection.recv(100)
            running.proxies["acme"][first].kill()
            if running.backend.name == "kernel":
                for number in range(20):
                    connection.send(b"%d" % number)
                    assert connection.recv(100) == b"%d" % number
            else:
                assert ended(connection)
        assert served(function) in at_home(running)


def ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(100):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True

"""What every backend of private networks promises: two tenants with the same addresses, their own servers, and nothing else."""

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from doubles.private_networks import (
    ECHO_PORT,
    INTERNET,
    REDIS_PORT,
    ROUTER,
    SERVER,
    VIRTUAL,
    datagram,
    echo,
    greeting,
    postgres_tenant,
    redis,
    sandbox,
)
from doubles.profiles import FULL
from doubles.tunnel_planes import BACKENDS, PATIENCE_S, Backend, Network, private_network

from workers.networks import RESOLVER, Rule
from workers.ports import NetworkUnavailable

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

CYCLES = 1000 if FULL else 200
REFUSED_S, ALLOWED_S = 0.3, 20.0


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.name)
def running(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One for the file; a test leaves it as it found it."""
    backend: Backend = request.param
    with private_network(backend, nodes=2, postgres=True) as made:
        yield made


def reached(address: str, port: int, timeout_s: float = REFUSED_S) -> bool:
    """Whether a connection carries bytes: a backend may accept before the far side does."""
    try:
        with socket.create_connection((address, port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            return bool(connection.recv(1))
    except OSError:
        return False


@pytest.mark.parametrize("tenant", ["acme", "umbra"])
def test_a_function_reaches_its_own_tenants_servers(running: Network, tenant: str) -> None:
    for plane in running.planes:
        with plane.attached(f"{tenant}/main") as function:
            assert function.run(lambda: redis("GET", "tenant")) == tenant
            assert function.run(postgres_tenant) == tenant
            assert function.run(greeting)[0] == tenant
            assert function.run(lambda: datagram(b"words")).split()[0::2] == [tenant.encode(), b"words"]


def test_functions_leave_with_the_fixed_address(running: Network) -> None:
    for plane in running.planes:
        with plane.attached("acme/main") as function:
            assert function.run(greeting)[1] == VIRTUAL
            assert function.run(lambda: datagram(b"x")).split()[1] == VIRTUAL.encode()


def test_a_large_answer_and_a_large_question(running: Network) -> None:
    """Past any MTU, any window."""
    with running.planes[0].attached("acme/main") as function:
        for words in ("x" * 3_000_000, "y" * 100):
            assert function.run(lambda words=words: redis("SET", "large", words)) == "OK"

            def read(size: int = len(words)) -> int:
                with socket.create_connection((SERVER, REDIS_PORT), 5) as connection:
                    connection.sendall(b"GET large\r\n")
                    with connection.makefile("rb") as lines:
                        lines.readline()
                        return len(lines.read(size))

            assert function.run(read) == len(words)
        assert len(function.run(lambda: datagram(b"z" * 1200))) > 1200


def test_a_sandbox_that_was_never_attached_reaches_nothing(running: Network) -> None:
    function = sandbox()
    try:
        assert not function.run(lambda: reached(SERVER, ECHO_PORT))
        running.planes[0].wire(function)
        running.planes[0].wire(function)
        assert not function.run(lambda: reached(SERVER, ECHO_PORT))
        with pytest.raises(OSError, match=r"timed out|nreachable|refused"):
            function.run(lambda: datagram(b"x", timeout_s=REFUSED_S))
        running.planes[0].attach("acme/main", function, patience_s=PATIENCE_S)()
    finally:
        function.close()


def test_nothing_goes_through_after_detaching(running: Network) -> None:
    function = sandbox()
    try:
        detach = running.planes[0].attach("acme/main", function, patience_s=PATIENCE_S)
        assert running.planes[0].states()["acme/main"].attached == 1
        connection = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5))
        connection.settimeout(REFUSED_S)
        with connection:
            assert connection.recv(100)
            detach()
            detach()
            assert not carries(connection)
        assert not function.run(lambda: reached(SERVER, ECHO_PORT))
        assert running.planes[0].states()["acme/main"].attached == 0
    finally:
        function.close()
    detach()


def carries(connection: socket.socket) -> bool:
    try:
        connection.send(b"more")
        return bool(connection.recv(100))
    except OSError:
        return False


def test_detaching_after_the_sandbox_has_gone(running: Network) -> None:
    function = sandbox()
    detach = running.planes[0].attach("acme/main", function, patience_s=PATIENCE_S)
    function.close()
    detach()
    assert running.planes[0].states()["acme/main"].attached == 0
    with running.planes[0].attached("acme/main") as another:
        assert another.run(lambda: redis("GET", "tenant")) == "acme"


def test_only_what_the_rules_allow(running: Network) -> None:
    """What is let through is what VpcSpec.allows says, by real packets; before and after the rules change."""
    spec = running.specs["acme"]
    lan = running.bed.networks["acme"].lan
    more = [echo(lan, "router", ROUTER), echo(lan, "router", ROUTER, 7778)]
    narrow = (
        Rule("10.0.1.0/24", "tcp", ECHO_PORT, ECHO_PORT),
        Rule("10.0.0.0/24", "tcp", 7778, 7900),
        Rule(f"{SERVER}/32", "udp", 1, 9000),
    )
    places = [(SERVER, ECHO_PORT), (ROUTER, ECHO_PORT), (ROUTER, 7778), (INTERNET, ECHO_PORT)]
    try:
        for number, rules in enumerate([narrow, (), narrow[1:2]]):
            changed = msgspec.structs.replace(spec, rules=rules, generation=spec.generation + 1 + number)
            running.use(changed)
            with running.planes[0].attached("acme/main") as function:
                for address, port in places:
                    allowed = changed.allows(address, "tcp", port)
                    wait_s = ALLOWED_S if allowed else REFUSED_S
                    assert function.run(functools.partial(reached, address, port, wait_s)) == allowed
                allowed = changed.allows(SERVER, "udp", ECHO_PORT)
                assert function.run(functools.partial(answered, SERVER, ALLOWED_S if allowed else REFUSED_S)) == allowed
    finally:
        running.use(spec)
        for process in more:
            process.kill()


def answered(address: str, timeout_s: float) -> bool:
    """Asked again every second: a datagram may be lost, which is nobody's refusal."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            return bool(datagram(b"x", address, timeout_s=min(left, 1.0)))
        time.sleep(0.02)
    return False


def test_words_for_what_cannot_be(running: Network) -> None:
    plane = running.planes[0]
    function = sandbox()
    try:
        with pytest.raises(NetworkUnavailable, match="acme/other"):
            plane.attach("acme/other", function)
        with pytest.raises(NetworkUnavailable, match="acme/other"):
            plane.opened("acme/other", 0.1)
        unreachable = tuple(
            msgspec.structs.replace(proxy, address="198.18.0.99:8704", underlay="198.18.0.99")
            for proxy in running.specs["acme"].proxies
        )
        lost = msgspec.structs.replace(running.specs["acme"], vpc="acme/lost", number=300, proxies=unreachable)
        plane.use(*running.specs.values(), lost)
        end = time.monotonic() + PATIENCE_S
        while "acme-proxy-0" not in (reason := plane.states()["acme/lost"].reason):  # the kernel's is being opened at first
            assert time.monotonic() < end, reason
            time.sleep(0.02)
        with pytest.raises(NetworkUnavailable, match=r"acme/lost.*acme-proxy-0"):
            plane.opened("acme/lost", 0.5)
        assert not plane.states()["acme/lost"].ready
    finally:
        plane.use(*running.specs.values())
        function.close()


def test_a_tunnel_that_is_not_named_any_more_closes_after_its_last_instance(running: Network) -> None:
    plane, umbra = running.planes[0], running.specs["umbra"]
    function = sandbox()
    try:
        detach = plane.attach("acme/main", function, patience_s=PATIENCE_S)
        plane.use(umbra)
        state = plane.states()["acme/main"]
        assert (state.ready, state.attached) == (False, 1)
        assert function.run(lambda: redis("GET", "tenant")) == "acme", "what is attached goes on"
        with pytest.raises(NetworkUnavailable, match="acme/main"):
            plane.attach("acme/main", function)
        detach()
        end = threading.Event()
        for _ in range(200):
            if "acme/main" not in plane.states():
                break
            end.wait(0.02)
        assert "acme/main" not in plane.states()
    finally:
        function.close()
        plane.use(*running.specs.values())
        assert plane.opened("acme/main").ready


def test_names_are_asked_of_the_vpcs_resolver(running: Network) -> None:
    """One server answers at 53 in each network; where no resolver is set nothing does."""
    for tenant in ("acme", "umbra"):
        echo(running.bed.networks[tenant].server, f"{tenant}-names", SERVER, 53)
    acme = msgspec.structs.replace(running.specs["acme"], resolver=SERVER, generation=50)
    try:
        running.use(acme)
        with running.planes[0].attached("acme/main") as function:
            assert function.run(lambda: datagram(b"question", RESOLVER, 53)).split()[::2] == [b"acme-names", b"question"]
        refused = pytest.raises(OSError, match=r"timed out|refused|nreachable")
        with running.planes[0].attached("umbra/main") as function, refused:
            function.run(lambda: datagram(b"question", RESOLVER, 53, timeout_s=REFUSED_S))
    finally:
        running.use(msgspec.structs.replace(acme, resolver="", generation=51))


def test_nothing_is_left_after_many_instances(running: Network) -> None:
    plane = running.planes[0]

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def one(number: int) -> None:
        function = sandbox()
        try:
            if number % 3:
                plane.wire(function)
            detach = plane.attach(f"{('acme', 'umbra')[number % 2]}/main", function, patience_s=PATIENCE_S)
            if number % 10 == 0:
                assert function.run(lambda: redis("GET", "tenant")) == ("acme", "umbra")[number % 2]
            if number % 2:
                detach()
        finally:
            function.close()
        detach()

    for number in range(10):
        one(number)
    before = held()
    for number in range(CYCLES):
        one(number)
    after = held()
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 1
    assert {state.attached for state in plane.states().values()} == {0}


def test_a_node_that_starts_again_has_its_tunnels_again(running: Network) -> None:
    running.planes[1].stop()
    running.planes[1] = running.backend.plane(running.bed, 1)
    running.planes[1].use(*running.specs.values())
    for tenant in running.specs:
        running.planes[1].opened(f"{tenant}/main")
        with running.planes[1].attached(f"{tenant}/main") as function:
            assert function.run(lambda: redis("GET", "tenant")) == tenant


def test_the_internet_is_reached_only_where_it_is_asked_for(running: Network) -> None:
    with running.planes[0].attached("acme/main") as function:
        assert not function.run(lambda: reached(INTERNET, ECHO_PORT))
    with running.planes[0].attached("acme/main", "internet") as function:
        assert function.run(lambda: greeting(INTERNET)) == ("acme-internet", VIRTUAL)
        assert function.run(greeting) == ("acme", VIRTUAL)
        for private in ("192.168.7.7", "198.18.0.1", running.bed.nodes[0].address, "169.254.169.254"):
            assert not function.run(lambda private=private: reached(private, ECHO_PORT))

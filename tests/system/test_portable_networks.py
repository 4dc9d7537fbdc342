"""The portable backend between real servers of two tenants with the same addresses: what is reached, and what never is."""

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.cluster import identity
from doubles.portable_networks import World, plane_at, worlds
from doubles.portable_proxy import REFUSED_NODE
from doubles.private_networks import (
    ECHO_PORT,
    INTERNET,
    POSTGRES_PORT,
    REDIS_PORT,
    SERVER,
    TENANTS,
    VIRTUAL,
    Host,
    datagram,
    echo,
    greeting,
    postgres_tenant,
    redis,
    sandbox,
)
from doubles.tunnel_planes import PlaneInHost

from workers.network.kernel.plane import KernelPlane
from workers.network.portable import outward
from workers.network.portable.words import MAX_FLOWS
from workers.networks import RESOLVER, Proxy, Rule
from workers.ports import NetworkUnavailable, SandboxNetwork

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

GUEST, GATEWAY = "100.64.0.2", "100.64.0.1"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with worlds(tmp_path_factory.mktemp("portable"), nodes=2, postgres=True) as made:
        yield made


def refused(what: Any, error: str) -> None:
    with pytest.raises(OSError, match=error):
        what()


def test_each_tenants_functions_reach_its_own_servers_at_the_same_address(world: World) -> None:
    for tenant in (*TENANTS, *TENANTS):
        with world.function(tenant) as function:
            assert function.run(lambda: redis("GET", "tenant")) == tenant
            assert function.run(postgres_tenant) == tenant
            assert function.run(lambda: datagram(b"x" * 1200)).split()[0] == tenant.encode()
            eventually(lambda: leaves_as(function, tenant, "10.0.0.11"))  # noqa: B023


def test_functions_leave_with_the_vpcs_fixed_address_when_the_proxy_has_it(world: World) -> None:
    holder = world.bed.proxies["acme"][0]
    holder.ip("address", "add", f"{VIRTUAL}/32", "dev", "lan0")
    try:
        with world.function("acme") as function:
            eventually(lambda: leaves_as(function, "acme", VIRTUAL))
            eventually(lambda: function.run(lambda: datagram(b"x")).split()[1] == VIRTUAL.encode())
    finally:
        holder.ip("address", "del", f"{VIRTUAL}/32", "dev", "lan0")


def test_a_tunnel_says_with_which_address_functions_leave_by_each_proxy(world: World) -> None:
    """As whoever runs the proxies' hosts moves the fixed one."""
    first, second = world.bed.proxies["acme"]

    def said(words: str) -> bool:
        state = world.node.call(lambda: world.plane.state("acme/main"))
        assert state is not None
        return bool(state.reason.endswith(words))

    with world.function("acme") as function:
        eventually(lambda: said("leaving as 10.0.0.11 (by others as 10.0.0.12)"))
        for holder, words, seen in (
            (first, f"leaving as {VIRTUAL} (by others as 10.0.0.12)", VIRTUAL),
            (second, f"leaving as 10.0.0.11 (by others as {VIRTUAL})", "10.0.0.11"),
        ):
            holder.ip("address", "add", f"{VIRTUAL}/32", "dev", "lan0")
            try:
                eventually(lambda words=words: said(words))  # type: ignore[misc]
                eventually(lambda seen=seen: leaves_as(function, "acme", seen))  # type: ignore[misc]
            finally:
                holder.ip("address", "del", f"{VIRTUAL}/32", "dev", "lan0")
        eventually(lambda: said("leaving as 10.0.0.11 (by others as 10.0.0.12)"))


def eventually(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def leaves_as(function: Host, tenant: str, address: str) -> bool:
    """Not at once, perhaps: what begins while a proxy gets no CPU for half a second leaves by the other."""
    name, seen = function.run(greeting)
    assert name == tenant
    return bool(seen == address)


def test_what_is_outside_is_unreachable_and_what_refuses_shows_as_reset(world: World) -> None:
    with world.function("acme") as function:
        function.run(lambda: refused(lambda: greeting("10.1.0.1"), "nreachable"))
        function.run(lambda: refused(lambda: greeting("198.18.0.1"), "nreachable"))
        function.run(lambda: refused(lambda: greeting(SERVER, 9), "reset"))
        function.run(lambda: refused(lambda: greeting("10.0.9.9", timeout_s=20), "reset"))  # nobody there: no route to host


def test_a_sandbox_that_was_never_attached_reaches_nothing_and_one_that_was_does_not_any_more(world: World) -> None:
    made = sandbox()
    world.node.do(world.plane.wire(SandboxNetwork(made.namespace.descriptor)))
    made.run(lambda: refused(greeting, "nreachable"))
    attached = world.attach("acme", SandboxNetwork(made.namespace.descriptor))
    assert made.run(greeting)[0] == "acme"
    kept = made.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5))
    kept.recv(100)
    world.node.call(attached.detach)
    world.node.call(attached.detach)
    refused(lambda: kept.recv(1), "reset")
    made.run(lambda: refused(lambda: greeting(timeout_s=0.3), "timed out|nreachable|refused"))
    made.run(lambda: refused(lambda: datagram(b"x", timeout_s=0.3), "timed out|nreachable|refused"))
    kept.close()
    made.close()


def test_rules_say_which_ports_and_a_change_of_rules_ends_what_they_forbid(world: World) -> None:
    before = world.specs["acme"]
    with world.function("acme") as function:
        kept = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5))
        kept.recv(100)
        rules = (Rule("10.0.1.0/24", "tcp", REDIS_PORT, REDIS_PORT), Rule("10.0.1.5/32", "udp", ECHO_PORT, ECHO_PORT))
        world.tell(world.bed.spec("acme", *rules, generation=2))
        world.opened("acme")
        refused(lambda: kept.recv(1), "reset")
        kept.close()
        assert function.run(lambda: redis("GET", "tenant")) == "acme"
        assert function.run(lambda: datagram(b"x")).startswith(b"acme")
        function.run(lambda: refused(greeting, "reset"))
        function.run(lambda: refused(lambda: greeting(SERVER, POSTGRES_PORT), "reset"))
    with world.function("umbra") as function:
        assert function.run(greeting)[0] == "umbra"
    world.tell(world.bed.spec("acme", generation=3))
    assert before.cidrs == world.specs["acme"].cidrs
    world.opened("acme")


def test_new_cidrs_reach_instances_that_are_attached(world: World) -> None:
    for host in world.bed.proxies["acme"]:
        host.ip("route", "replace", "unreachable", "10.7.0.0/16")  # which is said at once
    with world.function("acme") as function:
        world.tell(world.bed.spec("acme", generation=4, cidrs=("10.0.0.0/16", "10.7.0.0/16")))
        world.opened("acme")
        function.run(lambda: refused(lambda: greeting("10.7.0.1", timeout_s=20), "reset"))
        world.tell(world.bed.spec("acme", generation=5))
        world.opened("acme")
        function.run(lambda: refused(lambda: greeting("10.7.0.1"), "nreachable"))


def test_a_proxy_goes_by_its_own_rules_and_believes_no_node(world: World) -> None:
    strict = world.bed.spec("acme", Rule("10.0.0.0/16", "tcp", REDIS_PORT, REDIS_PORT), generation=6)
    loose = world.bed.spec("acme", generation=6, cidrs=("10.0.0.0/16", "198.18.0.0/24"))
    for proxy in world.proxies["acme"]:
        proxy.use([strict])
    world.tell(loose, proxies=False)
    world.opened("acme")
    with world.function("acme") as function:
        assert function.run(lambda: redis("GET", "tenant")) == "acme"
        function.run(lambda: refused(greeting, "reset"))
        function.run(lambda: refused(lambda: greeting("198.18.0.1"), "reset"))
    world.tell(world.bed.spec("acme", generation=7))
    world.opened("acme")


def test_a_guest_behind_a_card_reaches_its_vpc(world: World) -> None:
    host, guest = sandbox(), Host("guest")
    host.nic(guest, "tap0", "eth0")  # a cable stands for the tap: to the kernel both are a card with a guest behind it
    guest.ip("address", "add", f"{GUEST}/30", "dev", "eth0")
    guest.ip("route", "add", "default", "via", GATEWAY)
    attached = world.attach("umbra", SandboxNetwork(host.namespace.descriptor, "tap0", GUEST))
    assert guest.run(lambda: redis("GET", "tenant")) == "umbra"
    assert guest.run(postgres_tenant) == "umbra"
    assert guest.run(lambda: datagram(b"x")).startswith(b"umbra")
    for address in (GATEWAY, "10.1.0.1", "198.18.0.1", "169.254.169.254"):
        guest.run(lambda address=address: refused(lambda: greeting(address, timeout_s=0.3), "reset|timed out|nreachable"))
    world.node.call(attached.detach)
    guest.close()
    host.close()


def test_a_node_without_leave_and_a_proxy_that_is_another_are_refused(world: World) -> None:
    spec = world.specs["acme"]
    stranger = identity(world.authority, world.folder, "node", REFUSED_NODE)
    with plane_at(world.bed.nodes[1].namespace.descriptor, stranger, [spec]) as (node, plane):
        _until(lambda: "may not use acme/main" in node.call(lambda: plane.state("acme/main")).reason, limit_s=30)
        with pytest.raises(NetworkUnavailable, match="may not use acme/main"):
            node.do(plane.opened("acme/main", 1.0))
    own = identity(world.authority, world.folder, "node", "n2")
    for proxies, why in (
        (tuple(Proxy("other", one.address) for one in spec.proxies), "is vpc-proxy acme-proxy-0, not vpc-proxy other"),
        (tuple(Proxy(one.name, one.address, "", "00" * 32) for one in spec.proxies), "does not count any more"),
        ((), "has no proxy"),
    ):
        changed = world.bed.spec("acme", generation=spec.generation, proxies=proxies)
        with plane_at(world.bed.nodes[1].namespace.descriptor, own, [changed]) as (node, plane):
            _until(lambda: why in node.call(lambda: plane.state("acme/main")).reason, limit_s=30)  # noqa: B023
            with pytest.raises(NetworkUnavailable, match=why):
                node.do(plane.opened("acme/main", 1.0))
            with pytest.raises(NetworkUnavailable, match=why):
                node.do(plane.attach("acme/main", "none", SandboxNetwork(world.bed.nodes[1].namespace.descriptor)))
            with pytest.raises(NetworkUnavailable, match="was not told of that Vpc"):
                node.do(plane.opened("umbra/main", 0.1))


def test_the_internet_without_a_vpc_is_reached_from_the_node_itself(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node, underlay = world.bed.nodes[0], world.bed.underlay
    node.ip("route", "add", f"{INTERNET}/32", "via", "198.18.0.1")
    for host, address, name in ((node, node.address, "node"), (node, "127.0.0.1", "node"), (underlay, "198.18.0.1", "underlay")):
        echo(host, name, address)
    echo(underlay, "names", "198.18.0.1", 53)
    (tmp_path / "resolv.conf").write_text("search lan\nnameserver ::1\nnameserver 198.18.0.1\n")
    monkeypatch.setattr(outward, "RESOLV_CONF", tmp_path / "resolv.conf")
    with pytest.raises(NetworkUnavailable, match="nothing to attach to"):
        world.attach("", SandboxNetwork(node.namespace.descriptor))
    with world.function("", "internet") as function:
        assert function.run(lambda: greeting(INTERNET)) == ("underlay-internet", node.address)
        assert function.run(lambda: datagram(b"x", INTERNET)).split()[:2] == [b"underlay-internet", node.address.encode()]
        assert function.run(lambda: datagram(b"who", RESOLVER, 53)).split()[::2] == [b"names", b"who"]
        assert function.run(lambda: greeting(RESOLVER, 53))[0] == "names"
        for address in (node.address, "198.18.0.1", SERVER, "169.254.169.254", "10.1.1.1", "168.63.129.16", "100.64.0.1"):
            function.run(lambda address=address: refused(lambda: greeting(address, timeout_s=20), "reset"))
            function.run(lambda address=address: refused(lambda: datagram(b"x", address, timeout_s=0.05), "timed out"))
        assert function.run(lambda: greeting(INTERNET))[0] == "underlay-internet"


def test_connections_that_a_function_gave_up_are_not_dialled_on(world: World) -> None:
    node = world.bed.nodes[0]
    node.ip("route", "replace", "203.0.113.0/24", "via", "198.18.0.77")  # nobody: no answer for seconds

    def give_up_many() -> None:
        for _ in range(300):
            sock = socket.create_connection(("203.0.113.77", 80), 5)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    with world.function("", "internet") as function:
        before = _descriptors()
        function.run(give_up_many)
        _until(lambda: _descriptors() - before < 50, limit_s=outward.CONNECT_TIMEOUT_S / 2)  # and not as their dialling times out


def test_a_sandbox_that_the_kernel_backend_wired_ahead(world: World) -> None:
    """Another way is taken when it is attached: out to the Internet alone, or where the kernel's tunnel is lost meanwhile."""
    node = world.bed.nodes[1]
    kernel = PlaneInHost(node, lambda: KernelPlane(node.address, 11))
    try:
        for card in ("", "tap0"):
            host, guest = sandbox(), Host("guest")
            if card:
                host.nic(guest, card, "eth0")
                guest.ip("address", "add", f"{GUEST}/30", "dev", "eth0")
                guest.ip("route", "add", "default", "via", GATEWAY)
            function = guest if card else host
            network = SandboxNetwork(host.namespace.descriptor, card, GUEST if card else "")
            kernel.loop.call(kernel.plane.wire(network))
            attached = world.attach("umbra", network, "internet")
            assert function.run(lambda function=function: redis("GET", "tenant")) == "umbra"
            function.run(lambda: refused(lambda: greeting("192.168.1.1", timeout_s=20), "reset"))
            world.node.call(attached.detach)
            for made in (guest, host):
                made.close()
    finally:
        kernel.stop()


def _until(holds: Callable[[], object], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_questions_for_names_are_forgotten_with_their_answers(world: World) -> None:
    """Each from a socket of its own, as resolvers do: far more than there may be flows at once."""
    echo(world.bed.networks["umbra"].server, "names", SERVER, 53)
    world.tell(world.bed.spec("umbra", generation=2, resolver=SERVER))
    world.opened("umbra")
    with world.function("umbra") as function:
        for number in range(3 * MAX_FLOWS):
            assert function.run(lambda number=number: datagram(b"%d" % number, RESOLVER, 53)).split()[2] == b"%d" % number
        assert function.run(lambda: greeting(RESOLVER, 53))[0] == "names"  # long answers come by TCP
    world.tell(world.bed.spec("umbra", Rule("10.0.1.5/32", "tcp", ECHO_PORT, ECHO_PORT), generation=3, resolver=SERVER))
    world.opened("umbra")
    with world.function("umbra") as function:
        assert function.run(greeting)[0] == "umbra"
        function.run(lambda: refused(lambda: datagram(b"x", RESOLVER, 53, timeout_s=0.2), "timed out"))
    world.tell(world.bed.spec("umbra", generation=4))
    world.opened("umbra")


def test_a_plane_that_was_stopped_attaches_nothing_any_more(world: World) -> None:
    own = identity(world.authority, world.folder, "node", "n2")
    made = sandbox()
    with plane_at(world.bed.nodes[1].namespace.descriptor, own, []) as (node, plane):
        attached = node.do(plane.attach("", "internet", SandboxNetwork(made.namespace.descriptor)))
        node.do(plane.stop())
        node.call(attached.detach)
        for doing in (plane.wire, lambda network: plane.attach("", "internet", network)):
            with pytest.raises(NetworkUnavailable, match="are closed"):
                node.do(doing(SandboxNetwork(made.namespace.descriptor)))
    made.close()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_attachments_leave_nothing(world: World) -> None:
    made = [sandbox() for _ in range(4)]

    def round_of(times: int) -> None:
        async def go() -> None:
            for number in range(times):
                network = SandboxNetwork(made[number % len(made)].namespace.descriptor)
                (await world.plane.attach("acme/main", "none", network)).detach()

        world.node.do(go())

    round_of(20)
    before, threads = _descriptors(), threading.active_count()
    round_of(1000)
    world.node.call(lambda: None)
    assert _descriptors() <= before
    assert threading.active_count() <= threads
    assert [state.attached for state in world.plane.states()] == [0, 0]
    for one in made:
        one.close()


def test_a_vpc_that_is_removed_while_in_use_drains_first(world: World) -> None:
    spec = world.specs.pop("umbra")
    made = sandbox()
    attached = world.attach("umbra", SandboxNetwork(made.namespace.descriptor))
    world.tell()
    assert made.run(greeting)[0] == "umbra"
    state = next(state for state in world.plane.states() if state.vpc == "umbra/main")
    assert (state.ready, state.attached) == (False, 1)
    other = sandbox()
    with pytest.raises(NetworkUnavailable, match="not this node's any more"):
        world.attach("umbra", SandboxNetwork(other.namespace.descriptor))
    other.close()
    for proxy in world.proxies["umbra"]:
        proxy.use([])
    world.node.call(attached.detach)
    assert [state.vpc for state in world.plane.states()] == ["acme/main"]
    made.close()
    world.tell(spec)
    world.opened("umbra")
    with world.function("umbra") as function:
        assert function.run(greeting)[0] == "umbra"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_backup_serves_soon_when_the_primary_is_gone(world: World, how: signal.Signals) -> None:
    primary = world.proxies["acme"][0]
    assert primary.process is not None
    end = time.monotonic() + 20
    with world.function("acme") as function, world.function("umbra") as other:
        while True:  # until one goes by the primary, which is passed over while it gets no CPU
            running = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5))
            if running.recv(100).split()[1] == b"10.0.0.11":
                break
            running.close()
            assert time.monotonic() < end
            time.sleep(0.05)
        served: list[tuple[float, str]] = []

        def traffic() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError):
                    served.append((time.monotonic(), greeting(timeout_s=0.9)[1]))

        done = threading.Event()
        worker = threading.Thread(target=lambda: function.run(traffic))
        worker.start()
        time.sleep(0.3)
        killed = time.monotonic()
        primary.process.send_signal(how)
        _until(lambda: any(seen == "10.0.0.12" for _, seen in list(served)), limit_s=30)
        done.set()
        worker.join(10)
        by_backup = [at for at, seen in served if seen == "10.0.0.12"]
        assert by_backup[0] - killed < 10, "the backup came late"  # a second is what make bench-tunnels measures
        eventually(lambda: leaves_as(other, "umbra", "10.0.0.11"))
        if how == signal.SIGKILL:
            refused(lambda: running.recv(1), "reset")
        else:
            primary.process.send_signal(signal.SIGCONT)
        running.close()
    if how == signal.SIGKILL:
        primary.process.wait(10)
        primary.start([world.specs["acme"]])
    _until_primary(world)


def _until_primary(world: World) -> None:
    end = time.monotonic() + 15
    while "acme-proxy-0" not in world.opened("acme"):
        assert time.monotonic() < end, "the primary is not back"
        time.sleep(0.05)
    with world.function("acme") as function:
        eventually(lambda: leaves_as(function, "acme", "10.0.0.11"))


def test_a_socket_that_asked_while_nobody_carried_is_answered_later(world: World) -> None:
    spec, umbra = world.specs["umbra"], world.proxies["umbra"]
    with world.function("umbra") as function:
        sock = function.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(1)
        sock.connect((SERVER, ECHO_PORT))
        for proxy in umbra:
            proxy.kill()
        _until(lambda: not any(state.ready for state in world.plane.states() if state.vpc == "umbra/main"))
        sock.send(b"lost")
        for proxy in umbra:
            proxy.start([spec])
        world.opened("umbra")
        heard: list[bytes] = []

        def answered() -> bool:
            """A datagram may be lost: it is sent again."""
            sock.send(b"found")
            with contextlib.suppress(TimeoutError):
                heard.append(sock.recv(100))
            return bool(heard)

        _until(answered, limit_s=20)
        assert heard[0].split()[::2] == [b"umbra", b"found"]
        sock.close()

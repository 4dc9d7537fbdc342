"""The kernel backend of private networks, where it differs from others: rules as packets see them, what is left after a kill,
guests behind a card, addresses used again, the programs of a proxy."""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from doubles.neighbours import below
from doubles.private_networks import ECHO_PORT, SERVER, VIRTUAL, Host, bed, datagram, greeting, redis, sandbox
from doubles.profiles import TIMES
from doubles.tunnel_planes import KernelBackend, Network, network, private_network
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.network.kernel import addresses, cables, router, rules
from workers.network.kernel.endpoint import NodePlace
from workers.network.kernel.plane import KernelPlane
from workers.network.namespaces import Namespace
from workers.networks import Proxy, Rule, VpcSpec
from workers.ports import NetworkUnavailable

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[Network]:
    with private_network(KernelBackend()) as made:
        yield made


def eventually(holds: object, what: str = "", limit_s: float = PATIENCE_S) -> None:
    assert callable(holds)
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


# --- rules ---

near = st.integers(0, 2**10 - 1).map(lambda number: (10 << 24) + number * 64)
networks = st.builds(lambda start, size: f"{_dotted(start >> (32 - size) << (32 - size))}/{size}", near, st.integers(14, 32))
ports = st.integers(0, 65535)


def _dotted(number: int) -> str:
    return socket.inet_ntoa(struct.pack(">I", number))


@st.composite
def specs(draw: st.DrawFn) -> VpcSpec:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        first, last = sorted((draw(ports), draw(ports)))
        found.append(Rule(draw(networks), draw(st.sampled_from(["tcp", "udp"])), first, last))
    cidrs = tuple(draw(st.lists(networks, min_size=1, max_size=3)))
    return VpcSpec("acme/main", "acme", 1, 1, cidrs, tuple(found), VIRTUAL, proxies=(Proxy("p", "198.18.0.20:8704"),))


@pytest.fixture(scope="module")
def outlet() -> Iterator[Host]:
    """A namespace whose packets go nowhere; a rule that drops one says so to its sender."""
    host = Host("outlet")
    host.ip("link", "add", "out", "type", "veth", "peer", "name", "gone")
    for device in ("out", "gone"):
        host.ip("link", "set", device, "up", "arp", "off")
    host.ip("address", "add", "100.64.1.1/32", "dev", "out")
    host.ip("route", "add", "default", "dev", "out")
    yield host
    host.close()


@settings(max_examples=40 * TIMES)
@given(spec=specs(), data=st.data())
def test_the_rules_say_of_every_packet_what_the_spec_says(outlet: Host, spec: VpcSpec, data: st.DataObject) -> None:
    edges = [rule.first for rule in spec.rules] + [rule.last for rule in spec.rules]
    some_port = st.sampled_from(edges) | ports if edges else ports
    packets = data.draw(
        st.lists(st.tuples(near.map(_dotted), st.sampled_from(["tcp", "udp"]), some_port), min_size=1, max_size=20)
    )
    back = data.draw(st.booleans(), "on the way back")
    table = f"inet {rules.TABLE}"
    text = f"add table {table}\ndelete table {table}\nadd table {table}\n"
    text += f"add chain {table} sent {{ type filter hook output priority 0; policy drop; }}\n"
    text += rules.allowed(spec, f"{table} sent", back) + "\n"

    def passed() -> list[bool]:
        router.nft(text)
        found = []
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for address, protocol, port in packets:
                number = {"tcp": 6, "udp": 17}[protocol]
                pair = (port, 1) if back else (1, port)
                part = struct.pack(">HHHH", *pair, 8, 0)
                if number == 6:
                    part = struct.pack(">HHIIBBHHH", *pair, 0, 0, 0x50, 2, 1024, 0, 0)
                head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(part), 1, 0, 64, number, 0)
                own, other = map(socket.inet_aton, ("100.64.1.1", address))
                packet = head + (other + own if back else own + other) + part
                try:
                    raw.sendto(packet, (address, 0))
                    found.append(True)
                except PermissionError:
                    found.append(False)
        return found

    assert outlet.run(passed) == [spec.allows(*packet) for packet in packets]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cidrs": ("fd00::/64",)}, "fd00::/64"),
        ({"cidrs": ("10.0.0.0/8", "100.96.0.0/16")}, "100.96.0.0/16"),
        ({"cidrs": ("10.0.0.1/8",)}, "10.0.0.1/8"),
        ({"cidrs": ()}, "CIDR"),
        ({"rules": (Rule("10.0.0.0/8", "icmp", 0, 0),)}, "icmp"),
        ({"rules": (Rule("10.0.0.0/99", "tcp", 0, 0),)}, "10.0.0.0/99"),
        ({"address": ""}, "fixed address"),
        ({"address": "10.0.0"}, "10.0.0"),
        ({"resolver": "names"}, "names"),
        ({"proxies": ()}, "vpc proxy"),
    ],
)
def test_what_it_cannot_carry_is_named(running: Network, changed: dict[str, object], named: str) -> None:
    plane = running.planes[0]
    spec = msgspec.structs.replace(running.specs["acme"], vpc="acme/odd", number=999, **changed)
    assert named in addresses.refusal(spec)
    try:
        plane.use(*running.specs.values(), spec)
        eventually(lambda: named in plane.states()["acme/odd"].reason)
        with pytest.raises(NetworkUnavailable, match="acme/odd"):
            plane.opened("acme/odd", 0.05)
    finally:
        plane.use(*running.specs.values())


def test_a_host_without_the_address_says_so() -> None:
    host = Host("elsewhere")
    try:
        with pytest.raises(OSError, match=r"198\.18\.0\.77.*not one of this host"):
            host.aio(lambda: KernelPlane("198.18.0.77", 1).start())
    finally:
        host.close()


def test_who_carries_is_asked_once_for_all_tunnels(running: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel goes through all it knows each time, and instances wait behind that."""
    inside, plane = running.planes[0], running.planes[0].plane
    assert isinstance(plane, KernelPlane)
    more = [msgspec.structs.replace(running.specs["acme"], vpc=f"acme/{number}", number=number) for number in range(900, 910)]
    inside.use(*running.specs.values(), *more)
    eventually(lambda: all(tunnel.device for tunnel in plane._tunnels.values()))
    asked: list[str] = []
    fdb = plane._router._inside.fdb

    def counted(command: str, **what: object) -> object:
        asked.append(command)
        return fdb(command, **what)

    with monkeypatch.context() as patched:
        patched.setattr(plane._router._inside, "fdb", counted)
        inside.loop.call(plane._see_carriers())
    assert 1 <= len(asked) <= 2
    eventually(lambda: "by acme-proxy-" in inside.states()["acme/main"].reason)
    inside.use(*running.specs.values())
    eventually(lambda: len(plane._tunnels) == len(running.specs))


# --- guests ---


@contextlib.contextmanager
def guest() -> Iterator[tuple[Host, Host]]:
    """(the namespace of a virtual machine, the machine behind its card)"""
    around, inner = Host("machine"), Host("guest")
    try:
        around.nic(inner, "tap0", "eth0")
        around.setting("ipv4/ip_forward", "0")
        inner.ip("address", "add", "100.64.0.2/30", "dev", "eth0")
        inner.ip("route", "add", "default", "via", "100.64.0.1")
        yield around, inner
    finally:
        inner.close()
        around.close()


def test_a_guest_behind_a_card(running: Network) -> None:
    plane = running.planes[0]
    for tenant in ("acme", "umbra"):
        with guest() as (around, inner):
            wired = network(around, "tap0", "100.64.0.2")
            plane.loop.call(plane.plane.wire(wired))
            with pytest.raises(OSError, match=r"timed out|nreachable"):
                inner.run(lambda: greeting(timeout_s=0.3))
            attachment = plane.loop.call(plane.plane.attach(f"{tenant}/main", "none", wired))
            assert inner.run(lambda: redis("GET", "tenant")) == tenant
            assert inner.run(greeting) == (tenant, VIRTUAL)
            assert inner.run(lambda: datagram(b"x" * 1400)).startswith(tenant.encode())
            for address in ("100.64.0.1", running.bed.nodes[0].address, "169.254.169.254"):
                with pytest.raises(OSError, match=r"timed out|nreachable"):
                    inner.run(lambda address=address: greeting(address, timeout_s=0.3))
            inner.ip("address", "add", "10.9.9.9/32", "dev", "lo")
            with pytest.raises(OSError, match=r"timed out"):
                inner.run(lambda: forged_greeting("10.9.9.9"))
            plane.loop.do(attachment.detach)
            with pytest.raises(OSError, match=r"timed out|nreachable"):
                inner.run(lambda: greeting(timeout_s=0.3))


def forged_greeting(source: str) -> None:
    with socket.create_connection((SERVER, ECHO_PORT), 0.3, (source, 0)) as connection:
        connection.recv(100)


def test_one_instance_cannot_take_all_connections(running: Network) -> None:
    """They are all in one table of the node."""
    plane, at_once = running.planes[0], 256  # no more datagrams than the server's socket takes

    def ask(numbers: range, end: float) -> int:
        """How many are answered until then; a datagram that is lost is sent again, by the same connection."""
        with contextlib.ExitStack() as stack:
            watch, waiting = select.poll(), {}
            for number in numbers:
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.setblocking(False)
                sock.bind(("0.0.0.0", 10_000 + number))  # each is another connection
                sock.connect((SERVER, ECHO_PORT))
                waiting[sock.fileno()] = sock
                watch.register(sock, select.POLLIN)
            while waiting and time.monotonic() < end:
                for sock in waiting.values():
                    sock.send(b"x")
                again = time.monotonic() + 0.5
                while waiting and (left := again - time.monotonic()) > 0:
                    for found, _ in watch.poll(left * 1000):
                        watch.unregister(found)
                        assert waiting.pop(found).recv(100)
            return len(numbers) - len(waiting)

    with plane.attached("acme/main") as greedy, plane.attached("acme/main") as modest:
        end = time.monotonic() + 20  # the kernel forgets the first ones 30 s after their last datagram
        answered = greedy.run(lambda: [ask(range(at, at + at_once), end) for at in range(0, rules.CONNECTIONS, at_once)])
        assert answered == [at_once] * (rules.CONNECTIONS // at_once)
        more = range(rules.CONNECTIONS, rules.CONNECTIONS + 100)
        assert greedy.run(lambda: ask(more, time.monotonic() + 2)) == 0
        assert modest.run(greeting)[0] == "acme"


# --- addresses used again ---


def test_an_address_used_again_hears_nothing_of_its_last_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three addresses for all: the server of the first owner goes on talking to it."""
    monkeypatch.setattr(cables, "LAST_INDEX", cables.FIRST_INDEX + 2)
    with private_network(KernelBackend()) as running:
        plane = running.planes[0]
        seen = set()
        for turn in range(9):
            tenant = ("acme", "umbra")[turn // 3 % 2]
            function = sandbox()
            end = time.monotonic() + PATIENCE_S
            while True:
                try:
                    detach = plane.attach(f"{tenant}/main", function)
                    break
                except NetworkUnavailable:  # all three are taken, until the last owners are gone and forgotten
                    assert time.monotonic() < end
                    time.sleep(0.01)

            def flow() -> tuple[str, bytes]:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(0.15)
                    sock.bind(("0.0.0.0", 5555))
                    with contextlib.suppress(TimeoutError):
                        raise AssertionError(f"heard {sock.recv(100)!r}")
                    sock.settimeout(5)
                    sock.connect((SERVER, ECHO_PORT))
                    sock.send(b"again 100")
                    return sock.getsockname()[0], sock.recv(100)

            address, answer = function.run(flow)
            seen.add(address)
            assert answer.split()[0] == tenant.encode()
            connection = function.run(lambda: socket.create_connection((SERVER, ECHO_PORT), 5, ("0.0.0.0", 6666)))
            assert connection.recv(100).startswith(tenant.encode())
            detach()
            function.close()
            connection.close()
        assert len(seen) == 3


# --- the pair ---


def roles(running: Network) -> list[tuple[str, int]]:
    """Of each of acme's proxies: what it is, and how often that changed, as it says; nothing of one that is not made yet."""
    said = [proxy.use([running.specs["acme"]])[0].reason for proxy in running.proxies["acme"]]
    known = [reason.split(", ") if reason.endswith(" changes of role") else ("", "", "0") for reason in said]
    return [(role, int(changes.split()[0])) for _, role, changes in known]


def settled(running: Network) -> bool:
    return sorted(role for role, _ in roles(running)) == ["backup", "master"]


def changes(running: Network) -> int:
    return sum(count for _, count in roles(running))


def master(running: Network) -> int:
    return [role for role, _ in roles(running)].index("master")


def restart(running: Network, place: int) -> None:
    """One of acme's proxies that was killed, once the kernel has ended its namespace: until then its tunnel is there."""
    eventually(lambda: not tunnels_heard(running.bed.proxies["acme"][place]), "the kernel has taken all away")
    running.proxies["acme"][place] = running.backend.proxy(running.bed, "acme", place, [running.specs["acme"]])


def carried(running: Network) -> str:
    return running.planes[0].states()["acme/main"].reason


class Steady:
    """Requests one after the other on connections of their own, and words to and fro on connections that stay, from a function,
    for the block; both by several threads. `wrong`: what was not as it should be; `failed`: requests without an answer."""

    def __init__(self, function: Host, threads: int = 4) -> None:
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self.answered = self.echoed = 0
        self._ended = threading.Event()
        work = [self._requests, self._echoes] * threads
        self._threads = [threading.Thread(target=function.run, args=(one,)) for one in work]

    def __enter__(self) -> "Steady":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def go_on(self, count: int = 50, limit_s: float = PATIENCE_S) -> None:
        """Until so many more of both were answered."""
        answered, echoed = self.answered + count, self.echoed + count
        eventually(lambda: self.answered > answered and self.echoed > echoed, f"{self.wrong} {self.failed}", limit_s)

    def _requests(self) -> None:
        while not self._ended.wait(0.01):
            try:
                found = redis("GET", "tenant", timeout_s=PATIENCE_S)
            except OSError as error:
                self.failed.append(repr(error))
            else:
                self.answered += 1
                if found != "acme":
                    self.wrong.append(found)

    def _echoes(self) -> None:
        try:
            with socket.create_connection((SERVER, ECHO_PORT), PATIENCE_S) as connection, connection.makefile("rb") as lines:
                lines.readline()
                while not self._ended.wait(0.01):
                    words = b"%d\n" % self.echoed
                    connection.sendall(words)
                    if lines.readline() != words:
                        self.wrong.append("another echo")
                        return
                    self.echoed += 1
        except OSError as error:
            self.wrong.append(f"a connection that stood ended: {error!r}")


def test_the_backup_goes_on_under_steady_load(running: Network) -> None:
    with running.planes[0].attached("acme/main") as function, Steady(function) as load:
        for _ in range(2):  # there and back again
            eventually(lambda: settled(running))
            load.go_on()
            place = master(running)
            running.proxies["acme"][place].kill()
            load.go_on()
            restart(running, place)
    assert load.wrong == []
    assert len(load.failed) <= 2 * 4, "no more than were being opened when it was killed, which the other may not know yet"


def test_a_change_over_without_a_fault_is_counted(running: Network) -> None:
    """keepalived does not come to its turn, as under too much load, and goes on when the other has taken over."""
    with running.planes[0].attached("acme/main") as function:
        eventually(lambda: settled(running))
        eventually(lambda: f"by acme-proxy-{master(running)}" in carried(running), "the node sees the last change, too")
        before, place = changes(running), master(running)
        held = [pid for pid in below(running.proxies["acme"][place].process.pid) if comm(pid) == "keepalived"]
        assert held
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: f"by acme-proxy-{1 - place}" in carried(running), "the node sees the other")
        finally:
            for pid in held:
                os.kill(pid, signal.SIGCONT)
        eventually(lambda: settled(running), "one of them carries")
        eventually(lambda: changes(running) >= before + 2, "both are counted")
        eventually(lambda: "changes of proxy: " in carried(running), "the node tells")
        assert function.run(lambda: redis("GET", "tenant")) == "acme"
        place = master(running)
        running.proxies["acme"][place].kill()
        eventually(lambda: function.run(lambda: reads("acme")), "one that stepped back takes over again")
        restart(running, place)


def comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Every core has eight programs that want it."""
    guard = ["setpriv", "--pdeathsig", "SIGKILL"]
    taken = [subprocess.Popen([*guard, "sh", "-c", "while :; do :; done"]) for _ in range(8 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for one in taken:
            one.kill()
            one.wait(10)


@contextlib.contextmanager
def announced(host: Host) -> Iterator[list[bytes]]:
    """Who said on this wire that the fixed address is his: hardware addresses, a new one for each change."""
    heard: list[bytes] = []
    ended = threading.Event()

    def listen() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as sock:
            sock.settimeout(0.05)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    packet = sock.recv(2048)
                    if packet[28:32] == socket.inet_aton(VIRTUAL) and heard[-1:] != [packet[22:28]]:
                        heard.append(packet[22:28])

    thread = threading.Thread(target=host.run, args=(listen,))
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()


def test_a_pair_on_a_busy_machine_stays_as_it_is_or_says_how_often_it_changed(running: Network) -> None:
    eventually(lambda: settled(running))
    before = changes(running)
    with running.planes[0].attached("acme/main") as function, announced(running.bed.networks["acme"].lan) as heard:
        with Steady(function) as load, busy():
            load.go_on(600 * TIMES, 300 * TIMES)
        eventually(lambda: settled(running))
        told = changes(running) - before
    assert load.wrong == []
    assert max(0, len(heard) - 1) <= told, "whatever changed on the wire was counted"
    print(f"{told} changes of role; {len(load.failed)} of {load.answered} requests failed")
    assert not load.failed or told


# --- what is left ---

_NODE = """
import asyncio, faulthandler, sys
faulthandler.dump_traceback_later(40, exit=True)
sys.path.insert(0, sys.argv[1])
import msgspec
from workers.network.kernel.plane import KernelPlane
from workers.networks import VpcSpec
from doubles.private_networks import sandbox
from workers.ports import SandboxNetwork
async def main():
    plane = KernelPlane(sys.argv[2], 10)
    await plane.start()
    specs = msgspec.json.decode(sys.argv[3], type=list[VpcSpec])
    await plane.use(specs)
    for spec in specs:
        await plane.opened(spec.vpc, 20)
    boxes = [sandbox() for _ in range(5)]
    for box in boxes:
        await plane.attach(specs[0].vpc, "none", SandboxNetwork(box.namespace.descriptor))
    print("attached", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def tunnels_heard(host: Host) -> bool:
    """Whether the host's kernel listens for tunnels: it does while a VXLAN device made there lives, wherever that went."""
    return any(
        line.split()[1].endswith(":12B5")
        for line in host.run(lambda: Path("/proc/thread-self/net/udp").read_text()).splitlines()[1:]
    )


def test_a_killed_node_leaves_nothing_and_its_successor_has_all_again() -> None:
    with private_network(KernelBackend()) as running:
        host, specs = running.bed.nodes[0], list(running.specs.values())
        running.planes.pop().stop()
        eventually(lambda: not tunnels_heard(host), "a node that stops leaves no tunnel")
        for _ in range(2):
            arguments = [str(Path(__file__).parents[1]), host.address, msgspec.json.encode(specs).decode()]
            process = host.start(sys.executable, "-c", _NODE, *arguments, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"attached\n"
            assert tunnels_heard(host)
            process.kill()
            process.wait(10)
            eventually(lambda: not tunnels_heard(host), "the kernel has taken all away")
        running.planes.append(running.backend.plane(running.bed, 0))
        running.planes[0].use(*specs)
        for spec in specs:
            running.planes[0].opened(spec.vpc)
            with running.planes[0].attached(spec.vpc) as function:
                assert function.run(lambda: redis("GET", "tenant")) == spec.tenant


def programs(process: "subprocess.Popen[bytes]") -> dict[str, int]:
    found = {}
    for pid in below(process.pid):
        with contextlib.suppress(OSError):
            found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
    return found


def both_run(process: "subprocess.Popen[bytes]") -> bool:
    """By their own names: each begins as another program, which sees to its end."""
    return {"keepalived", "conntrackd"} <= programs(process).keys()


def test_a_killed_proxy_leaves_nothing() -> None:
    with bed() as made:
        host = made.proxies["acme"][0]
        running = KernelBackend().proxy(made, "acme", 0, [made.spec("acme")])
        eventually(lambda: both_run(running.process))
        pids = list(below(running.process.pid))
        eventually(lambda: made.networks["acme"].server.run(answers_arp), "the fixed address is there")
        running.kill()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "its programs have ended")
        eventually(lambda: not tunnels_heard(host))
        assert [link["ifname"] for link in json.loads(host.ip("-j", "link"))] == ["lo", "eth0", "lan0"]
        made.networks["acme"].server.ip("neigh", "flush", "all")
        assert not made.networks["acme"].server.run(answers_arp)


def answers_arp() -> bool:
    """Whether somebody has the fixed address: a datagram to it makes the kernel ask."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(b"x", (VIRTUAL, 9))
    time.sleep(0.2)
    table = Path("/proc/thread-self/net/arp").read_text()
    return any(line.split()[0] == VIRTUAL and line.split()[3] != "00:00:00:00:00:00" for line in table.splitlines()[1:])


def test_a_program_of_a_proxy_that_ends_is_started_again() -> None:
    with bed() as made:
        spec = made.spec("acme")
        running = KernelBackend().proxy(made, "acme", 0, [spec])
        try:
            killed: set[int] = set()

            def told() -> bool:
                """Only of one that ends soon: what has run for a while is started again before anybody is told."""
                pid = programs(running.process).get("conntrackd")
                if pid is not None and pid not in killed:
                    killed.add(pid)
                    with contextlib.suppress(ProcessLookupError):  # the proxy makes all of it again
                        os.kill(pid, signal.SIGKILL)
                (state,) = running.use([spec])
                return "conntrackd ended with -9" in state.reason

            eventually(told)
            eventually(lambda: programs(running.process).get("conntrackd", 0) not in {0, *killed})
        finally:
            running.stop()


def test_a_proxy_goes_on_as_others_join_and_leave() -> None:
    with bed(nodes=1) as made:
        pair, backend = made.spec("acme"), KernelBackend()
        alone = msgspec.structs.replace(pair, proxies=pair.proxies[:1])
        first = backend.proxy(made, "acme", 0, [alone])
        plane = backend.plane(made, 0)
        try:
            for generation, spec in enumerate([alone, pair, alone, pair], 2):
                told = msgspec.structs.replace(spec, generation=generation)
                second = backend.proxy(made, "acme", 1, [told]) if spec is pair else None
                (state,) = first.use([told])
                assert state.generation == generation
                plane.use(told)
                assert plane.opened("acme/main").ready
                with plane.attached("acme/main") as function:
                    eventually(lambda: function.run(lambda: reads("acme")))
                if second is not None:
                    second.stop()
        finally:
            plane.stop()
            first.stop()
        assert not tunnels_heard(made.proxies["acme"][0])
        assert not tunnels_heard(made.nodes[0])


def reads(tenant: str) -> bool:
    try:
        return redis("GET", "tenant", timeout_s=0.5) == tenant
    except OSError:
        return False


def test_a_proxy_that_cannot_serve_says_why() -> None:
    with bed() as made:
        running = KernelBackend().proxy(made, "acme", 0, [])
        try:
            for changed, named in (
                ({"address": "10.0.0.11"}, "must be free"),
                ({"address": "172.20.0.1"}, "172.20.0.1"),
                ({"cidrs": ("fd00::/64",)}, "IPv4 only"),
            ):
                (state,) = running.use([msgspec.structs.replace(made.spec("acme"), number=700 + len(named), **changed)])
                assert not state.ready
                assert named in state.reason
            assert running.use([msgspec.structs.replace(made.spec("acme"), proxies=(Proxy("another", "198.18.0.99:1"),))]) == []
        finally:
            running.stop()


def test_a_node_that_cannot_be_carried_for_stands_in_nobodys_way() -> None:
    with bed(nodes=1) as made:
        spec, backend = msgspec.structs.replace(made.spec("acme"), proxies=made.spec("acme").proxies[:1]), KernelBackend()
        proxy, plane = backend.proxy(made, "acme", 0, [spec]), backend.plane(made, 0)
        try:
            good = NodePlace(made.nodes[0].name, made.nodes[0].address, 10)
            for underlay in ("node-9.example", "fd00::9", "", "0.0.0.0"):
                proxy.use([spec], [NodePlace("bad", underlay, 9), good])
            plane.use(spec)
            assert plane.opened("acme/main").ready
        finally:
            plane.stop()
            proxy.stop()


def test_namespaces_end_with_their_descriptor() -> None:
    namespace = Namespace.made()
    path = namespace.path
    assert os.path.exists(path)
    namespace.close()
    namespace.close()
    assert not os.path.exists(path)

"""Private networks of two tenants, the nodes and the proxies, in network namespaces without names: nothing outlives the run.

    underlay 198.18.0.0/24 (a bridge; 203.0.113.9 stands for the internet)
      |- nodes           198.18.0.1x   nic `eth0`
      |- proxies         198.18.0.2x   nic `eth0`, and in their tenant's network `lan0` at 10.0.0.11 (primary), 10.0.0.12
    acme  10.0.0.0/16: servers at 10.0.1.5; a router at 10.0.0.1, behind it 203.0.113.9 as seen from there
    umbra 10.0.0.0/16: the same once more

The servers at 10.0.1.5: Redis on 6379 and PostgreSQL on 5432, which hold their tenant's name; an echo on 7777, TCP and UDP. All
tell apart who reached whom: no server of one tenant knows the other's name.
"""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import uvloop
from doubles.servers import DURABLE_OFF, Postgres, tool

from workers.network import namespaces
from workers.network.namespaces import Namespace
from workers.networks import Proxy, Rule, VpcSpec

T = TypeVar("T")

CIDR, SERVER, REDIS_PORT, POSTGRES_PORT, ECHO_PORT = "10.0.0.0/16", "10.0.1.5", 6379, 5432, 7777
ROUTER, VIRTUAL, INTERNET = "10.0.0.1", "10.0.0.10", "203.0.113.9"
UNDERLAY = "198.18.0."
TENANTS = ("acme", "umbra")
NUMBERS = {"acme": 100, "umbra": 200}
TIMEOUT_S = 5.0

_ECHO = """
import asyncio, socket, sys
class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, peer):
        self.transport.sendto(b"%s %s " % (NAME, peer[0].encode()) + data, peer)
        if data.startswith(b"again "):
            for number in range(1, int(data[6:])):
                asyncio.get_running_loop().call_later(number / 100, self.transport.sendto, b"again", peer)
async def connected(reader, writer):
    try:
        writer.write(b"%s %s\\n" % (NAME, writer.get_extra_info("peername")[0].encode()))
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError: pass
    finally: writer.close()
async def main():
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(connected, ADDRESS, PORT)
    await loop.create_datagram_endpoint(Datagrams, local_addr=(ADDRESS, PORT))
    print("ready", flush=True)
    await server.serve_forever()
NAME, ADDRESS, PORT = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])
asyncio.run(main())
"""


class Host:
    """A namespace that stands for a machine. `run`: code in it; `aio`: a coroutine on a loop in it; `start`: a program."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace = Namespace.made()
        self.address = ""
        """On the underlay."""
        self._running: list[subprocess.Popen[bytes]] = []
        self.ip("link", "set", "lo", "up")

    def run(self, work: Callable[[], T]) -> T:
        return self.namespace.run(work)

    def aio(self, work: Callable[[], Awaitable[T]], limit_s: float = 60.0) -> T:
        """The loop's thread is in the namespace, and so is all it starts."""

        async def bounded() -> T:
            async with asyncio.timeout(limit_s):
                return await work()

        def on_a_loop() -> T:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(bounded())

        return self.run(on_a_loop)

    def call(self, *command: str) -> str:
        """Runs a program to its end and gives what it printed. Raises AssertionError with what it complained of."""
        done = self.run(lambda: subprocess.run(command, check=False, capture_output=True, text=True, timeout=30))
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.stderr}"
        return done.stdout

    def ip(self, *words: str) -> str:
        return self.call(tool("ip", "iproute2"), *words)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """A program that runs until the host is closed; it dies with the test run, even when that is killed."""
        guard = [tool("setpriv", "util-linux"), "--pdeathsig", "SIGKILL"]

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen([*guard, *command], **options)

        process = _from_the_main_loop(self.namespace, spawn)
        self._running.append(process)
        return process

    def setting(self, name: str, value: str) -> None:
        self.run(lambda: Path(f"/proc/sys/net/{name}").write_text(value, encoding="ascii"))

    def nic(self, other: "Host", name: str, peer: str) -> None:
        """A cable: `name` here, `peer` at the other."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", peer, "netns", other.namespace.path)
        self.ip("link", "set", name, "up")
        other.ip("link", "set", peer, "up")

    def close(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.namespace.close()


class TenantNetwork:
    """A tenant's own network: `lan` is its switch and router, `server` has the databases."""

    def __init__(self, tenant: str, postgres: bool) -> None:
        self.tenant = tenant
        self.lan = Host(f"{tenant}-lan")
        self.server = Host(f"{tenant}-server")
        self._folder = Path(tempfile.mkdtemp(prefix="fg-net-"))
        self.lan.ip("link", "add", "br0", "type", "bridge")
        self.lan.ip("link", "set", "br0", "up")
        self.lan.ip("address", "add", f"{ROUTER}/16", "dev", "br0")
        self.lan.ip("address", "add", f"{INTERNET}/32", "dev", "lo")
        self.plug(self.server, f"{SERVER}/16")
        self.server.ip("route", "add", "default", "via", ROUTER)
        self.redis = self._redis()
        self.echo = echo(self.server, tenant, SERVER)
        echo(self.lan, f"{tenant}-internet", INTERNET)
        self.postgres = _Listening(self.server, tenant) if postgres else None

    def plug(self, host: Host, address: str, nic: str = "lan0") -> None:
        """Connects a host to the switch under `address` (with its prefix length)."""
        self.lan.nic(host, f"p{address.partition('/')[0].replace('.', '-')}"[:15], nic)
        self.lan.ip("link", "set", f"p{address.partition('/')[0].replace('.', '-')}"[:15], "master", "br0")
        host.ip("address", "add", address, "dev", nic)

    def _redis(self) -> subprocess.Popen[bytes]:
        command = [tool("redis-server", "redis-server"), "--bind", SERVER, "--port", str(REDIS_PORT), "--save", ""]
        process = self.server.start(
            *command, "--protected-mode", "no", "--dir", str(self._folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _until(lambda: self.server.run(lambda: redis("SET", "tenant", self.tenant)) == "OK", process)
        return process

    def close(self) -> None:
        if self.postgres is not None:
            self.postgres.close()
        self.server.close()
        self.lan.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Bed:
    """Both tenants, their proxies (primary first) and the nodes."""

    def __init__(self, nodes: int = 1, postgres: bool = False) -> None:
        self.underlay = Host("underlay")
        self.underlay.ip("link", "add", "br0", "type", "bridge")
        self.underlay.ip("link", "set", "br0", "up")
        self.underlay.ip("address", "add", f"{UNDERLAY}1/24", "dev", "br0")
        self.underlay.ip("address", "add", f"{INTERNET}/32", "dev", "lo")
        echo(self.underlay, "underlay-internet", INTERNET)
        self.networks = {tenant: TenantNetwork(tenant, postgres) for tenant in TENANTS}
        self.nodes = [self._host(f"node-{place}", 10 + place) for place in range(nodes)]
        self.proxies = {tenant: [self._proxy(tenant, place) for place in range(2)] for tenant in TENANTS}

    def _host(self, name: str, number: int) -> Host:
        host = Host(name)
        host.address = f"{UNDERLAY}{number}"
        self.underlay.nic(host, f"u{number}", "eth0")
        self.underlay.ip("link", "set", f"u{number}", "master", "br0")
        host.ip("address", "add", f"{host.address}/24", "dev", "eth0")
        return host

    def _proxy(self, tenant: str, place: int) -> Host:
        host = self._host(f"{tenant}-proxy-{place}", 20 + 10 * TENANTS.index(tenant) + place)
        self.networks[tenant].plug(host, f"10.0.0.{11 + place}/16")
        host.ip("route", "add", "default", "via", ROUTER)
        return host

    def spec(self, tenant: str, *rules: Rule, port: int = 8704, generation: int = 1, **fields: Any) -> VpcSpec:
        """The tenant's Vpc as control would tell it; `port` is that of the proxies' listeners."""
        proxies = tuple(Proxy(host.name, f"{host.address}:{port}", host.address) for host in self.proxies[tenant])
        known: dict[str, Any] = {"address": VIRTUAL, "proxies": proxies, "cidrs": (CIDR,), **fields}
        return VpcSpec(f"{tenant}/main", tenant, NUMBERS[tenant], generation, rules=rules, **known)

    def close(self) -> None:
        for hosts in ([*self.nodes], *self.proxies.values()):
            for host in hosts:
                host.close()
        for network in self.networks.values():
            network.close()
        self.underlay.close()


@contextlib.contextmanager
def bed(nodes: int = 1, postgres: bool = False) -> Iterator[Bed]:
    made = Bed(nodes, postgres)
    try:
        yield made
    finally:
        made.close()


class _Listening(Postgres):
    """PostgreSQL that also listens at the tenant's address; the table `tenant` has one row, its name."""

    def __init__(self, host: Host, tenant: str) -> None:
        self._host = host
        super().__init__()
        with (self.folder / "cluster" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        self.start()
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE tenant AS SELECT %s::text AS name", [tenant])

    def start(self) -> None:
        options = [f"-c{option}" for option in (*DURABLE_OFF, f"port={POSTGRES_PORT}")]
        command = [tool("postgres", "postgresql"), "-D", str(self.folder / "cluster"), "-k", str(self.folder), "-h", SERVER]
        with self.folder.with_suffix(".log").open("ab") as output:
            self.process = _from_the_main_loop(
                self._host.namespace,
                lambda: subprocess.Popen([*self._as, *command, *options], cwd=self.folder, stdout=output, stderr=output),
            )
        _until(self._answers, self.process)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}&port={POSTGRES_PORT}"


def echo(host: Host, name: str, address: str, port: int = ECHO_PORT) -> subprocess.Popen[bytes]:
    """TCP: a line with `name` and the caller's address as seen here, then what it is sent. UDP: both before what it is sent;
    `again N` is answered N times, every 10 ms."""
    process = host.start(sys.executable, "-c", _ECHO, name, address, str(port), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def redis(*words: str, address: str = SERVER, port: int = REDIS_PORT, timeout_s: float = TIMEOUT_S) -> str:
    """One command on a connection of its own, from the caller's namespace; what it answers. Raises OSError."""
    with socket.create_connection((address, port), timeout_s) as connection:
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words))
        answer = connection.recv(4096).decode()
    return answer.split("\r\n")[1 if answer.startswith("$") else 0].removeprefix("+")


def postgres_tenant(address: str = SERVER, port: int = POSTGRES_PORT, timeout_s: float = TIMEOUT_S) -> str:
    """Whose PostgreSQL answers. Raises psycopg.Error."""
    where = f"postgresql://postgres@{address}:{port}/postgres?connect_timeout={round(timeout_s)}&sslmode=disable"
    with psycopg.connect(where) as connection:
        found = connection.execute("SELECT name FROM tenant").fetchone()
    assert found is not None
    return str(found[0])


def greeting(address: str = SERVER, port: int = ECHO_PORT, timeout_s: float = TIMEOUT_S) -> tuple[str, str]:
    """(who answers at the echo, the address it saw). Raises OSError."""
    with socket.create_connection((address, port), timeout_s) as connection, connection.makefile("r") as lines:
        name, _, seen = lines.readline().strip().partition(" ")
    if not name:
        raise ConnectionResetError("closed without a word")
    return name, seen


def datagram(words: bytes, address: str = SERVER, port: int = ECHO_PORT, timeout_s: float = TIMEOUT_S) -> bytes:
    """What the UDP echo answers: its name, the address it saw, the words. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        sock.send(words)
        return sock.recv(65536)


def _from_the_main_loop(namespace: Namespace, spawn: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    """A program with a parent-death signal dies with the *thread* that started it: so this thread goes into the namespace and
    back, where `Namespace.run` would have used one that ends."""
    here = Namespace.here()
    try:
        namespaces.enter(namespace.descriptor)
        try:
            return spawn()
        finally:
            namespaces.enter(here.descriptor)
    finally:
        here.close()


def _until(holds: Callable[[], object], process: "subprocess.Popen[bytes]", limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return
        assert process.poll() is None, "a server ended at once"
        assert time.monotonic() < end, "a server does not answer"
        time.sleep(0.02)


def sandbox() -> Host:
    """What a driver gives a function: a namespace with loopback alone. `run` does what the function would, as root."""
    return Host("sandbox")


__all__ = ["Bed", "Host", "TenantNetwork", "bed", "datagram", "echo", "greeting", "postgres_tenant", "redis", "sandbox"]

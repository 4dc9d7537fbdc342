"""Functions that read a database in a private network, under load, while a proxy of that network fails.

CI takes the portable backend and one pair; FULL=1 (`make soak`) the kernel's too, and a proxy's death with that of each process.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.private_networks import CIDR, REDIS_PORT, SERVER, TENANTS, VIRTUAL, Bed, Host, bed
from faults.bench import CUT, FULL, KILL, STOP, Bench, Fault, recorded, settings
from faults.load import LEAF, MANAGE_S, WORKFLOWS, Load
from faults.running import PROCESSES, READY_S, Running, wait_for

from workers.network import namespaces

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

FOREGLOW = str(Path(sys.executable).with_name("foreglow"))
TENANT = TENANTS[0]
JOIN_PORT, PROXY_PORT = 8709, 8706
BACKENDS = ("portable", "kernel") if FULL else ("portable",)
BESIDE = PROCESSES if FULL else ("control",)
PROXY = "vpc-proxy"

# A leaf that first asks the network's database whose it is.
READ = f"""
import socket
def read():
    with socket.create_connection(("{SERVER}", {REDIS_PORT}), 3) as connection, connection.makefile("rb") as lines:
        connection.sendall(b"GET tenant\\r\\n")
        lines.readline()
        return lines.readline().strip().decode()
"""
READING = {name: READ + LEAF.replace('"%s "', f'"{name} " * (read() == "{TENANT}")') for name in ("left", "right")}


class Networked(Bench):
    """The test stands for whoever runs the proxies' hosts: a killed one is started again. A fault of `vpc-proxy (...)` is one of
    the proxy that carries the tunnel then."""

    def __init__(self, platform: Running, made: Bed, backend: str) -> None:
        super().__init__(platform, Load(platform, {**WORKFLOWS, **READING}, {"vpc": "shop"}))
        self._backend = backend
        self._hosts = made.proxies[TENANT]
        rules = [f"tcp:{SERVER}/32:{REDIS_PORT}"]
        wanted = {"name": "shop", "cidrs": [CIDR], "rules": rules, "address": VIRTUAL if backend == "kernel" else ""}
        with platform.control(MANAGE_S) as control:
            assert control.post("/v1/vpcs", json=wanted).status_code == 201
        for host in self._hosts:
            self._join(host)
        self._owed: list[tuple[Host, bytes, int]] = []
        """What hosts are still to say, and how often: they have begun."""
        self._proxies = [self._begun(host) for host in self._hosts]
        self._whole()
        wait_for(self._carriers, "the tunnel is open", READY_S)

    def suffer(self, faults: list[Fault]) -> None:
        """What is measured does not wait for a proxy that begins again; the next fault does."""
        super().suffer(faults)
        self._whole()

    # -- the proxies

    def _state(self, host: Host) -> Path:
        return self.platform.state.parent / host.name

    def _said(self, host: Host, words: bytes) -> int:
        log = self._state(host).with_suffix(".log")
        return log.read_bytes().count(words) if log.exists() else 0

    def _foreglow(self, host: Host | None, state: Path, *arguments: str) -> str:
        command = [FOREGLOW, *arguments, "--state", str(state)]

        def run() -> "subprocess.CompletedProcess[str]":
            return subprocess.run(command, check=False, capture_output=True, text=True, timeout=READY_S)

        done = host.run(run) if host is not None else run()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _join(self, host: Host) -> None:
        role = ("--role", PROXY)
        token = self._foreglow(None, self.platform.state, "node-token", *role, "--vpc", "default/shop").strip()
        control = f"{self.platform.environment['FOREGLOW_JOIN_HOST']}:{JOIN_PORT}"
        listen = ("--listen", f"{host.address}:{PROXY_PORT}")
        self._foreglow(host, self._state(host), "join", control, token, *role, "--name", host.name, *listen)

    def _begun(self, host: Host) -> "subprocess.Popen[bytes]":
        words = [b"proxy.serving", *([b'"role"'] if self._backend == "kernel" else [])]
        self._owed += [(host, word, self._said(host, word) + 1) for word in words]
        with self._state(host).with_suffix(".log").open("ab") as output:
            command = [FOREGLOW, "vpc", "proxy", "--state", str(self._state(host))]
            return host.start(*command, stdout=output, stderr=output)

    def _whole(self) -> None:
        """Both serve; of a pair by the kernel, each knows its role."""
        for host, word, count in self._owed:
            wait_for(lambda: self._said(host, word) >= count, f"{host.name} serves", READY_S)  # noqa: B023
        self._owed.clear()

    def _carriers(self) -> list[int]:
        """The place of the one that the node's tunnel goes by, as that says; none while it is not open."""
        with self.platform.control(MANAGE_S) as control:
            (tunnel,) = control.get("/v1/vpcs/shop").json()["tunnels"] or [{"ready": False}]
        if not tunnel["ready"] or tunnel["backend"] != self._backend:
            return []
        return [place for place, host in enumerate(self._hosts) if f"by {host.name}" in tunnel["reason"]]

    # -- faults

    def _struck(self) -> int:
        (place,) = wait_for(self._carriers, "one carries", READY_S)
        return int(place)

    def pids(self, name: str) -> list[int]:
        return [self._proxies[self._struck()].pid] if name.startswith(PROXY) else super().pids(name)

    def held(self, name: str, fault: str) -> contextlib.AbstractContextManager[None]:
        return self._cut_off(self._hosts[self._struck()]) if fault == CUT else super().held(name, fault)

    @staticmethod
    @contextlib.contextmanager
    def _cut_off(host: Host) -> Iterator[None]:
        for nic in ("eth0", "lan0"):
            host.ip("link", "set", nic, "down")
        try:
            yield
        finally:
            for nic in ("eth0", "lan0"):
                host.ip("link", "set", nic, "up")

    def back(self, name: str, pid: int) -> None:
        if not name.startswith(PROXY):
            super().back(name, pid)
            return
        place = [process.pid for process in self._proxies].index(pid)
        self._proxies[place].wait(10)
        self._proxies[place] = self._begun(self._hosts[place])

    def _named(self) -> list[str]:
        return [name for name in super()._named() if not name.startswith(PROXY)]


@contextlib.contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread, and every thread and process that it starts, is on that host."""
    here = namespaces.Namespace.here()
    try:
        namespaces.enter(host.namespace.descriptor)
        yield
    finally:
        namespaces.enter(here.descriptor)
        here.close()


@pytest.fixture(scope="module", params=BACKENDS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bed() as made, inside(made.nodes[0]):
        address = made.nodes[0].address
        joining = {"FOREGLOW_JOIN_HOST": address, "FOREGLOW_JOIN_PORT": str(JOIN_PORT), "FOREGLOW_UNDERLAY": address}
        where = settings(FOREGLOW_TUNNELS=request.param, **joining)
        with (
            Running(tmp_path_factory.mktemp("networked"), where) as platform,
            recorded(Networked(platform, made, request.param)) as there,
        ):
            yield there


def called(bench: Bench) -> str:
    assert isinstance(bench, Networked)
    return f"{PROXY} ({bench._backend})"


@pytest.mark.parametrize("fault", [KILL, STOP, CUT])
def test_one_fault_of_a_proxy(bench: Bench, fault: str) -> None:
    bench.suffer([(called(bench), fault)])


@pytest.mark.parametrize("beside", BESIDE)
def test_a_proxy_dies_with_another_process(bench: Bench, beside: str) -> None:
    faults: list[Fault] = [(called(bench), KILL), (beside, KILL)]
    bench.suffer(faults)


def test_after_all_of_it_nothing_is_lost_and_nothing_is_left_in_a_private_network(bench: Bench) -> None:
    bench.finish()

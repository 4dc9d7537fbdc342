"""What the drivers really make, a process sandbox and a microVM, in a private network by the portable backend."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.microvms import guest_image, microvms
from doubles.portable_networks import World, worlds
from doubles.private_networks import SERVER, TENANTS
from doubles.process_bench import Bench, Running, bench

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

# What a function of anybody's would do, names and errors included.
FUNCTION = """
import socket
def handler(event, context):
    try:
        with socket.create_connection((event["host"], event["port"]), event["timeout_s"]) as connection:
            connection.sendall(b"GET tenant\\r\\n")
            return connection.recv(100).decode()
    except OSError as error:
        return type(error).__name__
"""

# A name server with one address for every name (RFC 1035).
NAMES = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 53))
print("ready", flush=True)
while True:
    question, who = sock.recvfrom(512)
    end = question.index(0, 12) + 5
    found = question[end - 4:end - 2] == b"\\0\\1"  # an IPv4 address is asked for
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton(sys.argv[1]) if found else b""
    sock.sendto(question[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([found]) + bytes(4) + question[12:end] + answer, who)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with worlds(tmp_path_factory.mktemp("sandboxes")) as made:
        for network in made.bed.networks.values():
            names = network.server.start(sys.executable, "-c", NAMES, SERVER, stdout=-1)
            assert names.stdout is not None
            assert names.stdout.readline() == b"ready\n"
        made.tell(*(made.bed.spec(tenant, generation=2, resolver=SERVER) for tenant in TENANTS))
        for tenant in TENANTS:
            made.opened(tenant)
        yield made


def processes(folder: Path) -> contextlib.AbstractAsyncContextManager[Bench]:
    return bench(folder)


def machines(folder: Path) -> contextlib.AbstractAsyncContextManager[Bench]:
    return microvms(folder, guest_image())


@pytest.mark.parametrize("driver", [processes, machines], ids=["process", "microvm"])
def test_functions_of_two_tenants_read_their_own_database_by_address_and_by_name(
    world: World, tmp_path: Path, driver: Callable[[Path], contextlib.AbstractAsyncContextManager[Bench]]
) -> None:
    sandboxes = driver(tmp_path)  # here: from the node's namespace there is no way to where images are made of

    async def value(function: Running, host: str, port: int = 6379, timeout_s: float = 8.0) -> object:
        return await function.value({"host": host, "port": port, "timeout_s": timeout_s}, 30)

    async def run() -> None:
        async with sandboxes as made:
            for tenant in TENANTS:
                function = await made.run(FUNCTION, tenant=tenant)
                network = function.clone.network
                assert await value(function, SERVER, timeout_s=1.0) in ("OSError", "TimeoutError"), "it is attached to nothing"
                await world.plane.wire(network)
                attached = await world.plane.attach(f"{tenant}/main", "none", network)
                for host in (SERVER, "db.internal"):
                    assert await value(function, host) == f"${len(tenant)}\r\n{tenant}\r\n"
                assert await value(function, SERVER, 9) == "ConnectionResetError"
                for host in ("10.1.0.1", world.bed.nodes[0].address, "169.254.169.254", "100.64.0.1"):
                    assert await value(function, host, timeout_s=1.0) in (
                        "OSError",
                        "ConnectionResetError",
                        "ConnectionRefusedError",
                        "TimeoutError",
                    )
                attached.detach()
                await function.clone.kill("the test is over")

    world.node.do(run(), 240)

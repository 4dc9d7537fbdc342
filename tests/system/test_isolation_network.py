"""What a function can reach: its own loopback. No socket of the host, no family that namespaces do not hold."""

import socket
from pathlib import Path

import pytest
from doubles.loop import in_loop
from doubles.process_bench import bench

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("made_either_way")]

CONNECT = """
import socket
def handler(event, context):
    family, address = event
    try:
        with socket.socket(getattr(socket, family), socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            sock.connect(tuple(address) if isinstance(address, list) else address.replace("@", chr(0)))
        return "connected"
    except OSError as error:
        return type(error).__name__
"""


@in_loop
async def test_no_unix_socket_and_no_port_of_the_host_is_reached(tmp_path: Path) -> None:
    name = f"foreglow-test-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX) as path_socket, socket.socket(socket.AF_UNIX) as abstract, socket.socket() as port:
        path_socket.bind(str(tmp_path / "s"))
        abstract.bind("\0" + name)
        port.bind(("127.0.0.1", 0))
        for sock in (path_socket, abstract, port):
            sock.listen()
            sock.settimeout(0.05)
        async with bench(tmp_path / "bench") as made:
            one = await made.run(CONNECT)
            assert await one.value(["AF_UNIX", str(tmp_path / "s")]) == "FileNotFoundError"
            assert await one.value(["AF_UNIX", "@" + name]) == "ConnectionRefusedError"
            assert await one.value(["AF_INET", list(port.getsockname())]) == "ConnectionRefusedError"
            for sock in (path_socket, abstract, port):
                with pytest.raises(TimeoutError):
                    sock.accept()


@in_loop
async def test_nothing_outside_is_reached(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        one = await made.run(CONNECT)
        assert await one.value(["AF_INET", ["192.0.2.1", 80]]) == "OSError"  # network unreachable
        assert await one.value(["AF_INET6", ["2001:db8::1", 80]]) == "OSError"


@in_loop
async def test_only_four_socket_families_exist(tmp_path: Path) -> None:
    source = """
import errno, socket
def handler(event, context):
    made, refused = [], {}
    for family in range(0, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
                made.append(family)
            except OSError as error:
                refused.setdefault(family, set()).add(errno.errorcode[error.errno])
    return [sorted(set(made)), refused[40] == {"EAFNOSUPPORT"}, refused[17] == {"EAFNOSUPPORT"}, refused[38] == {"EAFNOSUPPORT"}]
"""
    async with bench(tmp_path) as made:
        families, vsock, packet, alg = await (await made.run(source)).value()
        assert set(families) <= {1, 2, 10, 16}
        assert {1, 2} <= set(families)
        assert vsock
        assert packet
        assert alg


@in_loop
async def test_its_own_loopback_works_and_is_not_its_neighbours(tmp_path: Path) -> None:
    source = """
import socket
kept = []
def handler(event, context):
    if event is None:
        server = socket.create_server(("127.0.0.1", 0))
        kept.append(server)
        with socket.create_connection(server.getsockname(), 2):
            return server.getsockname()[1]
    try:
        socket.create_connection(("127.0.0.1", event), 2).close()
        return "connected"
    except OSError as error:
        return type(error).__name__
"""
    async with bench(tmp_path) as made:
        one, other = await made.run(source), await made.run(source)
        port = await one.value()
        assert await one.value(port) == "connected"
        assert await other.value(port) == "ConnectionRefusedError"


@in_loop
async def test_the_only_interface_is_loopback_and_it_cannot_be_changed(tmp_path: Path) -> None:
    source = """
import fcntl, socket, struct
def handler(event, context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0))
            down = True
        except OSError:
            down = False
    try:
        open("/proc/sys/net/ipv4/ip_forward", "w").write("1")
        forward = True
    except OSError:
        forward = False
    return [[name for _, name in socket.if_nameindex() if name == "lo"], len(socket.if_nameindex()), down, forward]
"""
    async with bench(tmp_path) as made:
        loopback, count, down, forward = await (await made.run(source)).value()
        assert loopback == ["lo"]
        assert count >= 1  # kernels with tunnel modules built in show their templates, all down
        assert not down
        assert not forward

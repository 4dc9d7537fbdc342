"""Whether this process can carry a sandbox's connections here, found by doing it once."""

import os
import socket
from ipaddress import IPv4Network

from workers.network import namespaces
from workers.network.portable.wiring import Wired, original_destination, packet
from workers.ports import SandboxNetwork

ADDRESS, PORT = "10.20.30.40", 5432
TIMEOUT_S = 2.0


def probe() -> None:
    """Makes a namespace as a driver does, wires it, and sends a connection and a datagram through. Raises OSError that says
    what is not possible here and what would help."""
    namespaces.apart(_probe)


def _probe() -> None:
    try:
        namespaces.unshare()
        namespace = os.open(namespaces.HERE, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            "this node may not enter its sandboxes' network namespaces: run it as root, or where an ordinary user may make "
            "user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)",
        ) from error
    try:
        _through(namespace)
    finally:
        os.close(namespace)


def _through(namespace: int) -> None:
    try:
        wired = Wired(SandboxNetwork(namespace), [IPv4Network(f"{ADDRESS}/32")])
    except PermissionError:
        raise
    except OSError as error:
        raise OSError(
            error.errno, f"nf_tables cannot divert connections here ({error}): the kernel needs nf_tables and nft_tproxy"
        ) from error
    try:
        with socket.socket() as asking, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for sock in (wired.streams, wired.datagrams, asking, sending):
                sock.settimeout(TIMEOUT_S)
            asking.connect((ADDRESS, PORT))
            accepted, _ = wired.streams.accept()
            with accepted:
                if accepted.getsockname() != (ADDRESS, PORT):
                    raise OSError("a diverted connection does not show where it was going")
            sending.connect((ADDRESS, PORT))
            sending.send(b"?")
            _, ancillary, _, source = wired.datagrams.recvmsg(16, 64)
            if original_destination(ancillary) != (ADDRESS, PORT):
                raise OSError("a diverted datagram does not show where it was going")
            wired.answers.sendto(packet((ADDRESS, PORT), source, b"!"), (source[0], 0))
            if sending.recv(16) != b"!":
                raise OSError("a diverted datagram is answered wrongly")
    except TimeoutError as error:
        raise OSError("a connection is not diverted: nf_tables' tproxy does nothing here") from error
    finally:
        wired.close()

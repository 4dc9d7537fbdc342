"""A cluster's authority and identities, made as joining makes them."""

import time
from pathlib import Path

from orchestrator.authority import Authority, keep, make_request
from workers.rpc.transport import HostPort, Identity

LOOPBACK = "127.0.0.1"


def identity(authority: Authority, folder: Path, role: str, name: str, at: float | None = None, days: float = 365) -> Identity:
    """What `foreglow join` leaves behind, for a process of this name."""
    own = folder / f"{role}-{name}-{authority.digest[:8]}"
    own.mkdir(exist_ok=True)
    certificate, _ = authority.sign(make_request(own / "node.key"), role, name, at if at is not None else time.time(), days)
    keep(own / "node.pem", certificate.encode())
    keep(own / "ca.pem", authority.pem.encode())
    return Identity(own / "node.key", own / "node.pem", own / "ca.pem")


def port_of(server: object) -> HostPort:
    """Where a server that was given port 0 listens."""
    return HostPort(LOOPBACK, int(server.sockets[0].getsockname()[1]))  # type: ignore[attr-defined]

"""A port for a server that starts in a moment."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Bound here and never listening, so that nobody else is given it before the server binds it beside, by SO_REUSEADDR (as
    orchestrator.preflight.reserve_ports)."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        yield int(held.getsockname()[1])

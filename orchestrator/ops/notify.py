"""Tells systemd how the service stands (sd_notify): one datagram, nothing when nobody listens."""

import os
import socket

VARIABLE = "NOTIFY_SOCKET"
TIMEOUT_S = 1.0


def notify(state: str) -> None:
    """Sends `state` (READY=1, STOPPING=1). Never fails, and waits at most TIMEOUT_S."""
    address = os.environ.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(TIMEOUT_S)
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
            sender.sendall(state.encode())
    except OSError:
        return

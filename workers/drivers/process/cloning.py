"""What a template and a keeper have in common: the socket to the node, and the network of the next clone. Standard library only;
runs in them."""

import json
import os
import select
import socket
from typing import Any

from workers.drivers.process import isolation

LISTEN_LIMIT = 65536
SAFE = 600  # above every descriptor a template or a keeper has
QUIET_MS = 3  # without a request before the next clone's network is made


class Cloner:
    """Makes clones for the node, and ends with it."""

    def __init__(self, node: socket.socket) -> None:
        self._node = node
        self._poll = select.poll()
        self._network_fresh = True

    def _say(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(self._node, [json.dumps(message).encode()], descriptors)
        except OSError:
            os._exit(0)  # the node has gone

    def _hear(self) -> tuple[dict[str, Any], list[int]]:
        """A request and its descriptors."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._node, LISTEN_LIMIT, 16)
        except OSError:
            message, descriptors = b"", []
        if not message:
            os._exit(0)  # the node has gone
        request: dict[str, Any] = json.loads(message)
        return request, descriptors

    def _refresh_network(self) -> None:
        if not self._network_fresh:
            isolation.fresh_network()
        self._network_fresh = True

"""A Redis client for one command at a time: the example needs no packages."""

import os
import socket

TIMEOUT_S = 3.0


def ask(*words: str) -> str:
    """The answer to one command. Raises OSError, and LookupError for what is not there."""
    host, _, port = os.environ["DATABASE"].rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        encoded = [word.encode() for word in words]
        connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
        with connection.makefile("rb") as lines:
            head = lines.readline().decode().strip()
            if head.startswith("-"):
                raise OSError(head[1:])
            if head == "$-1":
                raise LookupError(
                    f"{words[-1]} is missing in the database at {host}:{port}; foreglow.toml says how to put it there"
                )
            return lines.readline().decode().strip() if head.startswith("$") else head[1:]

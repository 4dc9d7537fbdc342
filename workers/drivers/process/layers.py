"""Turns a folder of code into a detached, read-only mount that a sandbox attaches by itself: it never sees another folder.

With CAP_SYS_ADMIN in its mount namespace (root, or after isolation.enter_user_namespace) the node does this itself; else
a small process in a user namespace of its own does, over a socket. Run as a program, this file is that process.
"""

import os
import socket
import subprocess
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    for _name, _path in (
        ("workers", []),
        ("workers.drivers", [os.path.dirname(os.getcwd())]),
        ("workers.drivers.process", [os.getcwd()]),
    ):
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = _path

from workers.drivers import syscalls
from workers.drivers.process import isolation
from workers.drivers.syscalls import ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY

ANSWER_TIMEOUT_S = 5.0
MAX_PATH = 4096


def detach(folder: str) -> int:
    """A descriptor of `folder` as a mount: read-only, no devices, no setuid. Raises OSError."""
    tree = syscalls.open_tree(folder)
    try:
        syscalls.mount_setattr(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    except OSError:
        os.close(tree)
        raise
    return tree


def can_detach(folder: Path) -> bool:
    """Whether this process may do it itself; found by doing it."""
    try:
        os.close(detach(str(folder)))
    except OSError:
        return False
    return True


class LayerSource:
    """Gives detached mounts. `interpreter`: runs the small process; empty when this process can do it itself."""

    def __init__(self, interpreter: str = "") -> None:
        self._interpreter = interpreter
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        if interpreter:
            self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self._process = subprocess.Popen(
                [self._interpreter, "-I", "-S", "-B", "layers.py", str(theirs.fileno())],
                cwd=Path(__file__).parent,
                env={},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._sock = ours

    def detach(self, folder: Path) -> int:
        """Blocks for a fraction of a millisecond. Raises OSError naming the folder."""
        if not self._interpreter:
            return detach(str(folder))
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self._sock is not None
        self._sock.send(os.fsencode(folder))
        answer, descriptors, _, _ = socket.recv_fds(self._sock, MAX_PATH, 1)
        if not descriptors:
            raise OSError(f"{folder}: {answer.decode(errors='replace') or 'the process that mounts layers has gone'}")
        return descriptors[0]

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._sock = self._process = None


def main() -> None:
    """The small process: a path in, a mount out."""
    syscalls.die_with_parent()
    isolation.enter_user_namespace()
    syscalls.die_with_parent()
    node = socket.socket(fileno=int(sys.argv[1]))
    while path := node.recv(MAX_PATH):
        try:
            tree = detach(os.fsdecode(path))
        except OSError as error:
            node.send(str(error).encode()[:MAX_PATH])
            continue
        socket.send_fds(node, [b"ok"], [tree])
        os.close(tree)


if __name__ == "__main__":
    main()

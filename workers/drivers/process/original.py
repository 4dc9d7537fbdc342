"""The original of a function template: a version whose module was imported once, and which is forked for each instance.

Tenant code has run in this process, so what it may do is the tenant's: it makes no namespace and no mount. It is locked like
an instance, but that it may enter namespaces the keeper (keeper.py, which runs no tenant code) has made: it keeps
CAP_SYS_ADMIN in the user namespace that holds nothing but this version, and setns. What follows here in an honest version
is done by all its clones; a hostile one that does otherwise stays within these walls.

    keeper -> original   {} once it has been found fit to be cloned
    keeper -> original   {id} and descriptors [channel, out, err, ready, born, groups...]; `ready` brings the shell's namespaces
    original             sends a crossing over, a fork of it: that enters the shell's namespaces, forks the instance, and ends
    original -> keeper   {id, pid} (of the instance, as the keeper sees it) or {id, error}
"""

import contextlib
import fcntl
import gc
import json
import os
import socket
from typing import Any

from workers.drivers import syscalls
from workers.drivers.process import isolation, lockdown, seccomp
from workers.guest import runtime

CHANNEL, KEEPER = 3, 4
OWN_DESCRIPTORS = 5
LISTEN_LIMIT = 65536
ENTERED = (
    ("net", syscalls.NEWNET),  # the only one that belongs to the keeper's user namespace, so that no instance has a say in it
    ("user", syscalls.NEWUSER),
    ("mnt", syscalls.NEWNS),
    ("ipc", syscalls.NEWIPC),
    ("uts", syscalls.NEWUTS),
    ("cgroup", syscalls.NEWCGROUP),
    ("pid", syscalls.NEWPID),
)
"""Namespaces of a shell, in the order in which they can be entered."""

_fork = os.fork  # what user code puts in its place later is not ours
_FINAL = seccomp.assemble()


class Original:
    """`run` does not return, neither here nor in what is forked from here."""

    def __init__(self) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, CHANNEL)
        self._keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, KEEPER)
        self._instance: runtime.Instance | None = None
        self._next: tuple[int, socket.socket]  # the crossing that waits, and the way to it

    def run(self) -> None:
        self._instance = runtime.become(self._channel, self._enter)
        gc.collect()
        gc.freeze()
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._keeper, LISTEN_LIMIT, 16)
            if not message:
                os._exit(0)  # the keeper has gone
            request = json.loads(message)
            if "id" in request:
                crossing, answer = self._send(message, descriptors)
                self._keeper.send(json.dumps({"id": request["id"], **answer}).encode())
                os.waitpid(crossing, 0)
            self._make_crossing()

    def _enter(self, meta: dict[str, Any], _descriptors: list[int]) -> None:
        os.chdir(meta["paths"][0])

    def _make_crossing(self) -> None:
        """The next one, ahead: of the two forks an instance takes, one is done before it is asked for."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = _fork()
        if pid == 0:
            syscalls.die_with_parent()
            here.close()
            self._cross(there)
        there.close()
        self._next = (pid, here)

    def _send(self, message: bytes, descriptors: list[int]) -> tuple[int, dict[str, Any]]:
        """Sends the crossing over; its pid, and what is to be told the keeper."""
        pid, link = self._next
        with link:
            try:
                socket.send_fds(link, [message], descriptors)
                words = link.recv(4096)
            except OSError as error:
                words = str(error).encode()
        for descriptor in descriptors:
            os.close(descriptor)
        if words.isdigit():
            return pid, {"pid": int(words)}
        return pid, {"error": words.decode("utf-8", "replace") or "it ended"}

    def _cross(self, original: socket.socket) -> None:
        """In a process of its own: into the shell's namespaces; only its child will be in the process namespace too."""
        said = b""
        try:
            message, descriptors, _, _ = socket.recv_fds(original, LISTEN_LIMIT, 16)
            if not message:
                os._exit(0)
            channel, out, err, ready, born, *groups = descriptors
            here = os.getcwd()
            with socket.socket(fileno=ready) as shell:
                _, namespaces, _, _ = socket.recv_fds(shell, 1, len(ENTERED))
            if len(namespaces) != len(ENTERED):
                raise OSError("its sandbox was not made")
            for namespace, (_, kind) in zip(namespaces, ENTERED, strict=True):
                syscalls.setns(namespace, kind)
            pid = _fork()
            if pid == 0:
                original.close()
                self._instance_of(json.loads(message), (channel, out, err), groups, (born, *namespaces), here)
            os.write(born, b"1")
            said = str(pid).encode()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"[:4096].encode()
        finally:
            with contextlib.suppress(OSError):
                original.send(said)
            os._exit(0)

    def _instance_of(
        self, request: dict[str, Any], ends: tuple[int, int, int], groups: list[int], others: tuple[int, ...], here: str
    ) -> None:
        """In the clone. Never returns."""
        code = 1
        channel, out, err = ends
        try:
            for group in groups:
                os.write(group, b"0")
            self._keeper.detach()
            self._channel.detach()
            os.dup2(channel, CHANNEL, inheritable=False)
            os.dup2(out, 1)
            os.dup2(err, 2)
            for descriptor in (KEEPER, *ends, *groups, *others):
                os.close(descriptor)
            with contextlib.suppress(OSError):
                os.chdir(here)
            self._own_files()
            isolation.set_limits(request["tmp_mb"], request["address_space_mb"])
            lock = lockdown.Lockdown(_FINAL)
            lock.open_folders(syscalls.landlock_version())
            lock.prepare(sandboxed=True)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, CHANNEL)
            assert self._instance is not None
            runtime.resume(self._instance, sock, lambda _meta, _descriptors: lock.apply(0, sandboxed=True))
            code = 0
        except BaseException as error:
            runtime.not_made(CHANNEL, error)
        finally:
            os._exit(code)

    def _own_files(self) -> None:
        """Files that init keeps open get a position of their own: what is inherited would be one for all clones."""
        for name in os.listdir("/proc/self/fd"):
            inherited = int(name)
            if inherited < OWN_DESCRIPTORS:
                continue
            with contextlib.suppress(OSError):  # the listing itself, and what cannot be opened again
                flags = fcntl.fcntl(inherited, fcntl.F_GETFL)
                if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_PATH:
                    position = os.lseek(inherited, 0, os.SEEK_CUR)
                    own = os.open(f"/proc/self/fd/{name}", os.O_RDONLY | os.O_CLOEXEC)
                    os.lseek(own, position, os.SEEK_SET)
                    os.dup2(own, inherited, inheritable=os.get_inheritable(inherited))
                    os.close(own)

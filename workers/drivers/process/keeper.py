"""The keeper of a function template: cloned from the tenant's template, runs no tenant code, first process of the process
namespace in which one version's original lives.

It makes the original (original.py) and, for each instance, a shell: a process that holds namespaces, /tmp, /proc and network of
that instance and waits for its end. The original is only let in. Messages to the node as in template.py: {id, original} makes
the original and is answered by its pidfd; {id, inspect} by {id, refused: [kind, why]}; {id} by the pidfds of a shell and the
instance in it.
"""

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

from workers.drivers import syscalls
from workers.drivers.process import isolation, lockdown, original, residue, seccomp
from workers.drivers.process.cloning import LISTEN_LIMIT, QUIET_MS, SAFE, Cloner

NODE = 3
KEEPER_TMP_MB = 1
ORIGINAL_PROCESSES = 512  # of the whole version, where no control group counts
ENTRY_PID = 2  # of an instance in its own process namespace, after its shell


class Keeper(Cloner):
    """`serve` does not return. Anything unexpected ends it, and with it the original and all instances."""

    def __init__(self, node: socket.socket, tid_address: int) -> None:
        super().__init__(node)
        self._tid_address = tid_address
        self._ends: dict[int, int] = {}  # pid of the original or an instance -> id of its request
        self._asked: dict[int, tuple[int, int]] = {}  # id -> (pidfd, pid) of the shell that waits for its instance
        self._link: socket.socket | None = None
        self._original = 0
        self._waker: socket.socket
        self._lockdown = lockdown.Lockdown(seccomp.assemble(seccomp.ORIGINAL_ALLOWED))
        self._final = seccomp.assemble()
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def serve(self) -> None:
        self._poll.register(self._node, select.POLLIN)
        awake, self._waker = socket.socketpair()
        for one in (awake, self._waker):
            one.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._waker.fileno())
        self._poll.register(awake, select.POLLIN)
        while True:
            ready = self._poll.poll(None if self._network_fresh else QUIET_MS)
            if not ready:
                self._refresh_network()
            for descriptor, _ in ready:
                if descriptor == self._node.fileno():
                    self._request()
                elif self._link is not None and descriptor == self._link.fileno():
                    self._born()
                elif descriptor == awake.fileno():
                    awake.recv(LISTEN_LIMIT)
                    self._reap()

    def _request(self) -> None:
        request, descriptors = self._hear()
        try:
            if request.get("inspect"):
                refused = residue.found(self._original, original.OWN_DESCRIPTORS)
                if refused is None and self._link is not None:
                    self._link.send(b"{}")
                self._say({"id": request["id"], "refused": refused})
            elif request.get("original"):
                self._make_original(request, descriptors)
            else:
                self._make_instance(request, descriptors)
        except OSError as error:
            self._say({"id": request["id"], "error": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _clone(self, flags: int, request: dict[str, Any], descriptors: list[int], become: Callable[[], None]) -> tuple[int, int]:
        self._refresh_network()
        group = descriptors[3] if request["into_cgroup"] else -1
        pid, pidfd = syscalls.clone3(flags, self._tid_address, group)
        if pid == 0:
            with contextlib.suppress(BaseException):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._waker.close()
                syscalls.die_with_parent()
                become()
            os._exit(1)
        self._network_fresh = False
        return pid, pidfd

    # -- the original

    def _make_original(self, request: dict[str, Any], descriptors: list[int]) -> None:
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        flags = syscalls.NEWNS | syscalls.NEWIPC | syscalls.NEWUTS
        with theirs:
            pid, pidfd = self._clone(flags, request, descriptors, lambda: self._become_original(request, descriptors, theirs))
        self._original, self._link = pid, link
        self._ends[pid] = request["id"]
        self._poll.register(link, select.POLLIN)
        self._say({"id": request["id"], "pid": pid}, (pidfd,))
        os.close(pidfd)

    def _become_original(self, request: dict[str, Any], descriptors: list[int], keeper: socket.socket) -> None:
        channel, out, err, *groups = descriptors
        if not request["into_cgroup"]:
            for tasks in groups:
                os.write(tasks, b"0")
        syscalls.unshare(syscalls.NEWCGROUP)
        isolation.own_tmp(request["tmp_mb"])
        os.dup2(out, 1)
        os.dup2(err, 2)
        isolation.set_limits(request["tmp_mb"], request["address_space_mb"], ORIGINAL_PROCESSES)
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, SAFE) for descriptor in (channel, keeper.fileno())]
        for target, source in zip((original.CHANNEL, original.KEEPER), high, strict=True):
            os.dup2(source, target, inheritable=False)
        for one in (keeper, self._node):
            one.detach()
        syscalls.close_range(original.OWN_DESCRIPTORS, 0xFFFF_FFFF)
        syscalls.drop_bounding_set()
        self._lockdown.open_folders(syscalls.landlock_version())
        self._lockdown.allow_all()
        self._lockdown.apply(original.OWN_DESCRIPTORS, sandboxed=True, capability=syscalls.CAP_SYS_ADMIN)
        gc.enable()
        original.Original().run()

    # -- instances

    def _make_instance(self, request: dict[str, Any], descriptors: list[int]) -> None:
        if self._link is None or not self._original:
            raise OSError("the original has gone")
        ready, made = socket.socketpair()
        born, enter = os.pipe()
        passed: list[int] = []

        def become() -> None:
            self._become_shell(request, descriptors, made, born)

        try:
            pid, pidfd = self._clone(isolation.NAMESPACES, request, descriptors, become)
            groups = self._joins(request, descriptors[3:])
            passed = groups if request["into_cgroup"] else []
            self._asked[request["id"]] = (pidfd, pid)
            kept = {key: request[key] for key in ("id", "tmp_mb", "address_space_mb")}
            socket.send_fds(self._link, [json.dumps(kept).encode()], [*descriptors[:3], ready.fileno(), enter, *groups])
        finally:
            ready.close()
            made.close()
            for descriptor in (born, enter, *passed):
                os.close(descriptor)

    def _joins(self, request: dict[str, Any], groups: list[int]) -> list[int]:
        """What an instance writes itself into: with v2 the folder's list, opened here because its own rules forbid it."""
        if not request["into_cgroup"]:
            return groups
        return [os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=groups[0])]

    def _become_shell(self, request: dict[str, Any], descriptors: list[int], made: socket.socket, born: int) -> None:
        """Holds the namespaces of one instance; ends with it, and everything in them with that."""
        if not request["into_cgroup"]:
            for tasks in descriptors[3:]:
                os.write(tasks, b"0")
        syscalls.unshare(syscalls.NEWCGROUP)
        isolation.enter_sandbox(self._proc, request["tmp_mb"])
        namespaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name, _ in original.ENTERED]
        socket.send_fds(made, [b"1"], namespaces)
        made.detach()
        born = os.dup2(fcntl.fcntl(born, fcntl.F_DUPFD_CLOEXEC, SAFE), 0, inheritable=False)
        self._node.detach()
        if self._link is not None:
            self._link.detach()
        syscalls.close_range(1, 0xFFFF_FFFF)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.drop_bounding_set()
        syscalls.drop_capabilities()
        syscalls.seccomp(self._final)
        if os.read(born, 1) == b"1":
            inside = os.pidfd_open(ENTRY_PID)
            poll = select.poll()
            poll.register(inside, select.POLLIN)
            while not poll.poll():
                pass
        os._exit(0)

    def _born(self) -> None:
        """The original says how it went. What it says is worth its own instances, not more."""
        assert self._link is not None
        try:
            message = self._link.recv(LISTEN_LIMIT)
        except OSError:  # it has gone with requests unread
            message = b""
        if not message:
            self._lost_original()
            return
        answer = json.loads(message)
        shell, pid = self._asked.pop(answer["id"])
        inside = -1
        try:
            if "pid" not in answer:
                raise OSError(str(answer.get("error"))[:1000])
            if answer["pid"] in self._ends:
                raise OSError("that process is another")
            inside = os.pidfd_open(int(answer["pid"]))
        except OSError as error:
            syscalls.pidfd_send_signal(shell, syscalls.SIGKILL)
            self._say({"id": answer["id"], "error": f"no instance came of it: {error}"})
        else:
            self._ends[int(answer["pid"])] = answer["id"]
            self._say({"id": answer["id"], "pid": pid}, (shell, inside))
            os.close(inside)
        os.close(shell)

    # -- ends

    def _reap(self) -> None:
        """Whoever has ended, and what came to us because its parent has: until that is done, the process namespace it was in
        cannot end."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                ident = self._ends.pop(pid, None)
                if pid == self._original:
                    self._lost_original()
                if ident is not None:
                    code = os.waitstatus_to_exitcode(status)
                    self._say({"exit": ident, "code": code} if code >= 0 else {"exit": ident, "signal": -code})

    def _lost_original(self) -> None:
        """No more instances; those there are live on. Whoever waits is told."""
        self._original = 0
        if not residue.end_strays():  # nobody's, and where no control group counts they would be counted by nobody
            os._exit(1)  # with its first process the whole namespace ends
        if self._link is not None:
            self._poll.unregister(self._link)
            self._link.close()
            self._link = None
        while self._asked:
            ident, (shell, _) = self._asked.popitem()
            syscalls.pidfd_send_signal(shell, syscalls.SIGKILL)
            os.close(shell)
            self._say({"id": ident, "error": "the original has gone"})


def run(proc: int, descriptors: list[int], tid_address: int) -> None:
    """In a fresh clone of the tenant's template. `descriptors`: the socket to the node, then the layers. Never returns."""
    try:
        syscalls.die_with_parent()
        isolation.enter_sandbox(proc, KEEPER_TMP_MB)
        isolation.attach_layers(descriptors[1:])
        os.dup2(fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, SAFE), NODE, inheritable=False)
        syscalls.close_range(NODE + 1, 0xFFFF_FFFF)
        unused = os.fork()  # OpenSSL sees a fork by the process id: the original must not have the one its instances will have
        if unused == 0:
            os._exit(0)
        os.waitpid(unused, 0)
        isolation.fresh_network()
        node = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, NODE)
        Keeper(node, tid_address).serve()
    except BaseException:
        traceback.print_exc()  # to the node's own output: nothing of the tenant's is in it
    finally:
        os._exit(1)

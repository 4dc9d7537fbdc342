"""The program of a template process: warms an interpreter, assembles the sandbox root, and clones itself on request.

Started as `python -I -S template.py FD` by templates.py; FD is a SOCK_SEQPACKET socket to the node. It stays single
threaded, is never pid 1, runs no tenant code, and dies with the node. Its clones become sandboxes (see isolation.py) and
then run workers/guest/runtime.py. Messages, JSON both ways: first the set-up (Setup in templates.py), answered by
{ready} or {error}; then {id, tmp_mb, ...} with descriptors [channel, out, err, cgroup...], answered by {id, pid} with
the clone's pidfd or by {id, error}; {exit: id, code | signal} when a clone has ended. A request with `keeper` is for a clone
that becomes the keeper of a function template (keeper.py); its descriptors are [socket, layers...].
"""

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import types
from typing import Any

CHANNEL = 3  # descriptor of the channel in a sandbox
OOM_SCORE = "500"
REHEARSALS = 24
STANDBY_AFTER_S = 0.02  # a clone nobody has specialised by then is a standby


def _load_siblings() -> None:
    """Makes the modules beside this file importable by their usual names, for the imports below only."""
    here = os.getcwd()
    packages: dict[str, list[str]] = {
        "workers": [os.path.dirname(os.path.dirname(here))],
        "workers.drivers": [os.path.dirname(here)],
        "workers.drivers.process": [here],
    }
    for name, path in packages.items():
        module = types.ModuleType(name)
        module.__path__ = path
        sys.modules[name] = module


_fork_hooks: list[dict[str, Any]] = []
_register_at_fork = os.register_at_fork


def _defer_fork_hooks() -> None:
    """Python-level fork hooks (threading, logging, random) are kept for the clones' own forks. For a clone itself they repair
    nothing, since a template has one thread and holds no lock, and numbers are re-seeded later; yet they would make each
    clone write to a hundred pages it can go on sharing."""
    os.register_at_fork = lambda **hooks: _fork_hooks.append(hooks)


_load_siblings()
_defer_fork_hooks()

from workers.drivers import syscalls  # noqa: E402
from workers.drivers.process import isolation, keeper, lockdown, seccomp  # noqa: E402
from workers.drivers.process.cloning import LISTEN_LIMIT, QUIET_MS, SAFE, Cloner  # noqa: E402
from workers.guest import runtime, warmup  # noqa: E402


class Template(Cloner):
    """One template process. `serve` does not return."""

    def __init__(self, node: socket.socket) -> None:
        super().__init__(node)
        self._clones: dict[int, int] = {}  # pidfd -> request id
        self._lockdown = lockdown.Lockdown(seccomp.assemble())
        self._landlock = syscalls.landlock_version()
        self._tid_address = syscalls.thread_id_address()
        self._sandboxed = True
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def set_up(self, setup: dict[str, Any]) -> None:
        """Becomes the tenant's user, assembles the root, warms up."""
        self._sandboxed = setup["sandboxed"]
        if setup["uid"]:
            isolation.become(setup["uid"])
        if self._sandboxed:
            isolation.enter_template(
                [tuple(pair) for pair in setup["binds"]],
                [tuple(pair) for pair in setup["links"]],
                setup["masks"],
                self._proc,
            )
            syscalls.die_with_parent()
        warmup.preload()
        os.register_at_fork = _register_at_fork
        for name in [name for name in sys.modules if name.partition(".")[0] == "workers"]:
            del sys.modules[name]
        if self._sandboxed:
            isolation.fresh_network()
            self._lockdown.open_folders(self._landlock)
            warmup.rehearse(REHEARSALS, isolation.LAYERS_AT, isolation.REHEARSAL)
        runtime.__name__ = "foreglow"
        for thing in (runtime.InvokeError, runtime.Request, runtime.Context, runtime.Call):
            thing.__module__ = "foreglow"
        sys.modules["foreglow"] = runtime
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv = [""]
        gc.collect()
        gc.freeze()
        gc.disable()

    def serve(self) -> None:
        self._poll.register(self._node, select.POLLIN)
        while True:
            ready = self._poll.poll(None if self._network_fresh else QUIET_MS)
            if not ready:
                self._refresh_network()
            for descriptor, _ in ready:
                if descriptor == self._node.fileno():
                    self._request()
                else:
                    self._ended(descriptor)

    def _ended(self, pidfd: int) -> None:
        if not self._sandboxed:
            dead = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
            if dead is not None:
                with contextlib.suppress(OSError):  # not reaped yet, so the number is still its own
                    os.killpg(dead.si_pid, signal.SIGKILL)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        ident = self._clones.pop(pidfd)
        if result is not None:
            key = "code" if result.si_code == os.CLD_EXITED else "signal"
            self._say({"exit": ident, key: result.si_status})

    def _request(self) -> None:
        request, descriptors = self._hear()
        cgroup = descriptors[3] if request["into_cgroup"] else -1
        try:
            self._refresh_network()
            pid, pidfd = syscalls.clone3(isolation.NAMESPACES if self._sandboxed else 0, self._tid_address, cgroup)
        except OSError as error:
            self._say({"id": request["id"], "error": str(error)})
        else:
            if pid == 0 and request["keeper"]:
                keeper.run(self._proc, descriptors, self._tid_address)
            if pid == 0:
                self._become_clone(request, descriptors)
            self._network_fresh = not self._sandboxed
            self._clones[pidfd] = request["id"]
            self._poll.register(pidfd, select.POLLIN)
            self._say({"id": request["id"], "pid": pid}, (pidfd,))
        for descriptor in descriptors:
            os.close(descriptor)

    def _become_clone(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """In the clone. Never returns."""
        code = 1
        channel = descriptors[0]
        try:
            syscalls.die_with_parent()
            for target, source in ((1, descriptors[1]), (2, descriptors[2])):
                os.dup2(source, target)
            if not request["into_cgroup"]:
                for tasks in descriptors[3:]:
                    os.write(tasks, b"0")
            if self._sandboxed:
                syscalls.unshare(syscalls.NEWCGROUP)
                isolation.enter_sandbox(self._proc, request["tmp_mb"])
            else:
                os.setsid()
            isolation.set_limits(request["tmp_mb"], request["address_space_mb"])
            self._lockdown.prepare(self._sandboxed)
            channel = self._keep_only(channel)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, channel)
            if self._sandboxed and not select.select([sock], [], [], STANDBY_AFTER_S)[0]:
                # nobody is in a hurry: touch now what specialising will write
                warmup.rehearse(1, isolation.LAYERS_AT, isolation.REHEARSAL, invoke=False)
            for hooks in _fork_hooks:
                os.register_at_fork(**hooks)
            gc.enable()
            runtime.serve(sock, self._attach)
            code = 0
        except BaseException as error:
            runtime.not_made(channel, error)
        finally:
            os._exit(code)

    def _keep_only(self, channel: int) -> int:
        """The channel becomes descriptor 3; the ruleset of the lockdown is kept; everything else is closed."""
        high = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, SAFE)
        kept = self._lockdown.keep_at(CHANNEL + 1, SAFE)
        os.dup2(high, CHANNEL, inheritable=False)
        syscalls.close_range(CHANNEL + 1 + kept, 0xFFFF_FFFF)
        self._node.detach()
        return CHANNEL

    def _attach(self, meta: dict[str, Any], descriptors: list[int]) -> None:
        """Between SPECIALISE and the first byte of tenant code."""
        if self._sandboxed:
            isolation.attach_layers(descriptors)
        os.chdir(meta["paths"][0])
        self._lockdown.apply(CHANNEL + 1, self._sandboxed)


def main() -> None:
    syscalls.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(OOM_SCORE)  # when the host is out of memory, a sandbox goes before a process of the platform
    node = socket.socket(fileno=int(sys.argv[1]))
    template = Template(node)
    try:
        template.set_up(json.loads(node.recv(LISTEN_LIMIT)))
        answer: dict[str, Any] = {"ready": True}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    node.send(json.dumps(answer).encode())
    if "error" in answer:
        sys.exit(1)
    template.serve()


if __name__ == "__main__":
    main()

"""The program that runs one command in a sandbox of its own, once: `python -I -S confined.py FD`.

Started by confining.py; FD is a SOCK_SEQPACKET socket to it. Standard library only, one thread, never pid 1. It assembles a
root (isolation.py), makes a process namespace whose first process locks itself down and starts the command, and ends when
that has ended; everything in the namespace ends with it, daemons too. Its own end, or the other side's, ends the sandbox.

First message: the set-up (Setup in confining.py) with descriptors [output, control group...]. Answers: {started} with
[pidfd of the first process, listener on the sandbox's loopback], {folder} with a descriptor of /tmp/out, and at last
{code}; {error} when a step failed.
"""

import json
import os
import select
import signal
import socket
import stat
import sys
import types
from typing import Any

WORK, OUT = "/tmp", "/tmp/out"  # noqa: S108
STAGES = ("/mnt", "/media", "/srv", "/tmp")  # any folder that is there: it is covered, in a namespace of our own  # noqa: S108
INODES = "256k"
OOM_SCORE = "600"
MESSAGE = 1 << 18
BACKLOG = 64


def _load_siblings() -> None:
    """Makes the modules beside this file importable by their usual names."""
    here = os.path.dirname(os.path.abspath(__file__))
    packages = {"workers": [], "workers.drivers": [os.path.dirname(here)], "workers.drivers.process": [here]}
    for name, path in packages.items():
        module = types.ModuleType(name)
        module.__path__ = path
        sys.modules[name] = module


if __name__ == "__main__":
    _load_siblings()

from workers.drivers import syscalls  # noqa: E402
from workers.drivers.process import isolation, lockdown, seccomp  # noqa: E402


def staged(files: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """`files` (source, target) at places that every user may reach: root's own may lie in folders that only root may enter."""
    if os.geteuid() != 0 or not files:
        return files
    syscalls.unshare(syscalls.NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    trees = [(syscalls.open_tree(source), stat.S_ISDIR(os.stat(source).st_mode)) for source, _ in files]
    stage = next(folder for folder in STAGES if os.path.isdir(folder))
    syscalls.mount("tmpfs", stage, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,mode=755")
    placed: list[tuple[str, str]] = []
    for number, ((tree, is_folder), (_, target)) in enumerate(zip(trees, files, strict=True)):
        place = f"{stage}/{number}"
        if is_folder:
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        syscalls.move_mount(tree, place)
        os.close(tree)
        placed.append((place, target))
    return placed


class Cloister:
    """One sandbox and the socket to who asked for it."""

    def __init__(self, asker: socket.socket) -> None:
        self._asker = asker

    def say(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._asker, [json.dumps(message).encode()], descriptors)

    def run(self, setup: dict[str, Any], descriptors: list[int]) -> None:
        """Returns when the command has ended and nothing of it is left."""
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        files = staged([tuple(pair) for pair in setup["files"]])
        if setup["uid"]:
            isolation.become(setup["uid"])
        binds = [tuple(pair) for pair in setup["binds"]]
        isolation.enter_template([*binds, *files], [tuple(pair) for pair in setup["links"]], setup["masks"], proc)
        syscalls.die_with_parent()
        isolation.fresh_network()
        lock = lockdown.Lockdown(seccomp.assemble())
        lock.open_folders(syscalls.landlock_version())
        listener = socket.create_server(("127.0.0.1", setup["port"]), backlog=BACKLOG)
        group = descriptors[1] if setup["into_cgroup"] else -1
        pid, pidfd = syscalls.clone3(isolation.NAMESPACES, 0, group)
        if pid == 0:
            self._become_first(setup, descriptors, proc, lock)
        self.say({"started": pid}, (pidfd, listener.fileno()))
        listener.close()
        for descriptor in descriptors:
            os.close(descriptor)
        self._wait(pidfd)

    def _wait(self, pidfd: int) -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._asker, select.POLLIN)
        if all(descriptor != pidfd for descriptor, _ in poll.poll()):
            syscalls.pidfd_send_signal(pidfd, syscalls.SIGKILL)  # nobody wants it any more
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert ended is not None
        exited = ended.si_code == os.CLD_EXITED
        self.say({"code": ended.si_status if exited else -ended.si_status})

    def _become_first(self, setup: dict[str, Any], descriptors: list[int], proc: int, lock: lockdown.Lockdown) -> None:
        """In the first process of the namespace. Never returns."""
        try:
            syscalls.die_with_parent()
            if not setup["into_cgroup"]:
                for tasks in descriptors[1:]:
                    os.write(tasks, b"0")
            syscalls.unshare(syscalls.NEWCGROUP)
            uid = isolation.INSIDE_UID
            isolation.map_ids(proc, uid, uid, uid, uid)
            syscalls.set_hostname("build")
            options = f"size={setup['disk_mb']}m,nr_inodes={INODES},mode=1777"
            syscalls.mount("tmpfs", WORK, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
            syscalls.mount("proc", "/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
            os.mkdir(OUT)
            folder = os.open(OUT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            self.say({"folder": True}, (folder,))
            for target, source in ((0, nothing), (1, descriptors[0]), (2, descriptors[0])):
                os.dup2(source, target)
            isolation.set_limits(setup["disk_mb"], setup["address_space_mb"])
            lock.prepare(True)
            os.chdir(WORK)
            lock.apply(3, True)
        except BaseException as error:
            self.say({"error": f"{type(error).__name__}: {error}"})
            os._exit(1)
        os._exit(attend(setup["arguments"], setup["environment"]))


def attend(arguments: list[str], environment: dict[str, str]) -> int:
    """Runs the command as first process of the namespace: buries what it leaves, and ends when the command itself does."""
    command = os.fork()
    if command == 0:
        try:
            os.execve(arguments[0], arguments, environment)  # noqa: S606
        except OSError as error:
            os.write(2, f"{arguments[0]}: {error}\n".encode())
        os._exit(127)
    while True:
        pid, status = os.wait()
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    syscalls.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(OOM_SCORE)  # when the host is out of memory, a build goes before anything else
    cloister = Cloister(socket.socket(fileno=int(sys.argv[1])))
    message, descriptors, _, _ = socket.recv_fds(cloister._asker, MESSAGE, 16)
    try:
        cloister.run(json.loads(message), descriptors)
    except Exception as error:
        cloister.say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()

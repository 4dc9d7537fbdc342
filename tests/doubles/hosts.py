"""Hosts on one machine: network namespaces with addresses of their own, joined by veth pairs to the first of them."""

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
CLONE_NEWNET = 0x40000000
DEPLOY_S = 240.0  # it waits for what is built and started, on a busy machine for long

Found = TypeVar("Found")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Hosts:
    """`names[0]` reaches every other: it is .1 and the other .2 of a network of their own. Ended by `close`, which fails when a
    process was left in one of them."""

    def __init__(self, *names: str) -> None:
        self._mark = f"fg{secrets.token_hex(3)}"
        self.names = names
        self.processes: list[subprocess.Popen[bytes]] = []
        first = names[0]
        for name in names:
            ip("netns", "add", self.space(name))
            ip("-n", self.space(name), "link", "set", "lo", "up")
        for number, name in enumerate(names[1:], 1):
            near, far = self.link(name), f"{self._mark}{number}b"
            ip("-n", self.space(first), "link", "add", near, "type", "veth", "peer", "name", far, "netns", self.space(name))
            for space, device, host in ((self.space(first), near, 1), (self.space(name), far, 2)):
                ip("-n", space, "addr", "add", f"10.77.{number}.{host}/24", "dev", device)
                ip("-n", space, "link", "set", device, "up")
            ip("-n", self.space(name), "route", "add", "default", "via", f"10.77.{number}.1")

        forward = ["sysctl", "-qw", "net.ipv4.ip_forward=1"]  # the others reach each other through the first
        subprocess.run(self.inside(first, forward), check=True, capture_output=True, timeout=10)

    def space(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def link(self, name: str) -> str:
        """The first host's end of its link to `name`."""
        return f"{self._mark}{self.names.index(name)}a"

    def address(self, name: str, of: str = "") -> str:
        """Of a host; of the first one, as `of` reaches it."""
        return f"10.77.{self.names.index(of or name)}.{1 if of else 2}"

    def cut(self, name: str) -> None:
        ip("-n", self.space(self.names[0]), "link", "set", self.link(name), "down")

    def mend(self, name: str) -> None:
        ip("-n", self.space(self.names[0]), "link", "set", self.link(name), "up")

    def inside(self, name: str, words: Sequence[str]) -> list[str]:
        """The command, in a host's network and nothing else of it."""
        return ["nsenter", f"--net=/run/netns/{self.space(name)}", *words]

    def start(self, name: str, log: Path, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        with log.open("ab") as out:
            process = subprocess.Popen(
                self.inside(name, [*FOREGLOW, *words]), env={**_clean(), **environment}, stdout=out, stderr=out, process_group=0
            )
        self.processes.append(process)
        return process

    def run(self, name: str, *words: str, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command of the platform, to its end."""
        command = self.inside(name, [*FOREGLOW, *words])
        return subprocess.run(
            command, env={**_clean(), **environment}, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def call(self, name: str, function: Callable[..., Found], *arguments: Any) -> "Calling[Found]":
        """Runs `function` in a thread that is in the host's network."""
        return Calling(f"/run/netns/{self.space(name)}", function, *arguments)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        left = {name: self._pids(name) for name in self.names}
        for pids in left.values():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        for name in self.names:
            ip("netns", "del", self.space(name))
        assert not any(left.values()), f"processes were left in namespaces: {left}"

    def _pids(self, name: str) -> list[int]:
        deadline = time.monotonic() + 10
        while True:
            done = subprocess.run(
                ["ip", "netns", "pids", self.space(name)], capture_output=True, text=True, check=True, timeout=10
            )
            pids = [int(one) for one in done.stdout.split()]
            if not pids or time.monotonic() > deadline:
                return pids
            time.sleep(0.05)


class Calling(Generic[Found]):
    """A call under way in another host's network."""

    def __init__(self, space: str, function: Callable[..., Found], *arguments: Any) -> None:
        self._answer: list[Found] = []
        self._error: list[BaseException] = []
        self.ended = 0.0

        def body() -> None:
            try:
                descriptor = os.open(space, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(descriptor)
                self._answer.append(function(*arguments))
            except BaseException as error:
                self._error.append(error)
            self.ended = time.monotonic()

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()

    def result(self, timeout_s: float = 60.0) -> Found:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "no answer in time"
        if self._error:
            raise self._error[0]
        return self._answer[0]


def _clean() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FOREGLOW_")}

"""docs/two-hosts.md as somebody follows it: its commands, on two hosts that are network namespaces."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import valkey

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "two-hosts.md").read_text()
ADDRESSES = {"a": "10.89.0.1", "b": "10.89.0.2"}
WAIT_S = 90.0


def block(name: str) -> str:
    """The shell block that follows <!-- name --> in the document."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found is not None, name
    return found[1]


class Hosts:
    """Two namespaces joined by a cable. Each has a state folder and a runtime folder of its own; the origin is shared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = {host: f"fg-{host}-{os.getpid()}" for host in ADDRESSES}
        self.running: list[subprocess.Popen[bytes]] = []
        for name in self.names.values():
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        a, b = self.names.values()
        self.ip("link", "add", "fg0", "netns", a, "type", "veth", "peer", "name", "fg0", "netns", b)
        for host, address in ADDRESSES.items():
            self.ip("-n", self.names[host], "address", "add", f"{address}/24", "dev", "fg0")
            self.ip("-n", self.names[host], "link", "set", "fg0", "up")

    @staticmethod
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=WAIT_S)

    def command(self, host: str, script: str) -> list[str]:
        """The document's paths are the hosts' own: here they are below the test's folder."""
        own = self.folder / host
        own.mkdir(exist_ok=True)
        for path, here in (("/var/lib/foreglow", own / "state"), ("/srv/foreglow-origin", self.folder / "origin")):
            script = script.replace(path, str(here))
        return ["ip", "netns", "exec", self.names[host], "sh", "-euc", f"cd {own}\n{script}"]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.folder), **more}

    def run(self, host: str, script: str, **more: str) -> str:
        done = subprocess.run(
            self.command(host, script), env=self.environment(**more), capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    def start(self, host: str, script: str, **more: str) -> None:
        log = (self.folder / f"{host}.log").open("ab")
        self.running.append(
            subprocess.Popen(self.command(host, f"exec {script}"), env=self.environment(**more), stdout=log, stderr=log)
        )
        log.close()

    def close(self) -> None:
        for one in reversed(self.running):
            one.terminate()
        for one in self.running:
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, timeout=WAIT_S)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="fg-"))
    made = Hosts(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def test_the_walkthrough_ends_with_an_answer_from_the_other_host(hosts: Hosts) -> None:
    settings = block("host a: settings")
    redis = [*valkey.command(hosts.folder / "r.sock", hosts.folder / "valkey"), "--port", "6379", "--bind", "127.0.0.1"]
    hosts.start("a", " ".join([*(word or "''" for word in redis), "--requirepass", "SECRET"]))
    for line in block("host a: start").splitlines():
        hosts.start("a", f"sh -euc '{settings}\nexec {line}'")
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            token = hosts.run("a", settings + block("host a: token")).strip().splitlines()[-1]
            break
        except AssertionError:
            if time.monotonic() > deadline or "No such command" in str(sys.exc_info()[1]):
                raise
            time.sleep(0.2)
    hosts.run("b", block("host b: join"), TOKEN=token)
    hosts.start("b", "sh -euc '{}\nexec {}'".format(*block("host b: start").strip().rsplit("\n", 1)))
    answer = hosts.run("a", settings + block("host a: use"))
    assert "Hello, you!" in answer

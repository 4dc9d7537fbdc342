"""Steady load whose every answer can be checked: warm and cold workflows, deploys and removals, and what clients saw of them."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from faults.running import Running, put, wait_for

INVOKE_S = 10.0  # the functions' time limit: what a cold workflow of four starts takes on a machine with much else to do
CLIENT_S = 16.0  # an answer that takes longer than the limit and the platform's grace is a hang
MANAGE_S = 25.0
SERVED_S = 60.0
WARM_CLIENTS = 2
WARM_PAUSE_S = 0.02
COLD_EVERY_S = 3.0
DEPLOY_EVERY_S = 0.7
IDLE_S = 1.0  # the platform's: nodes look once a second, so what is called every COLD_EVERY_S is cold each time

# Three stages, the last one fanned out; each adds its name to what it got, so that a mixed-up or repeated answer shows.
ENTRY = 'def handle(event, context):\n    return {"token": event["token"], "path": context.invoke("%s", event)}\n'
MIDDLE = 'def handle(event, context):\n    return context.invoke_all([("left", event), ("right", event)])\n'
LEAF = 'def handle(event, context):\n    return "%s " + event["token"]\n'
WORKFLOWS = {
    "front": ENTRY % "middle", "middle": MIDDLE, "rare": ENTRY % "seldom", "seldom": MIDDLE,
    "left": LEAF % "left", "right": LEAF % "right",
}  # fmt: skip
MARKED = "def handle(event, context):\n    return %d\n"
DEPLOYED = ("d0", "d1", "d2")


@dataclass
class Seen:
    """One thing a client saw that was not success. `what`: a status, `refused`, `reset` or `timeout`."""

    at: float
    flow: str  # invoke | manage
    what: str
    detail: str


@dataclass
class Acknowledged:
    """A deploy that was answered with 2xx: it is owed, at this number with this answer."""

    name: str
    number: int
    marker: int


@dataclass
class Load:
    """Threads that run between `start` and `stop`. Lists are appended to by them and read by anybody."""

    platform: Running
    workflows: Mapping[str, str] = field(default_factory=lambda: WORKFLOWS)
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the workflows' functions
    answered: int = 0
    cold: int = 0
    wrong: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    deploys: list[Acknowledged] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    starts: Counter[tuple[str, str]] = field(default_factory=Counter)  # entry and how it found its instance

    def __post_init__(self) -> None:
        self._markers = itertools.count(1)
        self._stop = threading.Event()
        threads = [("warm", self._warm)] * WARM_CLIENTS + [("cold", self._cold_ones), ("deploys", self._deploy_all)]
        self._threads = [threading.Thread(target=run, name=name, args=(n,)) for n, (name, run) in enumerate(threads)]

    def prepare(self) -> None:
        """Deploys the workflows and waits for each to answer."""
        with self.platform.control(MANAGE_S) as control, self.platform.functions(CLIENT_S) as functions:
            for name, source in self.workflows.items():
                assert put(control, name, source, timeout_s=INVOKE_S, **self.settings).status_code == 202
            for entry in ("front", "rare"):
                wait_for(lambda entry=entry: self._invoke(functions, entry, entry), f"{entry} answers", SERVED_S)
        self.seen.clear()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def told(self) -> str:
        """For the message of a failed test: what was seen last, and who still runs."""
        running = [thread.name for thread in self._threads if thread.is_alive()]
        return f"{self.answered} warm and {self.cold} cold answers, running {running}, last seen {self.seen[-3:]}"

    def end(self) -> None:
        """Tells the threads to end, and waits for nobody."""
        self._stop.set()

    def pause(self, seconds: float) -> None:
        """Lets it run on. Raises AssertionError when a client saw an error or a wrong answer."""
        time.sleep(seconds)
        assert (self.seen, self.wrong) == ([], [])

    def stop(self) -> None:
        self.end()
        for thread in self._threads:
            thread.join(MANAGE_S * 2)
            assert not thread.is_alive(), f"a {thread.name} client hangs"

    # -- invocations

    def _warm(self, number: int) -> None:
        with self.platform.functions(CLIENT_S) as client:
            for count in itertools.count():
                if self._stop.is_set():
                    return
                self.answered += self._invoke(client, "front", f"{number}-{count}")
                self._stop.wait(WARM_PAUSE_S)

    def _cold_ones(self, number: int) -> None:
        with self.platform.functions(CLIENT_S) as client:
            for count in itertools.count():
                if self._stop.wait(COLD_EVERY_S):
                    return
                self.cold += self._invoke(client, "rare", f"cold-{count}")

    def _invoke(self, client: httpx.Client, entry: str, token: str) -> bool:
        wanted = {"token": token, "path": [f"left {token}", f"right {token}"]}
        answer = self._ask("invoke", lambda: client.post(f"/function/{entry}", json={"token": token}))
        if answer is None:
            return False
        if answer.status_code == 200:
            self.starts[entry, answer.headers["x-foreglow-start"]] += 1
            if answer.json() != wanted:
                self.wrong.append(f"{entry} {token}: {answer.text[:300]}")
            return True
        self._note("invoke", str(answer.status_code), answer.text)
        return False

    # -- deploys and removals

    def _deploy_all(self, number: int) -> None:
        with self.platform.control(MANAGE_S) as client:
            for count in itertools.count():
                if self._stop.wait(DEPLOY_EVERY_S):
                    return
                self.deploy(client, DEPLOYED[count % len(DEPLOYED)])
                if count % 4 == 3:
                    self._remove_one(client, f"r{count}")

    def deploy(self, client: httpx.Client, name: str) -> Acknowledged | None:
        """None when it was not acknowledged; it may or may not have happened then."""
        marker = next(self._markers)
        answer = self._ask("manage", lambda: put(client, name, MARKED % marker, timeout_s=INVOKE_S))
        if answer is None:
            return None
        if answer.status_code != 202:
            self._note("manage", str(answer.status_code), answer.text)
            return None
        made = Acknowledged(name, answer.json()["versions"][0]["number"], marker)
        self.deploys.append(made)
        return made

    def _remove_one(self, client: httpx.Client, name: str) -> None:
        answer = self._ask("manage", lambda: put(client, name, MARKED % 0, timeout_s=INVOKE_S))
        if answer is None or answer.status_code != 202:
            if answer is not None:
                self._note("manage", str(answer.status_code), answer.text)
            return
        answer = self._ask("manage", lambda: client.delete(f"/v1/functions/{name}"))
        if answer is not None and answer.status_code == 204:
            self.removals.append(name)
        elif answer is not None:
            self._note("manage", str(answer.status_code), answer.text)

    # -- what clients see

    def _ask(self, flow: str, send: Callable[[], httpx.Response]) -> httpx.Response | None:
        try:
            return send()
        except httpx.ConnectError as error:
            self._note(flow, "refused", repr(error))
        except httpx.TimeoutException as error:
            self._note(flow, "timeout", repr(error))
        except httpx.TransportError as error:
            self._note(flow, "reset", repr(error))
        return None

    def _note(self, flow: str, what: str, detail: str) -> None:
        self.seen.append(Seen(time.monotonic(), flow, what, detail[:300]))
        if what == "refused":
            self._stop.wait(0.1)

    # -- afterwards

    def check_acknowledged(self) -> None:
        """Every deploy that was answered with 2xx is served at its version, every removal is one. To be called without faults.

        Control tells that a version is ready once that is published; the gateway may read it a moment later."""
        with self.platform.functions(CLIENT_S) as functions, self.platform.control(MANAGE_S) as control:

            def answer(name: str) -> httpx.Response:
                return functions.post(f"/function/{name}", json=None)

            newest = {one.name: one for one in self.deploys}
            for name, last in newest.items():
                served = wait_for(lambda: self._served(control, name, last.number), f"{name} serves {last.number}", SERVED_S)  # noqa: B023
                if served == last.number:
                    wait_for(lambda: answer(name).json() == last.marker, f"{name} answers as {last.number}", SERVED_S)  # noqa: B023
            kept = [one for one in self.deploys if one.number > newest[one.name].number - 15]
            for one in kept:
                version = f"{one.name}:{one.number}"
                wait_for(lambda: answer(version).status_code != 404, f"the gateway knows {version}", SERVED_S)  # noqa: B023
                found = answer(version)
                assert (found.status_code, found.json()) == (200, one.marker), f"{one}: {found.text}"
            for name in self.removals:
                wait_for(lambda: answer(name).status_code == 404, f"{name} is removed", SERVED_S)  # noqa: B023
                assert control.get(f"/v1/functions/{name}").status_code == 404

    @staticmethod
    def _served(control: httpx.Client, name: str, least: int) -> int:
        latest = control.get(f"/v1/functions/{name}").json()["latest"] or 0
        return latest if latest >= least else 0

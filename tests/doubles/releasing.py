"""A platform to release on: versions that say their number, and callers that never stop calling."""

import contextlib
import io
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
from doubles.platforms import Platform

WAIT_S = 60.0

SOURCE = """
import os, time
NUMBER = {number}
{at_init}

def handle(event, context):
    event = event or {{}}
    time.sleep({work_s})
    if {fails}:
        raise ValueError("version {number} is broken")
    calls = [context.invoke(name, None)["number"] for name in event.get("calls", ())]
    return {{"number": NUMBER, "calls": calls}}
"""


class Answer(NamedTuple):
    """`number`: the version that answered, 0 where none did. `sent`: monotonic."""

    sent: float
    took_s: float
    status: int
    start: str
    number: int


class Releaser:
    """Clients with the platform's key. Every method raises AssertionError with what was answered."""

    def __init__(self, platform: Platform) -> None:
        headers = {"Authorization": f"Bearer {platform.key}"}
        self.platform = platform
        self.control = httpx.Client(base_url=platform.control, headers=headers, trust_env=False, timeout=WAIT_S)
        self.functions = httpx.Client(base_url=platform.functions, headers=headers, trust_env=False, timeout=WAIT_S)

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.control.request(method, path, json=body)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def upload(self, number: int, work_s: float = 0.01, at_init: str = "", fails: bool = False) -> str:
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as archive:
            archive.writestr("app.py", SOURCE.format(number=number, work_s=work_s, at_init=at_init, fails=fails))
        answer = self.control.post("/v1/packages", content=body.getvalue(), headers={"Content-Type": "application/zip"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["digest"])

    def put(self, name: str, number: int, calls: tuple[str, ...] = (), release: Any = None, **code: Any) -> int:
        """Begins to deploy a version whose code says `number`; returns the version's own."""
        wanted: dict[str, Any] = {"package": self.upload(number, **code), "handler": "app:handle", "calls": list(calls)}
        if release is not None:
            wanted["release"] = release
        return int(self.ask("PUT", f"/v1/functions/{name}", wanted, 202)["versions"][0]["number"])

    def deploy(self, name: str, number: int, **settings: Any) -> int:
        made = self.put(name, number, **settings)
        self.settled(name, made)
        known = f"{self.platform.functions}/function/{name}:{made}"  # ready is what the catalog says; gateways hear of it later
        eventually(lambda: self.functions.post(known).status_code != 404, f"the gateway knows {name}:{made}")
        return made

    def settled(self, name: str, number: int, state: str = "ready") -> dict[str, Any]:
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self.ask("GET", f"/v1/functions/{name}/versions/{number}"))
            return found["state"] != "pending"

        eventually(there, f"{name}:{number} settles")
        assert found["state"] == state, found
        return found

    def invoke(self, target: str, body: Any = None, **headers: str) -> Any:
        answer = self.functions.post(f"/function/{target}", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def release(self, name: str, phases: tuple[str, ...] = ("done",)) -> dict[str, Any]:
        """The newest release of the function, once it is in one of the phases."""
        found: dict[str, Any] = {}

        def there() -> bool:
            newest = self.ask("GET", f"/v1/releases?function={name}")["releases"]
            found.update(newest[0] if newest else {})
            return found.get("phase") in phases

        eventually(there, lambda: f"the release of {name} comes to {phases}: {found}")
        return found

    @contextlib.contextmanager
    def load(self, target: str, clients: int, body: Any = None) -> Iterator[list[Answer]]:
        """So many clients, each sending its next request when it has its answer. What was answered, as it comes."""
        answers: list[Answer] = []
        ending = threading.Event()

        def client() -> None:
            with httpx.Client(headers=self.functions.headers, trust_env=False, timeout=WAIT_S) as http:
                while not ending.is_set():
                    sent = time.monotonic()
                    answer = http.post(f"{self.platform.functions}/function/{target}", json=body)
                    number = answer.json().get("number", 0) if answer.status_code == 200 else 0
                    start = answer.headers.get("x-foreglow-start", "")
                    answers.append(Answer(sent, time.monotonic() - sent, answer.status_code, start, number))

        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            ending.set()
            for thread in threads:
                thread.join(WAIT_S)

    def close(self) -> None:
        self.control.close()
        self.functions.close()


def eventually(true: Callable[[], Any], what: str | Callable[[], str] = "", wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline, f"did not come true: {what() if callable(what) else what}"
        time.sleep(0.03)


def numbers(answers: list[Answer]) -> Counter[int]:
    return Counter(one.number for one in answers if one.status == 200)


WAITED = ("cold", "standby", "almost-warm")


def waited(answers: list[Answer], number: int) -> list[Answer]:
    """Requests that version `number` answered and that waited for an instance."""
    return [one for one in answers if one.number == number and one.start in WAITED]

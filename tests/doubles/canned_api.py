"""The management API and the gateway, as far as commands see them: canned answers, and what was asked."""

import json
from typing import Any

KEY = "test-key"


class Api:
    """Canned answers by (method, path); what was asked is kept."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[tuple[str, str, bytes, str]] = []

    def on(self, method: str, path: str, document: Any = None, status: int = 200, **headers: str) -> None:
        """What is answered from now on."""
        self.answers[method, path] = []
        self.then(method, path, document, status, **headers)

    def then(self, method: str, path: str, document: Any = None, status: int = 200, **headers: str) -> None:
        """What is answered once all before it was."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        named = {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[method, path].append((status, named, body))

    def next(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """The last one is answered again and again."""
        known = self.answers.get((method, path))
        if known is None:
            return 404, {"content-type": "application/problem+json"}, b'{"title":"no such page","status":404}'
        return known.pop(0) if len(known) > 1 else known[0]


def version(number: int, state: str = "ready", reason: str = "", **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "state": state,
        "created_at": 1.0,
        "handler": "app:handle",
        "runtime": "python3.11",
        "memory_mb": 128,
        "timeout_s": 30.0,
        "concurrency": 1,
        "environment": {},
        "calls": [],
        "package": "sha256:1",
        "conditions": [{"name": "code", "status": "false" if reason else "true", "reason": reason}],
        **more,
    }


def described(name: str, *versions: dict[str, Any], calls: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"name": name, "kind": "event", "latest": 1, "versions": list(versions), "calls": list(calls)}


def condition(name: str, status: str, reason: str = "") -> dict[str, Any]:
    return {"name": name, "status": status, "reason": reason, "since": 1.0}

"""Speaks to a running platform: the control API and the functions listener, by the addresses and key of its state folder."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from orchestrator.cli.failure import Failure

TIMEOUT_S = 30.0
INVOKE_TIMEOUT_S = 930.0  # the longest function, and a wait for capacity
MAX_FOLLOW_SILENCE_S = 60.0  # the decision stream says something at least this often


@dataclass(frozen=True)
class Invoked:
    """An answer of the functions listener. `start`: warm, prewarmed, ...; `steps_ms`: Server-Timing, in its order."""

    status: int
    body: bytes
    content_type: str
    start: str
    steps_ms: Mapping[str, float]
    trace_id: str
    invocation_id: str


class Client:
    """One connection pool per command. Every method raises Failure with the line to show."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._addresses = _addresses(state)
        self._http = httpx.Client(headers={"Authorization": f"Bearer {_key(state)}"}, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    # -- the management API

    def get(self, path: str, **parameters: Any) -> Any:
        return self._control("GET", path, params=_given(parameters))

    def put(self, path: str, document: Mapping[str, Any]) -> Any:
        return self._control("PUT", path, json=document)

    def post(self, path: str, document: Mapping[str, Any] | None = None, timeout_s: float = TIMEOUT_S, **parameters: Any) -> Any:
        return self._control("POST", path, json=document or {}, timeout=timeout_s, params=_given(parameters))

    def delete(self, path: str, **parameters: Any) -> None:
        self._control("DELETE", path, params=_given(parameters))

    def upload(self, package: bytes) -> dict[str, Any]:
        """POST /v1/packages; the answer's `digest` names it."""
        headers = {"Content-Type": "application/zip"}
        return dict(self._control("POST", "/v1/packages", content=package, headers=headers, timeout=300.0))

    def link(self, path: str) -> str:
        """The whole address of a path of control, for a browser."""
        return self._addresses["control"] + path

    def text(self, path: str, **parameters: Any) -> str:
        return self._send("control", "GET", path, params=parameters).text

    def events(self, path: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events until the server ends them."""
        timeout = httpx.Timeout(TIMEOUT_S, read=MAX_FOLLOW_SILENCE_S)
        url = self._url("control", path)
        try:
            with self._http.stream("GET", url, params=parameters, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise _failure(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:") and line[5:].strip():
                        yield json.loads(line[5:])
        except httpx.HTTPError as error:
            raise self._unreachable("control", error) from error

    def _control(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._send("control", method, path, **arguments)
        return answer.json() if answer.content else None

    # -- invocations

    def invoke(self, name: str, body: bytes, content_type: str, method: str = "POST", path: str = "", trace: str = "") -> Invoked:
        """One invocation; an error status is an answer here, not a Failure. `trace`: a traceparent to link to."""
        headers = {"Content-Type": content_type} if body or method == "POST" else {}
        if trace:
            headers["traceparent"] = trace
        url = self._url("functions", f"/function/{segment(name)}{quote(path, errors='replace')}")
        try:
            answer = self._http.request(method, url, content=body, headers=headers, timeout=INVOKE_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise self._unreachable("functions", error) from error
        return Invoked(
            answer.status_code,
            answer.content,
            answer.headers.get("content-type", ""),
            answer.headers.get("x-foreglow-start", ""),
            server_timing(answer.headers.get("server-timing", "")),
            answer.headers.get("x-foreglow-trace", ""),
            answer.headers.get("x-foreglow-invocation", ""),
        )

    # -- failures

    def _send(self, listener: str, method: str, path: str, **arguments: Any) -> httpx.Response:
        url = self._url(listener, path)
        try:
            answer = self._http.request(method, url, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(listener, error) from error
        if answer.is_error:
            raise _failure(answer)
        return answer

    def _url(self, listener: str, path: str) -> httpx.URL:
        try:
            return httpx.URL(self._addresses[listener] + path)
        except (httpx.InvalidURL, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:120]
            raise Failure(f"cannot ask for {path[:80]!r} at {self._addresses[listener][:80]!r}: {reason}") from error

    def _unreachable(self, listener: str, error: httpx.HTTPError) -> Failure:
        address = self._addresses[listener]
        if isinstance(error, httpx.ConnectError):
            return Failure(f"nothing answers at {address}: is `foreglow up` running on {self._state}?")
        what = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
        return Failure(f"{address}: {what}")


def segment(name: str) -> str:
    """A name as one part of a path, whatever it holds."""
    return quote(name, safe=":$", errors="replace")


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def problem_line(status: int, body: bytes) -> tuple[str, str]:
    """One line out of a problem+json body, and what belongs below it (the stack of a handler, if there is one)."""
    try:
        problem = json.loads(body)
        line = str(problem.get("detail") or problem.get("title") or f"status {status}")
        raised = problem.get("error") or {}
        field, stack = problem.get("field"), str(raised.get("stack") or "")
    except (ValueError, AttributeError):
        return f"status {status}: {body[:200].decode(errors='replace')}".strip(), ""
    if raised:
        line = f"{problem.get('title')}: {raised.get('type')}: {raised.get('message')}"
    elif field and not line.startswith(str(field)):
        line = f"{field}: {line}"
    return " ".join(line.split()), stack


def server_timing(header: str) -> dict[str, float]:
    """Milliseconds per step of a Server-Timing header; what cannot be read is left out."""
    steps = {}
    for part in header.split(","):
        name, _, rest = part.strip().partition(";")
        for parameter in rest.split(";"):
            key, _, value = parameter.strip().partition("=")
            if key == "dur":
                try:
                    steps[name] = float(value)
                except ValueError:
                    continue
    return steps


def _failure(answer: httpx.Response) -> Failure:
    line, more = problem_line(answer.status_code, answer.content)
    if answer.status_code == 401:
        line += "; the key is read from FOREGLOW_KEY or the state folder (--state)"
    return Failure(line, more)


def _addresses(state: Path) -> dict[str, str]:
    named = {name: os.environ.get(f"FOREGLOW_{name.upper()}_URL", "").rstrip("/") for name in ("functions", "control")}
    if all(named.values()):
        return named
    try:
        found = json.loads((state / "addresses.json").read_text())
        return {name: named[name] or str(found[name]) for name in named}
    except FileNotFoundError:
        raise Failure(
            f"no platform runs on {state}: start one with `foreglow up`, or name its folder with --state or FOREGLOW_HOME, or on "
            "another host its addresses with FOREGLOW_CONTROL_URL and FOREGLOW_FUNCTIONS_URL"
        ) from None
    except PermissionError:
        raise Failure(f"{state} belongs to another user: run as that user, or set FOREGLOW_HOME to a folder of yours") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"{state / 'addresses.json'} cannot be read: {error}") from error


def _key(state: Path) -> str:
    key = os.environ.get("FOREGLOW_KEY", "")
    if not key:
        try:
            key = (state / "key").read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise Failure(f"cannot read the key {state / 'key'}: {reason}; set FOREGLOW_KEY or --state") from error
    if not (key.isascii() and key.isprintable()):
        raise Failure(
            "the key is none of ours: it holds other characters than letters, digits, - and _ (FOREGLOW_KEY, or the file key)"
        )
    return key

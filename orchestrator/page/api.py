"""What the page reads: control's API, with the session of whoever watches. Nothing else is known here."""

import json
from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

TIMEOUT_S = 8.0
SILENCE_S = 30.0  # the stream of decisions says something every 10 s
CONNECTIONS = 100
MAX_ANSWER = 64 << 20


class Away(Exception):
    """Control, or what it asks, does not answer; the message says who."""


class SignedOut(Exception):
    """The session is over."""


class Absent(Exception):
    """What was asked for does not exist, is somebody else's, or is not for this session; the message says what."""


def connection(address: str) -> httpx.AsyncClient:
    """The connections to control, shared by all who watch. `address`: http://HOST:PORT."""
    none_kept = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        base_url=address, cookies=none_kept, timeout=TIMEOUT_S, trust_env=False, limits=httpx.Limits(max_connections=CONNECTIONS)
    )


class ControlApi:
    """One watcher's view of the API. Methods raise Away, SignedOut, Absent."""

    def __init__(self, http: httpx.AsyncClient, session: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Session {session}"}

    async def get(self, path: str, **parameters: Any) -> Any:
        try:
            answer = await self._http.get(path, params=parameters, headers=self._headers)
        except httpx.HTTPError as error:
            raise Away(f"control does not answer ({type(error).__name__})") from error
        _check(answer)
        if len(answer.content) > MAX_ANSWER:
            raise Away(f"the answer to {path} is larger than the page can show")
        return answer.json()

    async def events(self, path: str, after: int) -> AsyncIterator[dict[str, Any]]:
        """Server-sent events behind the one with id `after`, until the server ends them; an empty document for a heartbeat."""
        timeout = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
        headers = self._headers | {"Last-Event-ID": str(after)}
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    _check(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line[5:])
                    elif line.startswith(":"):
                        yield {}
        except httpx.HTTPError as error:
            raise Away(f"control does not answer ({type(error).__name__})") from error


def _check(answer: httpx.Response) -> None:
    if answer.status_code == 401:
        raise SignedOut
    if not answer.is_error:
        return
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {answer.status_code}"
    raise Absent(detail) if answer.status_code in (403, 404) else Away(detail)

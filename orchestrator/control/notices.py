"""The few plain pages control itself shows: when nobody is signed in, and when the page process is away."""

from collections.abc import Mapping
from html import escape

from starlette.responses import HTMLResponse

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
RELOAD_S = 2

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} - Foreglow</title>{reload}
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 34rem; margin: 18vh auto 0; padding: 0 1.25rem }}
h1 {{ font-size: 1.25rem }}
code {{ padding: .15em .4em; border: 1px solid; border-radius: 4px }}
</style></head><body><main><h1>{title}</h1><p>{text}</p></main></body></html>
"""


def signed_out(status: int = 401, title: str = "You are not signed in") -> HTMLResponse:
    """How to sign in."""
    text = "Run <code>foreglow open</code> where the platform runs and follow the link it prints: it works once, for 60 seconds."
    return _notice(status, title, text)


def away() -> HTMLResponse:
    """The page process does not answer; asks again by itself."""
    text = "Functions and the API are not affected. This page comes back by itself; <code>foreglow status</code> says what runs."
    return _notice(503, "The page is starting or away", text, reload=True, headers={"Retry-After": str(RELOAD_S)})


def refused(status: int, title: str, text: str) -> HTMLResponse:
    """`text` is plain text."""
    return _notice(status, title, escape(text))


def _notice(status: int, title: str, text: str, reload: bool = False, headers: Mapping[str, str] | None = None) -> HTMLResponse:
    again = f'<meta http-equiv="refresh" content="{RELOAD_S}">' if reload else ""
    body = _PAGE.format(title=escape(title), text=text, reload=again)
    return HTMLResponse(body, status, {**HEADERS, **(headers or {})})

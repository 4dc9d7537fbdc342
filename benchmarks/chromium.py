"""Debian's chromium, driven by Playwright: nothing is downloaded."""

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = (
    "--no-sandbox",  # it runs as root in tests, and shows nothing but our own page
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def program() -> str | None:
    """Where it is; None when it is not installed (Debian: apt-get install chromium)."""
    return shutil.which("chromium")


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser of its own, closed at the end."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()

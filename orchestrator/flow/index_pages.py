"""The pages of a package index (PEP 503 and 691): read, and written again with other addresses."""

import html
import json
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import msgspec

JSON_PAGE = "application/vnd.pypi.simple.v1+json"
HTML_PAGE = "text/html; charset=utf-8"
ACCEPTED = f"{JSON_PAGE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_FILES = 50_000
KEPT = ("requires-python", "yanked", "core-metadata", "size", "upload-time")


class PageError(ValueError):
    """It is no page of an index; the message says why."""


class File(msgspec.Struct, frozen=True):
    """One file a page refers to. `facts`: the keys of PEP 691 in KEPT that were there."""

    name: str
    url: str
    hashes: Mapping[str, str]
    facts: Mapping[str, Any]


def read_page(content: bytes, content_type: str, base: str) -> list[File]:
    """The files a page refers to, their addresses whole. `base`: where the page was got. Raises PageError."""
    files = _read_json(content, base) if "json" in content_type.lower() else _read_html(content, base)
    if len(files) > MAX_FILES:
        raise PageError(f"a page with {len(files)} files, the limit is {MAX_FILES}")
    return files


def _read_json(content: bytes, base: str) -> list[File]:
    try:
        listed = json.loads(content)["files"]
        return [
            File(
                str(one["filename"]),
                urljoin(base, str(one["url"])),
                {str(name): str(value) for name, value in one.get("hashes", {}).items()},
                {key: one[key] for key in KEPT if key in one},
            )
            for one in listed
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PageError(f"not a page of an index: {type(error).__name__}: {error}"[:200]) from error


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.base: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.found.append(given)
        elif tag == "base" and given.get("href") and self.base is None:
            self.base = given["href"]


def _read_html(content: bytes, base: str) -> list[File]:
    parser = _Anchors()
    try:
        parser.feed(content.decode("utf-8", errors="replace"))
        parser.close()
        base = urljoin(base, parser.base) if parser.base else base
        return [one for given in parser.found if (one := _anchor(given, base)) is not None]
    except (ValueError, AssertionError, RecursionError) as error:
        raise PageError(f"not a page of an index: {error}"[:200]) from error


def _anchor(given: Mapping[str, str | None], base: str) -> File | None:
    url, fragment = urldefrag(urljoin(base, given["href"] or ""))
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not name:
        return None
    kind, named, value = fragment.partition("=")
    facts: dict[str, Any] = {}
    if given.get("data-requires-python"):
        facts["requires-python"] = given["data-requires-python"]
    if "data-yanked" in given:
        facts["yanked"] = given["data-yanked"] or True
    metadata = given.get("data-core-metadata") or given.get("data-dist-info-metadata")
    if metadata:
        algorithm, marked, digest = metadata.partition("=")
        facts["core-metadata"] = {algorithm: digest} if marked else True
    return File(name, url, {kind: value} if named and kind in ("sha256", "sha384", "sha512", "md5") else {}, facts)


def write_json(project: str, files: Iterable[File]) -> bytes:
    """A project's page."""
    listed = [{"filename": one.name, "url": one.url, "hashes": one.hashes, **one.facts} for one in files]
    return json.dumps({"meta": {"api-version": "1.1"}, "name": project, "versions": [], "files": listed}).encode()


def write_html(files: Iterable[File]) -> bytes:
    """A page of files, for --find-links."""
    lines = ["<!DOCTYPE html><html><body>"]
    for one in files:
        fragment = next((f"#{kind}={value}" for kind, value in one.hashes.items()), "")
        wanted = one.facts.get("requires-python")
        attribute = f' data-requires-python="{html.escape(str(wanted))}"' if wanted else ""
        lines.append(f'<a href="{html.escape(one.url + fragment)}"{attribute}>{html.escape(one.name)}</a>')
    return "\n".join([*lines, "</body></html>"]).encode()

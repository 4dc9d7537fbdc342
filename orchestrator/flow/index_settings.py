"""The package indexes an operator has set (uv's own variables), read once, with what must not be shown kept apart."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec

PUBLIC_INDEX = "https://pypi.org/simple"
PASSED_ON = ("UV_EXCLUDE_NEWER", "UV_PRERELEASE", "UV_RESOLUTION", "UV_INDEX_STRATEGY")
"""How to choose among versions: no secrets, and the same inside a sandbox as outside."""


class Index(msgspec.Struct, frozen=True):
    """`url` holds no credentials. `flat`: a page of files (--find-links) instead of one page a project."""

    url: str
    flat: bool = False
    credentials: tuple[str, str] | None = None


class Indexes(msgspec.Struct, frozen=True):
    """In the order uv asks them; `default` is the last of those that are not flat. uv always has one: it reads no variable that
    would switch it off."""

    named: tuple[Index, ...]
    default: Index
    flat: tuple[Index, ...]

    @property
    def all(self) -> tuple[Index, ...]:
        return (*self.named, self.default, *self.flat)


def read_indexes(environment: Mapping[str, str]) -> Indexes:
    """What uv would make of these variables; no other source of settings is read (--no-config)."""

    def said(name: str) -> list[str]:
        return environment.get(name, "").split()

    named = [_index(one, environment) for one in (*said("UV_INDEX"), *said("UV_EXTRA_INDEX_URL"))]
    default = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or PUBLIC_INDEX
    flat = [one for one in environment.get("UV_FIND_LINKS", "").replace(",", " ").split() if one]
    return Indexes(
        named=tuple(named),
        default=_index(default, environment),
        flat=tuple(_index(one, environment, flat=True) for one in flat),
    )


def _index(told: str, environment: Mapping[str, str], flat: bool = False) -> Index:
    """`url` or `name=url`; the credentials of a named one may stand in variables of their own."""
    name, named, rest = told.partition("=")
    named_url = rest if named and "/" not in name and ":" not in name else ""
    url = named_url or told
    if "://" not in url:
        url = "file://" + quote(str(Path(url).absolute()))
    parts = urlsplit(url)
    credentials = (unquote(parts.username), unquote(parts.password or "")) if parts.username is not None else None
    if named_url:
        variable = "UV_INDEX_" + "".join(letter if letter.isalnum() else "_" for letter in name).upper()
        user = environment.get(f"{variable}_USERNAME")
        if user is not None:
            credentials = (user, environment.get(f"{variable}_PASSWORD", ""))
    host = parts.netloc.rpartition("@")[2]
    return Index(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), flat, credentials)


def origin_of(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of an address. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def inside_variables(indexes: Indexes, environment: Mapping[str, str], address: str) -> dict[str, str]:
    """uv's variables for a sandbox: the same indexes in the same order, at `address`, without their credentials."""
    places = {id(index): number for number, index in enumerate(indexes.all)}
    named = " ".join(f"{address}/{places[id(index)]}" for index in indexes.named)
    flat = ",".join(f"{address}/flat/{places[id(index)]}" for index in indexes.flat)
    variables = {name: environment[name] for name in PASSED_ON if name in environment}
    variables |= {name: value for name, value in (("UV_INDEX", named), ("UV_FIND_LINKS", flat)) if value}
    return {**variables, "UV_DEFAULT_INDEX": f"{address}/{places[id(indexes.default)]}"}

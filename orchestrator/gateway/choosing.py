"""Which version a run gets where an alias means two: by the run, or by what the alias is sticky by. No I/O."""

from collections.abc import Mapping

from graph.ids import LATEST
from orchestrator.catalog.routes import AliasRoute, Route
from orchestrator.catalog.watch import RouteTable
from workers.versions import VersionSpec

KEY = "key"
HEADER = "header:"
MAX_TICKET = 256
CHOICES = 1000
"""Of one run: whatever it calls beyond that chooses by its ticket each time, and comes to the same while no share changes."""


class Choices:
    """Of one run, handed on from caller to child inside the gateway: no function sees it or says anything in it. What was chosen
    once holds until the run ends, also when the alias moves meanwhile."""

    __slots__ = ("_headers", "_key_id", "_made", "trace_id")

    def __init__(self, trace_id: str, key_id: str = "", headers: Mapping[bytes, bytes] | None = None) -> None:
        self.trace_id = trace_id
        self._key_id = key_id
        self._headers = headers
        self._made: dict[str, str] | None = None

    def version(self, table: RouteTable, route: Route, qualifier: str) -> VersionSpec | None:
        """The version behind `name:qualifier` for this run."""
        if not route.aliases and self._made is None:
            return table.version(route, qualifier)
        place = f"{route.function}:{qualifier or LATEST}"
        made = self._made.get(place) if self._made is not None else None
        spec = table.versions.get(made) if made is not None else None
        if spec is not None:
            return spec
        alias = table.alias(route, qualifier)
        if alias is None or alias.second is None:
            return table.version(route, qualifier)
        spec = table.version(route, qualifier, self._ticket(alias))
        if self._made is None:
            self._made = {}
        if spec is not None and len(self._made) < CHOICES:
            self._made[place] = spec.version
        return spec

    def _ticket(self, alias: AliasRoute) -> str:
        if alias.sticky == KEY and self._key_id:
            return self._key_id
        if alias.sticky.startswith(HEADER) and self._headers is not None:
            told = self._headers.get(alias.sticky[len(HEADER) :].encode())
            if told:
                return told[:MAX_TICKET].decode("latin-1")
        return self.trace_id

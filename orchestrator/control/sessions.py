"""Who watches the page: one-time links and the sessions they open. In memory, bounded; `now` is passed in."""

import hashlib
import secrets
from collections import Counter, OrderedDict

import msgspec

LINK_S = 60.0
SESSION_S = 12 * 3600.0
LINKS = 100
SESSIONS = 200
PER_TENANT = 20
"""Links, or sessions, of one tenant: whoever asks for more gives up the oldest of their own first."""


class _Opened(msgspec.Struct, frozen=True):
    tenant: str
    key: str
    expires: float


class Sessions:
    """A session stands for the key that asked for its link: what the key may read it may, and it ends with the key.

    Tokens are 256 random bits and are held as digests. Lives in one event loop. A restart of control ends them all.
    """

    def __init__(self) -> None:
        self._links: OrderedDict[str, _Opened] = OrderedDict()
        self._sessions: OrderedDict[str, _Opened] = OrderedDict()

    def offer(self, tenant: str, key: str, now: float) -> str:
        """A token for one login within LINK_S, for the bearer of `key`, which is the tenant's."""
        return _add(self._links, _Opened(tenant, key, now + LINK_S), now, LINKS)

    def redeem(self, link: str, now: float) -> str | None:
        """The token of a new session; None when the link is unknown, used or too old."""
        offered = self._links.pop(_digest(link), None)
        if offered is None or offered.expires <= now:
            return None
        return _add(self._sessions, _Opened(offered.tenant, offered.key, now + SESSION_S), now, SESSIONS)

    def key_of(self, session: str, now: float) -> str | None:
        """The key whose bearer opened the session; None when it is unknown or over."""
        opened = self._sessions.get(_digest(session))
        return opened.key if opened is not None and opened.expires > now else None

    def end(self, session: str) -> None:
        """Ends it; an unknown one has ended already."""
        self._sessions.pop(_digest(session), None)


def _add(kept: OrderedDict[str, _Opened], opened: _Opened, now: float, bound: int) -> str:
    for digest in [digest for digest, one in kept.items() if one.expires <= now]:
        del kept[digest]
    own = [digest for digest, one in kept.items() if one.tenant == opened.tenant]
    for digest in own[: max(0, len(own) - PER_TENANT + 1)]:
        del kept[digest]
    if len(kept) >= bound:
        # the oldest of whoever holds most: many keys of one tenant put nobody else out
        most, _ = Counter(one.tenant for one in kept.values()).most_common(1)[0]
        del kept[next(digest for digest, one in kept.items() if one.tenant == most)]
    token = secrets.token_urlsafe(32)
    kept[_digest(token)] = opened
    return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()

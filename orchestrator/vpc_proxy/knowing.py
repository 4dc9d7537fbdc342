"""Where a proxy learns what it is to know: of control over its certificate, or, beside control, of the database itself.

A proxy inside a tenant's network is told its own network and the nodes, and nothing else of the cluster: no routes, no keys. What
was told last is kept, so that one that begins while control is away serves as before.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.authority import keep
from orchestrator.catalog.vpcs import ProxyNews
from orchestrator.joining import JoinFailed, ask_vpc
from orchestrator.membership import Member
from workers.rpc.transport import LOCAL, Peer

log = structlog.get_logger(__name__)

Ask = Callable[[], ProxyNews]


class Away(Exception):
    """Nobody can be asked now: what was told last counts on."""


def from_control(state: Path, member: Member) -> Ask:
    """Raises, when called, Away; JoinFailed when control counts this proxy no more."""

    def ask() -> ProxyNews:
        try:
            return msgspec.convert(ask_vpc(state, member), ProxyNews)
        except JoinFailed as error:
            if error.refused:
                raise
            raise Away(str(error)) from error
        except (OSError, ValueError) as error:  # msgspec.ValidationError is one
            raise Away(str(error)) from error

    return ask


def from_database(news: Callable[[str], ProxyNews], vpc: str) -> Ask:
    """Raises, when called, Away."""

    def ask() -> ProxyNews:
        try:
            return news(vpc)
        except SQLAlchemyError as error:
            raise Away(str(error)) from error

    return ask


class Known:
    """What was told last, in memory and in the state folder."""

    def __init__(self, file: Path) -> None:
        self.news = ProxyNews(None)
        self.told = False
        self._file = file
        try:
            self.news = msgspec.json.decode(file.read_bytes(), type=ProxyNews)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("proxy.news_unreadable", file=str(file), reason=str(error))

    def take(self, news: ProxyNews) -> bool:
        """False: nothing new."""
        first, self.told = not self.told, True
        if news == self.news and not first:
            return False
        self.news = news
        try:
            keep(self._file, msgspec.json.encode(news))
        except OSError as error:
            log.warning("proxy.news_not_kept", file=str(self._file), reason=str(error))
        return True

    def admits(self, peer: Peer, vpc: str) -> str:
        """Why a node may not use the network; empty: it may."""
        spec = self.news.spec
        if spec is None or spec.vpc != vpc:
            return f"this proxy is of another private network than {vpc[:127]}"
        if LOCAL in peer.name:  # it runs beside control: whoever can read the authority's key may be anybody
            return ""
        known = next((one for one in self.news.nodes if one.name == peer.name), None)
        if known is None:
            return f"node {peer.name[:63]} is no member of this cluster (any more), or may not host tenant {spec.tenant}"
        if not Peer("", "", known.fingerprint, known.fingerprint_before).counts(peer.fingerprint):
            return f"node {peer.name[:63]} shows a certificate that does not count (any more)"
        return ""

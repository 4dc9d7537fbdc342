"""Who a proxy is, for which network, and where nodes reach it: as it joined, or, beside control, as it was told."""

import hashlib
import socket
import time

from orchestrator.catalog.nudge import Nudge
from orchestrator.catalog.store import Store
from orchestrator.members import LOCAL
from orchestrator.membership import NotJoined, Self
from orchestrator.settings import Settings
from orchestrator.vpcs import PROXY_ROLE
from workers.rpc.transport import HostPort, parse_address

MAX_NAME = 63  # of a member
SHOWN = 20  # of a network's name, in names of files and sockets, which have a bound


def _called(vpc: str, backup: bool) -> str:
    """Of two networks never the same, of a pair the primary first."""
    digest = hashlib.sha256(vpc.encode()).hexdigest()[:6]
    return f"{PROXY_ROLE}-{vpc.replace('/', '-')[:SHOWN]}-{digest}-{2 if backup else 1}"


class Place:
    """Raises NotJoined, with the way out."""

    def __init__(self, settings: Settings, vpc: str, listen: str, backup: bool) -> None:
        joined = (settings.state / "member.json").exists()
        if not joined and not settings.key_file.exists():
            raise NotJoined(
                f"{settings.state} has joined no cluster: `foreglow join CONTROL:PORT TOKEN --role {PROXY_ROLE} ...` first, "
                "or, beside control, give control's --state"
            )
        self.called = PROXY_ROLE if joined else _called(vpc, backup)
        """Of its files, and of its operations listener: beside control several may run."""
        self.own = Self(settings, PROXY_ROLE, f"{self.called}{LOCAL}{socket.gethostname()}"[:MAX_NAME], self.called)
        member = self.own.member
        if member is not None and vpc not in ("", member.vpc):
            raise NotJoined(f"{settings.state} joined for {member.vpc}, not for {vpc}: use another --state")
        self.vpc = member.vpc if member is not None else vpc
        where = member.listen if member is not None else listen
        if not self.vpc or not where:
            raise NotJoined("beside control give --vpc TENANT/NAME and --listen HOST:PORT, where nodes reach this proxy")
        try:
            address = parse_address(where)
        except ValueError as error:
            raise NotJoined(f"--listen: {error}") from error
        if not isinstance(address, HostPort):
            raise NotJoined("--listen: nodes reach a proxy by HOST:PORT")
        self.address = address
        self.folder = settings.state / self.called


class Register:
    """Beside control a proxy makes itself known, and known as gone: no token is needed by who can read the authority's key."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self.store = Store(settings.effective_database_url)
        self._nudge = Nudge(settings.effective_redis_url)
        self._place = place

    def enter(self, port: int) -> None:
        """Raises CatalogError, SQLAlchemyError."""
        where = HostPort(self._place.address.host, port)
        self.store.nodes.beside(self._place.own.name, str(where), self._place.vpc, time.time())
        self._nudge.give()

    def leave(self) -> None:
        """Raises CatalogError, SQLAlchemyError."""
        self.store.nodes.remove(self._place.own.name, time.time())
        self._nudge.give()

    def close(self) -> None:
        self._nudge.close()
        self.store.close()

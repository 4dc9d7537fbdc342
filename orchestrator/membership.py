"""Who this process is in the cluster: what joining left in the state folder, or, beside control, a certificate made here."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from orchestrator.authority import Authority, keep, make_request
from orchestrator.settings import Settings
from orchestrator.validity import Validity, validity
from workers.rpc.messages import Caller
from workers.rpc.transport import Address, Identity, Peer, parse_address

log = structlog.get_logger(__name__)


class NotJoined(Exception):
    """The process cannot be what it was asked to be; the message says the way out."""


class Member(msgspec.Struct, frozen=True):
    """`control`: the join listener. `authority`: SHA-256 of the authority's certificate, hex. `epoch`: of the last (re)join.
    `vpc`: of a vpc-proxy, tenant/name; `number`: of a node, its own in the cluster."""

    role: str
    name: str
    listen: str
    zone: str
    control: str
    authority: str
    epoch: int
    origin_url: str = ""
    redis_url: str = ""
    database_url: str = ""
    vpc: str = ""
    number: int = 0


def member_file(state: Path) -> Path:
    return state / "member.json"


def load_member(state: Path) -> Member | None:
    """None when the state folder has joined nothing. Raises NotJoined when what is there cannot be read."""
    try:
        return msgspec.json.decode(member_file(state).read_bytes(), type=Member)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise NotJoined(f"{member_file(state)} cannot be read ({error}): join again") from error


def save_member(state: Path, member: Member) -> None:
    """Raises OSError."""
    keep(member_file(state), msgspec.json.encode(member))


def callers_file(state: Path) -> Path:
    return state / "callers.json"


def save_callers(state: Path, callers: Sequence[Caller]) -> None:
    """Whom control counts, for a node that begins while control is away. Short and rare, so it may hold up an event loop; a disk
    that takes nothing is logged."""
    path, content = callers_file(state), msgspec.json.encode(callers)
    try:
        if not path.exists() or path.read_bytes() != content:
            keep(path, content)
    except OSError as error:
        log.warning("callers.not_kept", file=str(path), reason=str(error))


def load_callers(state: Path) -> list[Caller] | None:
    """None: nothing was told yet. What cannot be read is as good as nothing: control tells again when it is there."""
    try:
        return msgspec.json.decode(callers_file(state).read_bytes(), type=list[Caller])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("callers.unreadable", file=str(callers_file(state)), reason=str(error))
        return None


def certificate_file(state: Path) -> Path:
    """A member's."""
    return state / "member.pem"


def over(member: Member, held: Validity, state: Path) -> str:
    """What somebody is told whose certificate has ended: nobody in the cluster speaks to it, control neither."""
    return (
        f"the certificate of {member.role} {member.name} ended on {held.end()}, by the clock of this host: "
        f"`foreglow nodes remove {member.name}` and `foreglow node-token --role {member.role}` beside control, "
        f"then `foreglow join {member.control} TOKEN --role {member.role} --name {member.name} ... --state {state}` here"
    )


class Self:
    """One process: its name, its certificate, and where it listens besides its unix socket. Raises NotJoined, also when its
    certificate has ended, and OSError."""

    def __init__(self, settings: Settings, role: str, local_name: str, files: str = "") -> None:
        """`files`: beside control, what its key and certificate are called; the role, unless several of one run."""
        self.role = role
        self._called = files or role
        self.state = settings.state
        self._days = settings.certificate_days
        self.member = load_member(settings.state)
        if self.member is not None and self.member.role != role:
            raise NotJoined(f"{settings.state} joined as a {self.member.role}, not as a {role}: use another --state")
        self.name = self.member.name if self.member is not None else local_name
        try:
            if self.member is None and not _good(self.certificate, role, self.name):
                self.sign()
            held = self.validity()
            self.identity = Identity(*self._files())
        except (OSError, ValueError) as error:
            raise NotJoined(f"the certificate of this {role} in {settings.state} cannot be used ({error})") from error
        if self.member is not None and held.ended(time.time()):
            raise NotJoined(over(self.member, held, settings.state))

    def listens(self, socket: Path) -> list[Address]:
        """Its unix socket, and what it told the cluster when it joined."""
        told = self.member.listen if self.member is not None else ""
        return [socket, *([parse_address(told)] if told else [])]

    @property
    def peer(self) -> Peer:
        return Peer(self.role, self.name)

    @property
    def certificate(self) -> Path:
        return self._files()[1]

    def validity(self) -> Validity:
        """Of the certificate that is kept now. Raises OSError, ValueError."""
        return validity(self.certificate.read_text())

    def sign(self) -> None:
        """Beside control: the authority is here, whoever may read its key may be anybody in the cluster. Raises OSError,
        ValueError."""
        key, certificate, _ = self._files()
        authority = Authority(certificate.parent)
        signed, _ = authority.sign(make_request(key), self.role, self.name, time.time(), self._days)
        keep(certificate, signed.encode())

    def _files(self) -> tuple[Path, Path, Path]:
        """Key, certificate, authority."""
        if self.member is not None:
            return self.state / "member.key", certificate_file(self.state), self.state / "ca.pem"
        folder = self.state / "authority"
        return folder / f"{self._called}.key", folder / f"{self._called}.pem", folder / "ca.pem"


def with_member(settings: Settings) -> Settings:
    """Where Redis, the code origin and the database are was told at the join; what is set here counts more. Raises NotJoined."""
    member = load_member(settings.state)
    if member is None:
        return settings
    alone = {}
    if member.role in ("gateway", "planner"):  # its nodes are members too; none runs in this state folder
        alone = {name: "none" for name in ("nodes", "gateways") if not getattr(settings, name)}
    urls = {name: getattr(member, name) for name in ("origin_url", "redis_url", "database_url")}
    told = {name: value for name, value in urls.items() if value and not getattr(settings, name)}
    zone = {"zone": member.zone} if member.zone and "zone" not in settings.model_fields_set else {}
    return settings.model_copy(update=told | alone | zone)


def _good(certificate: Path, role: str, name: str) -> bool:
    from cryptography import x509

    if not certificate.exists():
        return False
    pem = certificate.read_text()
    names = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    here = names.get_values_for_type(x509.UniformResourceIdentifier) == [f"foreglow://{role}/{name}"]
    return here and time.time() < validity(pem).renew_at()

"""Who this process is in the cluster: what joining left in the state folder, or, beside control, a certificate made here."""

import time
from pathlib import Path

import msgspec

from orchestrator.authority import Authority, expires, keep, make_request
from orchestrator.settings import Settings
from workers.rpc.transport import Address, Identity, Peer, parse_address

RENEW_BEFORE_S = 30 * 86400.0


class NotJoined(Exception):
    """The process cannot be what it was asked to be; the message says the way out."""


class Member(msgspec.Struct, frozen=True):
    """`control`: the join listener. `authority`: SHA-256 of the authority's certificate, hex. `epoch`: of the last (re)join."""

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


class Self:
    """One process: its name, its certificate, and where it listens besides its unix socket. Raises NotJoined, OSError."""

    def __init__(self, settings: Settings, role: str, local_name: str) -> None:
        self.role = role
        self.member = load_member(settings.state)
        if self.member is not None and self.member.role != role:
            raise NotJoined(f"{settings.state} joined as a {self.member.role}, not as a {role}: use another --state")
        self.name = self.member.name if self.member is not None else local_name
        try:
            self.identity = _own(settings.state) if self.member is not None else _beside(settings.state, role, self.name)
        except (OSError, ValueError) as error:
            raise NotJoined(f"the certificate of this {role} in {settings.state} cannot be used ({error})") from error

    def listens(self, socket: Path) -> list[Address]:
        """Its unix socket, and what it told the cluster when it joined."""
        told = self.member.listen if self.member is not None else ""
        return [socket, *([parse_address(told)] if told else [])]

    @property
    def peer(self) -> Peer:
        return Peer(self.role, self.name)


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


def _own(state: Path) -> Identity:
    return Identity(state / "member.key", state / "member.pem", state / "ca.pem")


def _beside(state: Path, role: str, name: str) -> Identity:
    """The authority is here: whoever may read its key may be anybody in the cluster."""
    folder = state / "authority"
    authority = Authority(folder)
    certificate = folder / f"{role}.pem"
    if not _good(certificate, role, name):
        signed, _ = authority.sign(make_request(folder / f"{role}.key"), role, name, time.time())
        keep(certificate, signed.encode())
    return Identity(folder / f"{role}.key", certificate, authority.certificate_file)


def _good(certificate: Path, role: str, name: str) -> bool:
    from cryptography import x509

    if not certificate.exists():
        return False
    pem = certificate.read_text()
    names = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    here = names.get_values_for_type(x509.UniformResourceIdentifier) == [f"foreglow://{role}/{name}"]
    return here and expires(pem) > time.time() + RENEW_BEFORE_S

"""How a process joins the cluster, joins again, and renews its certificate: JSON lines over TLS to control's join listener.

A token is a secret and the SHA-256 of the authority's certificate. The joiner asks for that certificate first, compares, and
then speaks only to who proves to be control under it: the secret is never shown to anybody else.
"""

import base64
import binascii
import hashlib
import json
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.authority import keep, make_request
from orchestrator.membership import Member, certificate_file, load_member, over, save_callers, save_member
from orchestrator.validity import validity
from workers.rpc.messages import Caller
from workers.rpc.transport import HostPort, NotTrusted, certified, parse_address

PREFIX = "fgj_"
MAX_LINE = 1 << 20  # thousands of callers
TIMEOUT_S = 10.0


class JoinFailed(Exception):
    """The message is one line that says why, and the way out. `refused`: control said so; otherwise it may be tried again."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def write_token(secret: str, authority: str) -> str:
    """`authority`: SHA-256 of its certificate, hex."""
    return f"{PREFIX}{secret}.{base64.urlsafe_b64encode(bytes.fromhex(authority)).decode().rstrip('=')}"


def read_token(token: str) -> tuple[str, str]:
    """Secret and authority's SHA-256, hex. Raises JoinFailed."""
    secret, dot, pinned = token.strip().removeprefix(PREFIX).rpartition(".")
    try:
        digest = base64.b64decode(pinned + "=" * (-len(pinned) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if not token.strip().startswith(PREFIX) or not dot or not secret or len(digest) != 32:
        raise JoinFailed("that is not a join token, or only a part of one; `foreglow node-token` prints one", refused=True)
    return secret, digest.hex()


def join(state: Path, control: str, token: str, role: str, name: str, listen: str, zone: str = "") -> Member:
    """Makes this state folder a member and keeps its identity there (0600). Raises JoinFailed; nothing is kept then but the
    key that was made for it."""
    known = load_member(state)
    if known is not None and not _over(state):
        raise JoinFailed(f"{state} has joined already, as {known.role} {known.name}: use another --state", refused=True)
    where = _host_port(control)
    secret, authority = read_token(token)
    pem = _fetch_authority(where, authority)
    request = {
        "what": "join",
        "token": secret,
        "role": role,
        "name": name,
        "address": listen,
        "zone": zone,
        "csr": make_request(state / "member.key"),
    }
    answer = _ask(where, _trusting(pem), request)
    try:
        keep(state / "ca.pem", pem.encode())
        keep(certificate_file(state), str(answer["certificate"]).encode())
        if "key" in answer:  # a proxy opens nothing sealed
            keep(state / "cluster.key", str(answer["key"]).encode())
        member = Member(
            role,
            name,
            listen,
            zone,
            str(where),
            authority,
            int(answer["epoch"]),
            origin_url=str(answer.get("origin_url", "")),
            redis_url=str(answer.get("redis_url", "")),
            database_url=str(answer.get("database_url", "")),
            vpc=str(answer.get("vpc", "")),
            number=int(answer.get("number", 0)),
        )
        save_member(state, member)
    except (KeyError, TypeError, ValueError) as error:
        raise JoinFailed(f"control at {where} answered what this release does not understand: {error!r}") from error
    return member


def rejoin(state: Path, member: Member) -> Member:
    """The member with its new epoch, over its certificate. A node is told who may speak to it, too; that is kept. Raises
    JoinFailed, OSError."""
    answer = _ask_as_member(state, member, {"what": "rejoin"})
    try:
        again = msgspec.structs.replace(member, epoch=int(answer["epoch"]), number=int(answer.get("number", member.number)))
        callers = msgspec.convert(answer.get("callers", []), list[Caller])
    except (KeyError, TypeError, ValueError) as error:
        raise JoinFailed(f"control at {member.control} answered what this release does not understand: {error!r}") from error
    save_member(state, again)
    if "callers" in answer:
        save_callers(state, callers)
    return again


def renew(state: Path, member: Member) -> str:
    """A certificate (PEM) that follows the member's own, for the same key; nothing is kept here. Both count from now on, until
    `confirm`. Raises JoinFailed, OSError, ValueError."""
    answer = _ask_as_member(state, member, {"what": "renew", "csr": make_request(state / "member.key")})
    pem = str(answer.get("certificate", ""))
    try:
        validity(pem)
    except ValueError as error:
        raise JoinFailed(f"control at {member.control} answered what this release does not understand") from error
    return pem


def ask_vpc(state: Path, member: Member) -> dict[str, Any]:
    """What control tells a proxy, see catalog.vpcs.ProxyNews. Raises JoinFailed, OSError, ValueError."""
    news = _ask_as_member(state, member, {"what": "vpc"}).get("news")
    if not isinstance(news, dict):
        raise JoinFailed(f"control at {member.control} answered what this release does not understand")
    return news


def confirm(state: Path, member: Member) -> None:
    """Shows the certificate that is kept now: the one before it ends to count. Raises JoinFailed, OSError, ValueError."""
    _ask_as_member(state, member, {"what": "confirm"})


def _ask_as_member(state: Path, member: Member, request: dict[str, Any]) -> dict[str, Any]:
    held = validity(certificate_file(state).read_text())
    if held.ended(time.time()):  # TLS would say so too, in words that help nobody
        raise JoinFailed(over(member, held, state), refused=True)
    context = _trusting((state / "ca.pem").read_text())
    context.load_cert_chain(certificate_file(state), state / "member.key")
    return _ask(_host_port(member.control), context, request)


def _over(state: Path) -> bool:
    try:
        return validity(certificate_file(state).read_text()).ended(time.time())
    except (OSError, ValueError):
        return False


def _host_port(text: str) -> HostPort:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise JoinFailed(str(error), refused=True) from error
    if not isinstance(address, HostPort):
        raise JoinFailed(f"{text!r}: control's join listener is host:port", refused=True)
    return address


def _fetch_authority(where: HostPort, digest: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said here that others may not hear
    pem = str(_ask(where, context, {"what": "authority"}, anybody=True).get("authority", ""))
    try:
        certificate = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        certificate = b""
    if hashlib.sha256(certificate).hexdigest() != digest:
        raise JoinFailed(f"{where} is not of the cluster that made this token: nothing was told to it", refused=True)
    # only what was compared: what stands behind the first certificate would be trusted with it
    return ssl.DER_cert_to_PEM_cert(certificate)


def _trusting(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=pem)
    return context


def _ask(where: HostPort, context: ssl.SSLContext, request: dict[str, Any], anybody: bool = False) -> dict[str, Any]:
    try:
        with (
            socket.create_connection((where.host, where.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=where.host) as secured,
        ):
            if not anybody and certified(secured).role != "control":
                raise JoinFailed(f"{where} is a member of the cluster, but not its control", refused=True)
            secured.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(secured)
    except (OSError, NotTrusted) as error:
        raise JoinFailed(f"cannot reach control's join listener at {where}: {error}") from error
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise JoinFailed(f"{where} does not answer like control's join listener") from error
    if not isinstance(answer, dict) or "error" in answer:
        refused = isinstance(answer, dict) and not answer.get("again")
        raise JoinFailed(str(answer["error"]) if isinstance(answer, dict) else "no answer", refused)
    return answer


def _read_line(secured: ssl.SSLSocket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = secured.recv(MAX_LINE)
        line += chunk
        if not chunk:
            raise OSError(os.strerror(104) if not line else "it closed the connection")
        if len(line) > MAX_LINE:
            raise OSError("it answers too much")
    return line

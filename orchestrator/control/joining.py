"""The join listener: who has a token becomes a member, who has a member's certificate gets a new epoch, or the next certificate.

It is open to whoever reaches the port, so all it does for a stranger is bounded: connections at once, attempts in a second, bytes
and seconds each. What members may use is apart from that. A stranger without a token learns the authority's certificate, which is
no secret.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from orchestrator.authority import CERTIFICATE_DAYS, Authority, BadRequest
from orchestrator.catalog.errors import CatalogError, Refused
from orchestrator.catalog.nodes import Nodes
from orchestrator.catalog.vpcs import NodeOfVpc, Vpcs
from orchestrator.control.attempts import MEMBERS, STRANGERS, Attempts, source
from orchestrator.members import callers_of
from workers.rpc.transport import HostPort, Identity, NotTrusted, Peer, certified, parse_address

MAX_LINE = 16 << 10
TIMEOUT_S = 5.0
BACKLOG = 128
MAX_ZONE = 63
MAX_ADDRESS = 255
TOO_MANY = {"error": "too many are joining at once; try again in a second", "again": True}

log = structlog.get_logger(__name__)


class JoinListener:
    """`told(role)` is what a new member needs beside its certificate; `changed` is called after each change; `days`: how long
    certificates live; `beside`: the nodes that run beside control, which are no members, as proxies must know them."""

    def __init__(
        self,
        nodes: Nodes,
        vpcs: Vpcs,
        authority: Authority,
        identity: Identity,
        told: Callable[[str], Mapping[str, str]],
        changed: Callable[[], None],
        days: float = CERTIFICATE_DAYS,
        beside: Sequence[NodeOfVpc] = (),
    ) -> None:
        self._nodes = nodes
        self._vpcs = vpcs
        self._authority = authority
        self._told = told
        self._changed = changed
        self._days = days
        self._beside = beside
        self._as_member: dict[str, Callable[[Mapping[str, Any], Peer], dict[str, Any]]] = {
            "rejoin": self._rejoin,
            "renew": self._renew,
            "confirm": self._confirm,
            "vpc": self._vpc,
        }
        self._strangers, self._members = Attempts(STRANGERS), Attempts(MEMBERS)
        self._context = identity.server
        self._context.verify_mode = ssl.CERT_OPTIONAL  # who joins has none yet

    async def start(self, host: str, port: int) -> asyncio.Server:
        """Raises OSError."""
        return await asyncio.start_server(
            self._serve, host, port, ssl=self._context, ssl_handshake_timeout=TIMEOUT_S, limit=MAX_LINE, backlog=BACKLOG
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = _shown(writer.get_extra_info("ssl_object"))
        attempts, who = (self._members, f"{shown.role} {shown.name}") if shown is not None else (self._strangers, _source(writer))
        let_in = attempts.enter(who, time.monotonic())
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                answer = await self._answer(reader, shown) if let_in else TOO_MANY
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("join.broken_off", reason=str(error)[:200])
        finally:
            if let_in:
                attempts.leave(who)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, shown: Peer | None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                request = json.loads(await reader.readuntil(b"\n"))
        except (ValueError, RecursionError, asyncio.LimitOverrunError):
            return {"error": "send one JSON object on one line"}
        if not isinstance(request, dict):
            return {"error": "send one JSON object on one line"}
        what = request.get("what")
        if what == "authority":
            return {"authority": self._authority.pem}
        try:
            if what == "join":
                return await run_in_threadpool(self._join, request)
            if isinstance(what, str) and what in self._as_member:
                if shown is None:
                    return {"error": f"only a member can ask to {what}: show its certificate"}
                return await run_in_threadpool(self._as_member[what], request, shown)
        except Refused as error:
            log.warning("join.refused", field=error.field, reason=str(error))
            return {"error": str(error)}
        except (CatalogError, BadRequest) as error:
            log.warning("join.refused", reason=str(error))
            return {"error": str(error)}
        except SQLAlchemyError:
            return {"error": "control's database is not reachable; try again", "again": True}
        return {"error": f"ask to join, for the authority, or as a member to {', '.join(self._as_member)}"}

    def _join(self, request: Mapping[str, Any]) -> dict[str, Any]:
        token, role, name, address, zone, csr = (
            _text(request, field) for field in ("token", "role", "name", "address", "zone", "csr")
        )
        _check_address(role, address)
        if len(zone) > MAX_ZONE:
            raise Refused(f"a zone has at most {MAX_ZONE} characters", "zone")
        now = time.time()
        joined = self._nodes.join(token, role, name, address, zone, self._sign(csr, role, name, now), now)
        self._changed()
        log.info("member.joined", role=role, member=name, address=address, epoch=joined.epoch)
        own = {"certificate": joined.certificate, "epoch": joined.epoch, "vpc": joined.vpc, "number": joined.number}
        return {**own, **self._told(role)}

    def _sign(self, csr: str, role: str, name: str, now: float) -> Callable[[], tuple[str, str]]:
        return lambda: self._authority.sign(csr, role, name, now, self._days)

    # -- who shows a certificate

    def _rejoin(self, request: Mapping[str, Any], who: Peer) -> dict[str, Any]:
        epoch = self._nodes.rejoin(who.role, who.name, who.fingerprint, time.time())
        self._changed()
        log.info("member.rejoined", role=who.role, member=who.name, epoch=epoch)
        if who.role != "node":
            return {"epoch": epoch}
        callers = callers_of(one.route for one in self._nodes.published() if one.route is not None)
        number = self._nodes.number_of(who.name)
        return {"epoch": epoch, "callers": msgspec.to_builtins(callers), "number": number}

    def _vpc(self, request: Mapping[str, Any], who: Peer) -> dict[str, Any]:
        """What a proxy is to know, asked again and again: it is told nothing else of the cluster."""
        vpc = self._nodes.vpc_of(who.role, who.name, who.fingerprint, time.time())
        news = self._vpcs.news(vpc)
        return {"news": msgspec.to_builtins(msgspec.structs.replace(news, nodes=[*self._beside, *news.nodes]))}

    def _renew(self, request: Mapping[str, Any], who: Peer) -> dict[str, Any]:
        now = time.time()
        sign = self._sign(_text(request, "csr"), who.role, who.name, now)
        certificate = self._nodes.renew(who.role, who.name, who.fingerprint, sign, now)
        self._changed()
        log.info("member.renewing", role=who.role, member=who.name)
        return {"certificate": certificate}

    def _confirm(self, request: Mapping[str, Any], who: Peer) -> dict[str, Any]:
        self._nodes.confirm(who.role, who.name, who.fingerprint, time.time())
        self._changed()
        log.info("member.renewed", role=who.role, member=who.name)
        return {}


def _shown(secured: Any) -> Peer | None:
    """Whose certificate of this authority was shown; none is a stranger's."""
    try:
        return certified(secured)
    except NotTrusted:
        return None


def _source(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return source(str(name[0])) if name else ""


def _text(request: Mapping[str, Any], field: str) -> str:
    value = request.get(field, "")
    if not isinstance(value, str):
        raise Refused(f"{field} must be text", field)
    return value


def _check_address(role: str, address: str) -> None:
    """Where gateways and planners dial it. Raises Refused."""
    if not address and role == "flow":
        return  # it only dials
    try:
        where = parse_address(address)
    except ValueError as error:
        raise Refused(str(error), "address") from error
    if not isinstance(where, HostPort) or where.port == 0 or len(address) > MAX_ADDRESS:
        raise Refused("the address of a member is host:port, as the others reach it", "address")
    if where.host in ("0.0.0.0", "::", "*"):  # noqa: S104
        raise Refused(f"{where.host} is no address others can reach; give the host's own", "address")

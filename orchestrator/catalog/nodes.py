"""Who has joined the cluster: tokens that let one process join once, the members, their epochs."""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping

import msgspec
from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.catalog.database import Database, retried
from orchestrator.catalog.epochs import database_now, next_epoch
from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.model import EventKind, JoinToken, Node, NodeState, Tenant
from orchestrator.catalog.outbox import add_event
from orchestrator.catalog.routes import NodeRoute
from orchestrator.catalog.vpc_rows import find, proxies_changed
from orchestrator.vpcs import PROXY_ROLE
from orchestrator.zones import DEFAULT_ZONE
from workers.rpc.transport import Peer

NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
ROLES = ("node", "gateway", "planner", "flow", "zone-cache", PROXY_ROLE)
MAX_TENANTS = 1000
"""In the allow-list of one node: it travels with its route."""

MAX_TTL_S = 7 * 86400.0
LIVE_TOKENS = 1000
FIRST_NUMBER, LAST_NUMBER = 2, 65535
"""Of nodes; one that nobody has any more is given again."""

KEPT_S = 30 * 86400.0
"""Used and expired tokens are remembered this long, so that who shows one is told what it is."""

Sign = Callable[[], tuple[str, str]]


class NodeView(msgspec.Struct, frozen=True):
    """`last_seen`: when the planner heard of it last, seconds since the epoch; None before it ever did. `tenants`: see
    `allow`."""

    name: str
    role: str
    address: str
    zone: str
    state: str
    epoch: int
    joined: float
    last_seen: float | None
    tenants: tuple[str, ...] = ()
    vpc: str = ""


class Joined(msgspec.Struct, frozen=True):
    """`number`: a node's, 0 for others. `vpc`: a proxy's."""

    certificate: str
    epoch: int
    vpc: str = ""
    number: int = 0


class PublishedNode(msgspec.Struct, frozen=True):
    """`route` None: it has left."""

    name: str
    generation: int
    route: NodeRoute | None


class Nodes:
    """Every change of a member grows its generation and writes one event, in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def make_token(self, role: str, ttl_s: float, now: float, vpc: str = "") -> str:
        """Shown once, kept as its SHA-256. `vpc`: tenant/name, for a vpc-proxy. Raises Refused."""
        if role not in ROLES:
            raise Refused(f"{role[:63]!r} is not one of {', '.join(ROLES)}", "role")
        if not 0 < ttl_s <= MAX_TTL_S:
            raise Refused(f"a token lives between 0 and {MAX_TTL_S:.0f} seconds", "ttl_s")
        if (role == PROXY_ROLE) != bool(vpc):
            raise Refused(f"a {PROXY_ROLE} joins for one private network (TENANT/NAME), others for none", "vpc")
        token = secrets.token_urlsafe(32)
        with self._database.write() as session:
            if vpc:
                _check_vpc(session, vpc)
            session.execute(delete(JoinToken).where(JoinToken.expires < now - KEPT_S))
            live = select(func.count()).select_from(JoinToken).where(JoinToken.used.is_(None), JoinToken.expires > now)
            if (session.scalar(live) or 0) >= LIVE_TOKENS:
                raise Refused(f"{LIVE_TOKENS} join tokens are waiting to be used; let some expire first", "role")
            session.add(JoinToken(digest=_digest(token), role=role, vpc=vpc, created=now, expires=now + ttl_s, used_by=""))
        return token

    @retried
    def join(self, token: str, role: str, name: str, address: str, zone: str, sign: Sign, now: float) -> Joined:
        """Uses the token up, for good, and registers the member. `sign` makes its certificate and fingerprint, and is only
        asked when the token is good. Raises Refused, naming the field, and what `sign` raises; the token is then not used."""
        if not NODE_NAME.match(name):
            raise Refused("a name is 1 to 63 lower-case letters, digits and hyphens", "name")
        with self._database.write() as session:
            known = session.get(JoinToken, _digest(token), with_for_update=True)
            _check_token(known, role, now)
            assert known is not None
            node = session.get(Node, name, with_for_update=True)
            if node is not None and node.state != NodeState.LEFT:
                raise Refused(f"{name} has joined already; choose another name, or `foreglow nodes remove {name}` first", "name")
            number = _free_number(session) if role == "node" else None
            certificate, fingerprint = sign()
            known.used, known.used_by = now, name
            if node is None:
                node = Node(name=name, epoch=0, generation=0, role=role, joined=now)
                session.add(node)
            node.role, node.address, node.zone = role, address, zone
            node.vpc = known.vpc
            node.number = number
            if role != "node":
                node.tenants = ""  # of the node that had the name before; nobody could lift it
            node.fingerprint, node.fingerprint_before = fingerprint, ""
            node.joined, node.last_seen = now, None
            _changed(session, node, NodeState.UP, now)
            return Joined(certificate, node.epoch, node.vpc, node.number or 0)

    @retried
    def beside(self, name: str, address: str, vpc: str, now: float) -> None:
        """A proxy that runs beside control: the authority is there, so it needs no token, and whatever certificate bears its name
        counts. Raises Refused."""
        with self._database.write() as session:
            _check_vpc(session, vpc)
            node = session.get(Node, name, with_for_update=True)
            if node is None:
                node = Node(name=name, epoch=0, generation=0, role=PROXY_ROLE, joined=now, zone="", tenants="", vpc=vpc)
                session.add(node)
            elif node.vpc != vpc:
                proxies_changed(session, node.vpc, now)
            node.address, node.vpc, node.fingerprint, node.fingerprint_before = address, vpc, "", ""
            node.joined, node.last_seen = now, None
            _changed(session, node, NodeState.UP, now)

    @retried
    def rejoin(self, role: str, name: str, fingerprint: str, now: float) -> int:
        """The new epoch of a member that came with its certificate. Raises Refused when that does not count (any more)."""
        with self._database.write() as session:
            node = _member(session, role, name, fingerprint)
            _shown(node, fingerprint)
            _changed(session, node, NodeState.UP, now)
            return node.epoch

    def number_of(self, name: str) -> int:
        """A node's own in the cluster; 0: it has none."""
        with self._database.read() as session:
            node = session.get(Node, name)
            return (node.number or 0) if node is not None else 0

    @retried
    def renew(self, role: str, name: str, fingerprint: str, sign: Sign, now: float) -> str:
        """A new certificate for a member that came with one that counts: from now on both do. Raises Refused, and what `sign`
        raises."""
        with self._database.write() as session:
            node = _member(session, role, name, fingerprint)
            certificate, node.fingerprint = sign()
            node.fingerprint_before = fingerprint  # the one it has: an answer that never came may be asked for again
            _told(session, node, now)
            return certificate

    @retried
    def confirm(self, role: str, name: str, fingerprint: str, now: float) -> None:
        """The member has shown this certificate: the one before it does not count any more. Raises Refused."""
        with self._database.write() as session:
            node = _member(session, role, name, fingerprint)
            if _shown(node, fingerprint):
                _told(session, node, now)

    @retried
    def vpc_of(self, role: str, name: str, fingerprint: str, now: float) -> str:
        """For which private network a proxy joined that came with its certificate: it is heard of. Raises Refused."""
        with self._database.write() as session:
            node = _member(session, role, name, fingerprint)
            if not node.vpc:
                raise Refused(f"{name} is a {role}, and of no private network", "name")
            node.last_seen = now
            return node.vpc

    @retried
    def declare_silent(self, name: str, epoch: int, now: float) -> bool:
        """What it holds is void from now on. False when it has joined again since, or has left."""
        with self._database.write() as session:
            node = session.get(Node, name, with_for_update=True)
            if node is None or node.state == NodeState.LEFT or node.epoch != epoch:
                return False
            _changed(session, node, NodeState.SILENT, now)
            return True

    @retried
    def unheard(self, name: str, epoch: int, now: float) -> bool:
        """It is silent, and what it holds stays good: perhaps only who watches is cut off. False when that is known, or it has
        joined again since."""
        with self._database.write() as session:
            node = session.get(Node, name, with_for_update=True)
            if node is None or node.state != NodeState.UP or node.epoch != epoch:
                return False
            node.state = NodeState.SILENT
            _told(session, node, now)
            return True

    @retried
    def remove(self, name: str, now: float) -> None:
        """Its certificate does not count any more. Raises NotFound; removing twice is once."""
        with self._database.write() as session:
            node = session.get(Node, name, with_for_update=True)
            if node is None:
                raise NotFound(f"no node {name[:63]!r}")
            if node.state != NodeState.LEFT:
                node.number = None
                _changed(session, node, NodeState.LEFT, now)

    @retried
    def allow(self, name: str, tenants: Iterable[str], now: float) -> None:
        """From now on the node gets nothing of other tenants; of none named: everybody's again. What it has of others ends when
        it is idle. Kept when it joins again. Raises NotFound, and Refused naming the field."""
        wanted = sorted(set(tenants))
        if len(wanted) > MAX_TENANTS:
            raise Refused(f"at most {MAX_TENANTS} tenants", "tenants")
        with self._database.write() as session:
            node = session.get(Node, name, with_for_update=True)
            if node is None or node.state == NodeState.LEFT:
                raise NotFound(f"no node {name[:63]!r}")
            if node.role != "node":
                raise Refused(f"{name[:63]} is a {node.role}: only nodes hold code of some tenants and not of others", "name")
            known = set(session.scalars(select(Tenant.name).where(Tenant.name.in_(wanted))))
            for one in wanted:
                if one not in known:
                    raise Refused(f"no tenant {one[:63]!r}", "tenants")
            node.tenants = " ".join(wanted)
            _told(session, node, now)

    @retried
    def seen(self, heard: Mapping[str, int], now: float) -> bool:
        """Name and epoch of members that are heard. True when one was silent, and nothing it holds was voided since: it is up
        again. Otherwise no event: nobody decides by when it was seen."""
        with self._database.write() as session:
            later = or_(Node.last_seen.is_(None), Node.last_seen < now)
            session.execute(update(Node).where(Node.name.in_(list(heard)), later).values(last_seen=now))
            silent = select(Node).where(Node.name.in_(list(heard)), Node.state == NodeState.SILENT).with_for_update()
            back = [node for node in session.scalars(silent) if heard[node.name] >= node.epoch]
            for node in back:
                node.state = NodeState.UP
                _told(session, node, now)
            return bool(back)

    def published(self) -> list[PublishedNode]:
        with self._database.read() as session:
            return [_published(one) for one in session.scalars(select(Node).order_by(Node.name))]

    def published_one(self, name: str) -> PublishedNode | None:
        with self._database.read() as session:
            node = session.get(Node, name)
            return _published(node) if node is not None else None

    def list(self) -> list[NodeView]:
        """By name, those that left too."""
        with self._database.read() as session:
            return [
                NodeView(
                    one.name,
                    one.role,
                    one.address,
                    one.zone or DEFAULT_ZONE,
                    one.state,
                    one.epoch,
                    one.joined,
                    one.last_seen,
                    tuple(one.tenants.split()),
                    one.vpc,
                )
                for one in session.scalars(select(Node).order_by(Node.name))
            ]


def _check_vpc(session: Session, vpc: str) -> None:
    tenant, _, name = vpc.partition("/")
    if find(session, tenant, name) is None:
        raise Refused(f"no private network {vpc[:127]!r}; write TENANT/NAME of one that is there", "vpc")


def _free_number(session: Session) -> int:
    """The lowest that no node has. Of two that join at once PostgreSQL runs one again."""
    taken = set(session.scalars(select(Node.number).where(Node.number.is_not(None))))
    free = next((number for number in range(FIRST_NUMBER, LAST_NUMBER + 1) if number not in taken), None)
    if free is None:
        raise Refused(f"{LAST_NUMBER} nodes have joined, which is all there can be; remove some", "name")
    return free


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _check_token(known: JoinToken | None, role: str, now: float) -> None:
    if known is None:
        raise Refused("this join token is not known here; make one with `foreglow node-token`", "token")
    if known.used is not None:
        raise Refused(f"this join token was used already, by {known.used_by}; each lets one process join, once", "token")
    if known.expires <= now:
        raise Refused("this join token has expired; make another with `foreglow node-token`", "token")
    if known.role != role:
        raise Refused(f"this join token is for a {known.role}, not for a {role[:63]}", "role")


def _member(session: Session, role: str, name: str, fingerprint: str) -> Node:
    """The row, locked. Raises Refused unless it is this role's and the certificate counts."""
    node = session.get(Node, name, with_for_update=True)
    if node is None or node.state == NodeState.LEFT or node.role != role or not _peer(node).counts(fingerprint):
        raise Refused(f"{name} is no member of this cluster any more: join again with a new token", "name")
    return node


def _peer(node: Node) -> Peer:
    return Peer(node.role, node.name, node.fingerprint, node.fingerprint_before)


def _shown(node: Node, fingerprint: str) -> bool:
    """True when this ends the life of the certificate before."""
    if fingerprint != node.fingerprint or not node.fingerprint_before:
        return False
    node.fingerprint_before = ""
    return True


def _changed(session: Session, node: Node, state: NodeState, now: float) -> None:
    """What it held is void."""
    node.state = state
    node.epoch = next_epoch(node.epoch, database_now(session))
    _told(session, node, now)


def _told(session: Session, node: Node, now: float) -> None:
    """Gateways, planners and nodes hear of it."""
    node.generation += 1
    session.flush()
    if node.vpc:
        proxies_changed(session, node.vpc, now)
    add_event(session, EventKind.NODE, node.name, node.generation, {}, now)


def _published(node: Node) -> PublishedNode:
    if node.state == NodeState.LEFT:
        return PublishedNode(node.name, node.generation, None)
    route = NodeRoute(
        node.name,
        node.generation,
        node.role,
        node.address,
        node.zone,
        node.fingerprint,
        node.state == NodeState.UP,
        node.epoch,
        node.fingerprint_before,
        tenants=tuple(node.tenants.split()),
    )
    return PublishedNode(node.name, node.generation, route)

"""Private networks as parts of others' transactions: found, changed with what they are made of, ended."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.catalog.errors import Refused
from orchestrator.catalog.model import EventKind, Node, NodeState, Vpc
from orchestrator.catalog.outbox import add_event
from orchestrator.vpcs import PROXY_ROLE, rule_of
from workers.networks import Proxy, VpcSpec


def find(session: Session, tenant: str, name: str, lock: bool = False) -> Vpc | None:
    """The one that is there now. `lock`: until the end of the transaction."""
    query = select(Vpc).where(Vpc.tenant == tenant, Vpc.name == name, Vpc.removed.is_(None))
    return session.scalar(query.with_for_update() if lock else query)


def check_there(session: Session, tenant: str, name: str) -> None:
    """Raises Refused. Held until the end of the transaction, so that it is not removed under who begins to use it."""
    if find(session, tenant, name, lock=True) is None:
        raise Refused(f"no private network {name[:63]!r}; `foreglow vpc create {name[:63]} --cidr ...` makes it", "vpc")


def last_generation(session: Session, tenant: str, name: str) -> int:
    """Of those that had the name before: it never goes back."""
    return session.scalar(select(func.max(Vpc.generation)).where(Vpc.tenant == tenant, Vpc.name == name)) or 0


def changed(session: Session, vpc: Vpc, now: float) -> None:
    """Planners, nodes and proxies hear of it; the versions in it are looked at again."""
    vpc.generation += 1
    tell(session, vpc, now)


def tell(session: Session, vpc: Vpc, now: float) -> None:
    session.flush()
    add_event(session, EventKind.VPC, f"{vpc.tenant}/{vpc.name}", vpc.generation, {}, now)


def proxies_changed(session: Session, vpc: str, now: float) -> None:
    """One of its proxies joined, left, or shows another certificate."""
    tenant, _, name = vpc.partition("/")
    found = find(session, tenant, name, lock=True)
    if found is not None:
        changed(session, found, now)


def end(session: Session, vpc: Vpc, now: float) -> None:
    vpc.removed = now
    changed(session, vpc, now)


def spec_of(session: Session, vpc: Vpc) -> VpcSpec:
    """As nodes and proxies know it; of its proxies the first by name is the primary."""
    identity = f"{vpc.tenant}/{vpc.name}"
    members = select(Node).where(Node.vpc == identity, Node.role == PROXY_ROLE, Node.state != NodeState.LEFT)
    return VpcSpec(
        vpc=identity,
        tenant=vpc.tenant,
        number=vpc.number,
        generation=vpc.generation,
        cidrs=tuple(vpc.cidrs),
        rules=tuple(map(rule_of, vpc.rules)),
        address=vpc.address,
        resolver=vpc.resolver,
        proxies=tuple(
            Proxy(one.name, one.address, "", one.fingerprint, one.fingerprint_before)
            for one in session.scalars(members.order_by(Node.name))
        ),
    )

"""Which nodes reach a private network now: asked of all that may host its tenant. Blocking; for one task each."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from orchestrator.flow.links import NodeLink, Place, linked
from workers.networks import VpcSpec
from workers.rpc.connection import RpcError
from workers.rpc.messages import Hello
from workers.rpc.transport import Identity

SHOWN = 5
INTERNET = ""


class NoNode(Exception):
    """None that may host the tenant answered: another time."""


class Reach(msgspec.Struct, frozen=True):
    """`ready`: an instance can be attached on some node. `reason`: on which, by what backend, and why not on others; or the way
    out. `coming`: it may be true in a moment, nothing stands against it."""

    ready: bool
    reason: str
    coming: bool = False


class Reaching:
    """`places(tenant)` are asked for anew each time: nodes come and go."""

    def __init__(self, places: Callable[[str | None], Sequence[Place]], hello: Hello, identity: Identity | None = None) -> None:
        self._places = places
        self._hello = hello
        self._identity = identity

    def vpc(self, spec: VpcSpec) -> Reach:
        """Raises NoNode."""
        if not spec.proxies:
            return Reach(
                False,
                f"no proxy of {spec.vpc} has joined: on a host inside it `foreglow vpc proxy --vpc {spec.vpc}`, "
                "after which this version is looked at again",
            )
        return judge(spec.vpc, self._ask(spec.tenant))

    def internet(self, tenant: str) -> Reach:
        """Raises NoNode."""
        return judge(INTERNET, self._ask(tenant))

    def _ask(self, tenant: str) -> list[dict[str, Any]]:
        return asyncio.run(self._asked(tenant))

    async def _asked(self, tenant: str) -> list[dict[str, Any]]:
        async with linked(self._places(tenant), self._hello, asyncio.Event(), self._identity) as (links, away):
            answers = await asyncio.gather(*(_told(link, tenant) for link in links))
            found = [one for one in answers if one is not None]
            if not found:
                raise NoNode("no node that may host the tenant answers: " + "; ".join(away or ["there is none"]))
            return found


def judge(vpc: str, nodes: Sequence[dict[str, Any]]) -> Reach:
    """`nodes`: what each says of its tunnels. Pure."""
    named = vpc or "the Internet"
    reached, lacking, coming = [], [], False
    for node in nodes:
        state = next((one for one in node["tunnels"] if one["vpc"] == vpc), None)
        if vpc in node["reached"]:
            reached.append(f"{node['node']} ({state['backend'] if state is not None else node['backend']})")
        elif node["backend"] == "none":
            lacking.append(f"{node['node']}: {node['reason']}")
        else:
            coming = True
            lacking.append(f"{node['node']}: {state['reason'] if state is not None else 'it was not told of it yet'}")
    without = "; not by " + _some(lacking) if lacking else ""
    if reached:
        return Reach(True, f"{named} is reached by {len(reached)} of {len(nodes)} nodes: {_some(reached)}{without}")
    hint = "" if coming else "; `foreglow doctor` on the nodes says what their backends need"
    return Reach(False, f"no node reaches {named}: {_some(lacking)}{hint}", coming)


def _some(said: Sequence[str]) -> str:
    more = f"; {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return "; ".join(said[:SHOWN]) + more


async def _told(link: NodeLink, tenant: str) -> dict[str, Any] | None:
    """None: it does not answer, or is of a release without tunnels."""
    try:
        answer: dict[str, Any] = await link.ask("tunnels", tenant=tenant)
    except (RpcError, TimeoutError):
        return None
    return answer

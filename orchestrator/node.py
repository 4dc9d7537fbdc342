"""`foreglow node`: the node process, from settings."""

import asyncio
import ipaddress
import socket
from functools import partial
from typing import TYPE_CHECKING

import structlog

from orchestrator.settings import Settings, rpc_secret
from workers.drivers.process.isolation import enter_user_namespace
from workers.mounts import enter_private_mounts
from workers.sealing import load_key

log = structlog.get_logger(__name__)
if TYPE_CHECKING:
    from workers.code.tier1 import Tier1
    from workers.node import Node


def run(settings: Settings) -> None:
    """Blocks until SIGTERM. Must be the first thing its process does: an ordinary user's node moves into a user namespace,
    which only a process with one thread may do, and root's into a mount namespace. Raises NotJoined, and JoinFailed for a node
    that was told to leave."""
    if not enter_user_namespace():
        enter_private_mounts()
    from orchestrator.joining import JoinFailed, rejoin
    from orchestrator.members import LOCAL
    from orchestrator.membership import Self, load_callers, save_callers
    from workers.bootstrap import NodeConfig
    from workers.bootstrap import run as run_node
    from workers.code.room import Bounds
    from workers.networks import BESIDE_CONTROL

    own = Self(settings, "node", f"node{LOCAL}{socket.gethostname()}")
    member = own.member
    if member is not None:
        try:
            member = rejoin(settings.state, member)  # what an earlier process of this node held is void
        except JoinFailed as error:
            if error.refused:
                raise
            # control is away: the old epoch may still do
            log.warning("node.rejoin_failed", reason=str(error), epoch=member.epoch)

    async def again() -> int:
        assert member is not None
        return (await asyncio.to_thread(rejoin, settings.state, member)).epoch

    async def beside(node: "Node", tier: "Tier1") -> None:
        from orchestrator.ops.listener import Operations
        from orchestrator.ops.node import NodeMetrics, node_checks
        from orchestrator.renewal import keep_certified

        operations = Operations(
            "node", lambda: node.serving, lambda: node_checks(node), NodeMetrics(node, tier, settings.metrics_functions)
        )
        done = keep_certified(own)
        try:
            await operations.start(settings)
            await asyncio.Event().wait()
        finally:
            done()
            await operations.stop()

    key = load_key(settings.key_file)
    run_node(
        NodeConfig(
            name=own.name if member is not None else socket.gethostname(),
            folder=settings.node_folder,
            sockets=own.listens(settings.socket("node")),
            secret=rpc_secret(key),
            key=key,
            origin_url=settings.effective_origin_url,
            python=settings.python,
            memory_mb=settings.node_memory_mb,
            standbys=settings.standbys,
            idle_s=settings.idle_s,
            allow_no_isolation=settings.allow_no_isolation,
            template_init_ms=settings.template_init_ms,
            template_memory_mb=settings.template_memory_mb,
            identity=own.identity,
            epoch=member.epoch if member is not None else 0,
            rejoin=again if member is not None else None,
            lazy_from_bytes=settings.lazy_from_bytes,
            driver=settings.driver,
            accel=settings.accel,
            image_folder=settings.image_folder,
            microvm_network=settings.microvm_network,
            tunnels=settings.tunnels,
            number=member.number if member is not None else BESIDE_CONTROL,
            underlay=_host(member.listen) if member is not None else settings.underlay,
            zone=settings.zone,
            zone_caches=settings.zone_cache_addresses,
            code_bounds=Bounds(settings.node_code_bytes, settings.node_code_tenant_bytes),
            callers=load_callers(settings.state) if member is not None else None,
            on_callers=partial(save_callers, settings.state) if member is not None else lambda callers: None,
        ),
        beside,
    )


def _host(listen: str) -> str:
    """Of where it listens, for tunnels to come to; empty when that is no IPv4 address."""
    host = listen.rpartition(":")[0]
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        return ""

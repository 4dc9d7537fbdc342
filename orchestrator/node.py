"""`foreglow node`: the node process, from settings."""

import asyncio
import socket
from typing import TYPE_CHECKING

from orchestrator.settings import Settings, rpc_secret
from workers.drivers.process.isolation import enter_user_namespace
from workers.sealing import load_key

if TYPE_CHECKING:
    from workers.code.tier1 import Tier1
    from workers.node import Node


def run(settings: Settings) -> None:
    """Blocks until SIGTERM. Must be the first thing its process does: an ordinary user's node moves into a user namespace,
    which only a process with one thread may do."""
    enter_user_namespace()
    from workers.bootstrap import NodeConfig
    from workers.bootstrap import run as run_node

    async def beside(node: "Node", tier: "Tier1") -> None:
        from orchestrator.ops.listener import Operations
        from orchestrator.ops.node import NodeMetrics, node_checks

        operations = Operations("node", lambda: node.serving, lambda: node_checks(node), NodeMetrics(node, tier))
        try:
            await operations.start(settings)
            await asyncio.Event().wait()
        finally:
            await operations.stop()

    key = load_key(settings.key_file)
    run_node(
        NodeConfig(
            name=socket.gethostname(),
            folder=settings.node_folder,
            socket=settings.socket("node"),
            secret=rpc_secret(key),
            key=key,
            origin_url=settings.effective_origin_url,
            python=settings.python,
            memory_mb=settings.node_memory_mb,
            standbys=settings.standbys,
            idle_s=settings.idle_s,
            allow_no_isolation=settings.allow_no_isolation,
        ),
        beside,
    )

"""Wires a node from its parts and runs it until SIGTERM."""

import asyncio
import importlib
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import msgspec
import structlog
import uvloop

from workers.admission import machine_memory_mb
from workers.callers import CallerList
from workers.code.lazy.starting import FROM_BYTES, lazy_starts
from workers.code.origin import Origin
from workers.code.room import Bounds
from workers.code.tier1 import Tier1
from workers.code.zone import ZoneClient
from workers.drivers.process.driver import ProcessDriver
from workers.function_templates import Rules
from workers.network.both import BothPlanes
from workers.network.choosing import AUTO, NONE, Backend, choose
from workers.network.none import NoPlane
from workers.networks import own_address
from workers.node import Node
from workers.ports import Driver, DriverError, TunnelPlane
from workers.rpc.messages import Caller
from workers.rpc.transport import Address, Identity
from workers.sealing import Sealer
from workers.standing import Rejoin
from workers.tunnelling import Tunnels

MEMORY_SHARE = 0.8

log = structlog.get_logger(__name__)


class NodeConfig(msgspec.Struct, frozen=True):
    """`memory_mb` 0 means 80 % of what the machine has free; `python` empty means found. `template_init_ms`: init from which on
    a version gets a function template, 0: never; `template_memory_mb`: what they may hold, 0: a tenth of the memory. `rejoin`
    and `epoch` of a node that has joined; it listens on `sockets`, on TCP with `identity`. `callers`: who may dial it there, as
    far as is known (None: nothing); `on_callers` hears whenever control tells. `zone_caches`: tier 2 as settings name it;
    planners tell of more. `lazy_from_bytes` 0: no lazy starts. `driver`: process | microvm; `accel`,
    `image_folder` and `microvm_network` are the latter's. `tunnels`: auto | kernel | portable | none; `number`: the node's own in
    the cluster, `underlay`: its address that carries the kernel backend's tunnels; without either that backend is none."""

    name: str
    folder: Path
    sockets: Sequence[Address]
    secret: str
    key: bytes
    origin_url: str
    python: str
    memory_mb: int
    standbys: int
    idle_s: float
    allow_no_isolation: bool
    template_init_ms: float = 0.0
    template_memory_mb: int = 0
    identity: Identity | None = None
    epoch: int = 0
    rejoin: Rejoin | None = None
    zone: str = "default"
    zone_caches: Sequence[Address] = ()
    code_bounds: Bounds = Bounds()
    callers: Sequence[Caller] | None = None
    on_callers: Callable[[Sequence[Caller]], None] = lambda callers: None
    lazy_from_bytes: int = FROM_BYTES
    driver: str = "process"
    accel: str = "auto"
    image_folder: Path | None = None
    microvm_network: bool = True
    tunnels: str = "auto"
    number: int = 0
    underlay: str = ""


Beside = Callable[[Node, Tier1], Coroutine[None, None, None]]
"""What runs in the node's loop beside it and looks at it, until cancelled; the node ends when it fails."""


def make_driver(config: NodeConfig) -> Driver:
    """The one the node was told to use. Raises DriverError."""
    if config.driver != "microvm":
        return ProcessDriver(config.folder / "process", config.python, config.allow_no_isolation)
    from workers.drivers.microvm.driver import MicroVmDriver
    from workers.drivers.microvm.image import find

    image = None if config.image_folder is None else find(config.image_folder)
    if image is None:
        raise DriverError("there is no guest image: foreglow image build")
    return MicroVmDriver(config.folder / "microvm", image, config.accel, network=config.microvm_network)


async def open_plane(config: NodeConfig) -> TunnelPlane:
    """The kernel's with the portable one behind it, where both work; else what works; else one that says why there is none."""
    try:
        return await _best_plane(config)
    except Exception as error:
        log.exception("node.tunnels_not_opened")
        return NoPlane(f"{type(error).__name__}: {error}")


async def _best_plane(config: NodeConfig) -> TunnelPlane:
    if config.tunnels == NONE:
        return await choose([], NONE)
    if config.number and config.tunnels != "portable":
        await asyncio.to_thread(importlib.import_module, "workers.network.kernel.plane")  # half a second that others need
    from workers.network.portable.plane import PortablePlane

    def kernel(reason: str) -> TunnelPlane:
        if not config.number:
            raise PermissionError(1, "this node has no number in its cluster: let it join again")
        from workers.network.kernel.plane import KernelPlane

        return KernelPlane(config.underlay or own_address(), config.number)

    def portable(reason: str) -> TunnelPlane:
        return PortablePlane(config.identity, reason)

    backends = [Backend("kernel", kernel), Backend("portable", portable)]
    chosen = await choose(backends, config.tunnels)
    if config.tunnels != AUTO or chosen.backend != "kernel":
        return chosen
    try:
        other = await choose(backends[1:])
    except BaseException:
        await chosen.stop()
        raise
    return BothPlanes(chosen, other) if other.backend != "none" else chosen


async def serve(config: NodeConfig, beside: Beside | None = None) -> None:
    """Runs until SIGTERM or SIGINT; nothing of the node is left after that. Raises DriverError when it cannot start."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config.folder.mkdir(parents=True, exist_ok=True)
    driver = make_driver(config)
    report = await driver.start()
    log.info("node.isolation", tier=report.tier, limits=dict(report.limits), missing=list(report.missing))
    zone, origin = ZoneClient(config.zone, config.identity, config.zone_caches), Origin(config.origin_url)
    # without isolation a function sees the mount itself, and would miss it when the plain tree takes over
    may_come_later = report.isolated and driver.traits.lazy_code
    lazy = await lazy_starts(config.folder / "code", origin, config.lazy_from_bytes if may_come_later else 0)
    tier = Tier1(config.folder / "code", [zone, origin], config.key, config.code_bounds, lazy)
    memory_mb = config.memory_mb or int(machine_memory_mb() * MEMORY_SHARE)
    node = Node(
        config.name,
        driver,
        tier,
        Sealer(config.key),
        report,
        memory_mb,
        os.cpu_count() or 1,
        config.standbys,
        config.idle_s,
        Rules(config.template_init_ms, config.template_memory_mb or memory_mb // 10),
        Tunnels(NoPlane("its tunnels are being opened"), lambda: open_plane(config)),
    )
    node.on_caches = lambda told: zone.use([*config.zone_caches, *told])
    if config.rejoin is not None:
        node.standing.joined(config.epoch, config.rejoin)
    node.callers, node.on_callers = CallerList(config.callers), config.on_callers
    serving = asyncio.create_task(node.serve(config.sockets, config.secret, config.identity))
    running = [serving] if beside is None else [serving, asyncio.create_task(beside(node, tier))]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            if task.done():
                task.result()
    finally:
        stopping.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, stopping, return_exceptions=True)
        zone.close()
        await driver.stop()
        await tier.stop()


def run(config: NodeConfig, beside: Beside | None = None) -> None:
    uvloop.run(serve(config, beside))

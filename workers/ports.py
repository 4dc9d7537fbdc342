"""What a node asks of a driver and of the code tiers. Protocols live here, beside their consumer (workers.node)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from workers.code.manifest import Manifest
from workers.framing import Frame
from workers.networks import TunnelState, VpcSpec
from workers.versions import Kind, VersionSpec


class DriverError(Exception):
    """A clone or a specialisation failed; the message says which step and why."""


class TemplateRefused(DriverError):
    """This version cannot have a function template; the message says why, in words for its author. Trying again is in vain.

    `kind`: isolation | environment | process | thread | shared-memory | files | socket | descriptor."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class InitFailed(DriverError):
    """The user's module raised while it was imported. `detail` is {type, message, stack}; `asked` as in InitReport."""

    def __init__(self, detail: Mapping[str, str], asked: tuple[str, ...] = ()) -> None:
        super().__init__(f"{detail.get('type', 'Error')}: {detail.get('message', '')}")
        self.detail = dict(detail)
        self.asked = asked


class IsolationReport(msgspec.Struct, frozen=True):
    """What isolation a driver really gives here, found by doing it once, not by asking.

    `tier`: root+cgroups | root | userns | none. `limits`: how memory and pids are held (cgroup-v1, cgroup-v2, rlimit, none).
    `missing`: one line for each thing that is not in force.
    """

    driver: str
    tier: str
    limits: Mapping[str, str]
    missing: tuple[str, ...] = ()

    @property
    def isolated(self) -> bool:
        return self.tier != "none"


class Specialisation(msgspec.Struct, frozen=True):
    """What a clone needs to become an instance of a version. `layers`: folders on this node, code first.

    `withheld`: for the original of a function template only, the names of environment values that it must not have."""

    version: str
    handler: str
    kind: Kind
    concurrency: int
    memory_mb: int
    layers: tuple[Path, ...]
    environment: Mapping[str, str]
    withheld: tuple[str, ...] | None = None


class InitReport(msgspec.Struct, frozen=True):
    """`attach_ms`: code attached and lockdown done. `init_ms`: the handler's module imported, in a clone of a function
    template what remained of that. `asked`: of the withheld, the names it asked for."""

    attach_ms: float
    init_ms: float
    asked: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    memory_bytes: int
    processes: int


class Clone(Protocol):
    """One sandbox: a standby until it is specialised, an instance after. Callbacks run on the event loop.

    `on_frame` gets every frame of the guest but READY. `on_exit` is called once, with a reason, when the sandbox is gone
    for whatever cause; after that `send` does nothing.
    """

    clone_id: str
    on_frame: Callable[[Frame], None]
    on_output: Callable[[str, bytes], None]  # (out | err, bytes written past the runtime, by C code or a child process)
    on_exit: Callable[[str], None]

    @property
    def network(self) -> "SandboxNetwork | None":
        """Where its network can be got at; None: it has none of its own. The descriptor is closed once the sandbox has gone."""

    async def specialise(self, work: Specialisation, timeout_s: float) -> InitReport:
        """Attaches the code, locks the sandbox, imports the handler. Raises InitFailed, DriverError, TimeoutError."""

    def send(self, kind: int, ident: int, meta: bytes = b"", body: bytes = b"") -> None:
        """Queues one frame to the guest; never blocks."""

    def speculative(self, on: bool) -> None:
        """Lets the sandbox yield to others (or no more), by the means this tier has; does nothing where it has none."""

    def cpu(self) -> tuple[float, bool] | None:
        """Seconds of CPU its first process has used or queued for, and whether it wants a core now; None: cannot be read."""

    def usage(self) -> Usage | None:
        """Memory and processes now; None when it cannot be read."""

    async def rest(self) -> None:
        """Becomes a standby: does ahead what specialising would do, and takes no CPU from then on. Raises DriverError."""

    async def kill(self, reason: str) -> None:
        """Ends every process of the sandbox and frees what it held. Idempotent; returns when they are gone."""


class FunctionTemplate(Protocol):
    """One version, its module imported once: its clones start with that done. Never of two tenants.

    `memory_mb`: what it holds, in force as a limit. `init_ms`: what its clones are spared. `on_gone` is called once, with a
    reason, when it cannot be cloned any more and nobody asked for that.
    """

    memory_mb: int
    init_ms: float
    on_gone: Callable[[str], None]

    async def clone(self, memory_mb: int) -> Clone:
        """A sandbox of its own with the module imported, waiting to be specialised. Raises DriverError."""

    async def end(self, reason: str) -> None:
        """Frees what it holds; its clones live on. Idempotent."""


class Traits(msgspec.Struct, frozen=True):
    """What the node must know of a driver. `shared_standbys`: a standby is of no tenant until it is used, and so dear that the
    node keeps as many as the largest live plan draws. `beside_mb`: what a sandbox takes beside its shape,
    `template_beside_mb`: a function template, at most. `lazy_code`: layers
    may be mounts that are still being filled."""

    shared_standbys: bool = False
    beside_mb: int = 0
    template_beside_mb: int = 0
    lazy_code: bool = False


class Driver(Protocol):
    """Makes templates and clones. One per node process."""

    name: str
    traits: Traits

    async def start(self) -> IsolationReport:
        """Probes by doing it, sweeps what a dead predecessor left, and is ready to clone. Raises DriverError."""

    async def clone(self, tenant: str, memory_mb: int) -> Clone:
        """A new sandbox for `tenant` (empty: whoever uses it first) with no code in it, waiting to be specialised. Raises
        DriverError."""

    async def template(self, tenant: str, work: Specialisation, timeout_s: float) -> FunctionTemplate:
        """Imports the version's module, with `work.withheld` and without its environment, and keeps that to clone from.
        Raises TemplateRefused, InitFailed, DriverError, TimeoutError; nothing is left then."""

    async def retire(self, tenant: str) -> None:
        """The tenant has nothing here any more: its template goes once its clones have."""

    async def stop(self) -> None:
        """Kills every clone and template; nothing is left."""


class Fetched(msgspec.Struct, frozen=True):
    """`folders` on this node, code first; directories or mount points. `source`: tier1 when all was here, else the farthest that
    something came from, tier2 or origin."""

    folders: tuple[Path, ...]
    source: str


class CodeReport(msgspec.Struct, frozen=True):
    """`requests` and `ms` (their sum) by tier: tier1, tier2, origin, failed. `bytes` on the disk, in whole blocks."""

    bytes: int
    requests: Mapping[str, int]
    ms: Mapping[str, float]
    evictions: int


class CodeTier(Protocol):
    """Brings layers of code onto this node. Tier 1 is the node's own disk."""

    async def fetch(self, spec: VersionSpec) -> Fetched:
        """Where the version's layers are; they are brought when they are not here. Raises CodeUnavailable."""

    def bring(self, tenant: str, specs: Sequence[VersionSpec]) -> None:
        """Brings these versions of a tenant that is hosted here in the background, in their order, instead of those before."""

    async def bring_ahead(self, spec: VersionSpec) -> None:
        """Brings a version that nobody waits for, behind all that somebody does. Raises CodeUnavailable."""

    def pin(self, spec: VersionSpec) -> None:
        """Keeps the version's layers until as many `unpin`: a version has instances here, or a plan wants some."""

    def unpin(self, spec: VersionSpec) -> None: ...

    def held(self, spec: VersionSpec) -> bool:
        """True when tier 1 has all layers."""

    async def forget(self, tenant: str) -> None:
        """The tenant is gone for good: nothing of its code stays."""

    def report(self) -> CodeReport:
        """What is held and what was asked, all tenants."""

    def report_of(self, tenant: str) -> Mapping[str, CodeReport]:
        """What was asked for each of the tenant's functions, by FunctionId; `bytes` are those brought for it."""


class ChunkSource(Protocol):
    """Where layers come from, chunk by chunk: the origin, or tier 2. Blocking, called from many threads at once.

    Both methods raise workers.code.origin.OriginError when the source is away, or does not hold what was asked for.
    """

    name: str
    """`origin` or `tier2`."""

    @property
    def there(self) -> bool:
        """False: it is not asked, there is nobody to ask. A zone without caches."""

    def manifest(self, tenant: str, digest: str) -> Manifest:
        """The layer's manifest, checked against its digest."""

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        """A chunk of the layer `digest` as it is stored (workers.code.chunks); the caller unpacks, and so checks, it."""


class Parcel(Protocol):
    """A layer in one answer. One thread at a time; `close` it, whole or not, read or not."""

    @property
    def manifest(self) -> Manifest:
        """Checked against its digest."""

    def __iter__(self) -> Iterator[bytes]:
        """The chunks as they are stored, in their order, as they come: of a small layer all of them, of a larger one none. Empty
        for one that is not to be had this way. Raises workers.code.origin.OriginError."""

    def close(self) -> None:
        """Nobody wants the rest."""


@runtime_checkable
class ParcelSource(ChunkSource, Protocol):
    """One question and one answer instead of a question for the manifest and one for each chunk."""

    def parcel(self, tenant: str, digest: str) -> Parcel:
        """Raises workers.code.origin.OriginError, as `manifest` does."""


class CodeUnavailable(Exception):
    """A layer could not be fetched or did not match its digest."""


class Attachment(Protocol):
    """One instance's way into its Vpc."""

    def detach(self) -> None:
        """Nothing goes through any more; at once, and idempotent. Before or after the sandbox has gone."""


class SandboxNetwork(msgspec.Struct, frozen=True):
    """Where a sandbox's network can be got at from outside. `namespace`: a descriptor of its network namespace, the driver's to
    close once the sandbox is gone. `card`: the device in it that a guest is behind (a tap); empty: the sandbox's own processes
    are in the namespace. `guest`: the guest's address behind the card."""

    namespace: int
    card: str = ""
    guest: str = ""


class NetworkUnavailable(Exception):
    """An instance cannot be attached to its Vpc; the message names the Vpc and says why."""


class TunnelPlane(Protocol):
    """A node's tunnels. One per node process; used on its event loop. A sandbox that was never attached reaches nothing."""

    backend: str
    """`kernel` | `portable` | `none`."""

    reason: str
    """Why it is not a better one; empty for `kernel`."""

    carries_internet: bool
    """Whether an instance of no Vpc may reach the Internet by it."""

    async def start(self) -> None:
        """Sweeps what a dead predecessor left. Raises OSError when this backend does not work here."""

    async def use(self, vpcs: Sequence[VpcSpec]) -> None:
        """The tunnels that this node is to have: missing ones are opened in the background, changed ones follow their spec, and
        those not named any more are closed once what is attached has gone. Returns at once."""

    async def opened(self, vpc: str, timeout_s: float) -> TunnelState:
        """Waits until the tunnel is ready, no longer than that. Raises NetworkUnavailable."""

    def states(self) -> Sequence[TunnelState]:
        """All tunnels, now."""

    def state(self, vpc: str) -> TunnelState | None:
        """One of them, without looking at each: starts ask. None: this node has no such tunnel."""

    async def wire(self, network: SandboxNetwork) -> None:
        """Does ahead of need what attaching the sandbox will take, whatever its Vpc. May be left out, then `attach` does it.
        Raises NetworkUnavailable."""

    async def attach(self, vpc: str, egress: str, network: SandboxNetwork) -> Attachment:
        """From now on the sandbox reaches what its Vpc's rules allow. `vpc` may be empty where `egress` is `internet`. A sandbox
        is attached once in its life. Raises NetworkUnavailable."""

    async def stop(self) -> None:
        """Nothing is left."""

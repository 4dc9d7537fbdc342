"""Every setting, read once from the environment (FOREGLOW_*) and the command line; folders and addresses derived from them."""

import hashlib
import os
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.folders import default_state
from orchestrator.quotas import Quotas
from orchestrator.releases import Rules
from orchestrator.zones import DEFAULT_ZONE
from workers.rpc.transport import Address, parse_address

LEVELS = ("debug", "info", "warning", "error", "critical")
CHOICES = {
    "driver": ("process", "microvm"),
    "accel": ("auto", "tcg", "kvm"),
    "tunnels": ("auto", "kernel", "portable", "none"),
}
SCHEMES = {
    "redis_url": ("redis", "rediss", "unix"),
    "database_url": ("sqlite", "postgresql"),
    "origin_url": ("file", "s3", "gs", "az", "azure", "http", "https", "memory"),
}
ZONE = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
MAX_BUILD_S = 1200.0
MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes


class PrewarmPolicy(StrEnum):
    OFF = "off"
    PATH = "path"
    PRICED = "priced"


class ScalingPolicy(StrEnum):
    OFF = "off"
    HEADROOM = "headroom"
    KPA = "kpa"


class Settings(BaseSettings):
    """Raises pydantic.ValidationError naming the field; the CLI turns that into one line."""

    model_config = SettingsConfigDict(env_prefix="FOREGLOW_", extra="ignore", frozen=True)

    state: Path = Field(default_factory=default_state)
    host: str = Field(default="127.0.0.1", min_length=1)
    functions_port: int = Field(default=8700, ge=0, le=65535)
    control_port: int = Field(default=8701, ge=0, le=65535)
    otlp_port: int = Field(default=4318, ge=0, le=65535)

    join_port: int = Field(default=0, ge=0, le=65535)  # control's join listener; 0: none
    join_host: str = ""  # empty: `host`
    certificate_days: float = Field(default=365.0, ge=0.0001, le=3650)  # how long those live that control's authority signs

    redis_url: str = ""  # empty: the embedded Valkey of this state folder
    database_url: str = ""  # empty: SQLite in the state folder
    origin_url: str = ""  # empty: a folder in the state folder

    nodes: str = ""  # addresses of nodes beside those that joined, comma-separated; empty: the node of this state folder
    gateways: str = ""  # likewise, for the planner

    zone: str = Field(default=DEFAULT_ZONE, pattern=rf"^{ZONE}$")  # the failure domain this process is in
    zone_caches: str = ""  # addresses of tier 2 in this zone beside the caches that joined, comma-separated
    zone_cache: bool = False  # `up` runs one too: on one machine only to see it work
    zone_cache_bytes: int = Field(default=50 << 30, ge=64 << 20, le=2**63 - 1)

    planner_shards: int = Field(default=1, ge=1, le=64)  # the same for every planner and control

    scaling: ScalingPolicy = ScalingPolicy.HEADROOM
    scaling_instances: int = Field(default=0, ge=0)  # wanted of one tenant at once; 0: no bound
    scaling_memory_mb: int = Field(default=0, ge=0)  # the same in memory, the cap on what it costs

    prewarm: PrewarmPolicy = PrewarmPolicy.PATH
    prewarm_instances: int = Field(default=64, ge=0)
    prewarm_memory_mb: int = Field(default=8192, ge=0)
    keep_price: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # of the policy priced: of a GB kept idle for a second
    prewarm_idle_s_per_busy_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # of the policy priced, for each tenant
    prewarm_unused_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)

    # of releases, see orchestrator.releases.Rules
    release_target: float = Field(default=Rules().target, gt=0, le=1, allow_inf_nan=False)
    release_timeout_s: float = Field(default=Rules().timeout_s, gt=0, allow_inf_nan=False)
    release_error_rate: float = Field(default=Rules().error_rate, ge=0, le=1, allow_inf_nan=False)
    release_slowdown: float = Field(default=Rules().slowdown, ge=1, allow_inf_nan=False)
    release_requests: int = Field(default=Rules().requests, ge=1, le=2**31 - 1)

    # of each tenant for which an operator set none; so are prewarm_instances and prewarm_idle_s_per_busy_s
    quota_functions: int = Field(default=Quotas().functions, ge=0, le=2**31 - 1)
    quota_concurrency: int = Field(default=Quotas().concurrency, ge=0, le=2**31 - 1)
    quota_package_bytes: int = Field(default=Quotas().package_bytes, ge=0, le=2**63 - 1)
    quota_vpcs: int = Field(default=Quotas().vpcs, ge=0, le=2**31 - 1)
    quota_invocations_per_s: float = Field(default=Quotas().invocations_per_s, ge=0, allow_inf_nan=False)

    driver: str = "process"
    accel: str = "auto"  # of the microVM driver: kvm where a guest boots with it, else tcg; either may be named
    microvm_network: bool = True  # microVMs have a network card where the node may make one
    tunnels: str = "auto"  # the backend of private networks: what works here, the kernel before the portable one
    underlay: str = (
        ""  # the IPv4 address that carries kernel tunnels of the node beside control; a member's is that it listens on
    )
    image: str = ""  # folder of the guest image; empty: in the state folder
    allow_no_isolation: bool = False
    python: str = ""  # the interpreter of the runtime; empty: found by workers.drivers.process.interpreter
    node_memory_mb: int = Field(default=0, ge=0)  # 0: 80 % of what the machine has
    node_code_bytes: int = Field(default=10 << 30, ge=0, le=2**63 - 1)  # of code on a node's disk, all tenants
    node_code_tenant_bytes: int = Field(default=5 << 30, ge=0, le=2**63 - 1)  # of one tenant
    lazy_from_bytes: int = Field(default=8 << 20, ge=0)  # of a layer; a larger one starts before it is whole; 0: none does
    standbys: int = Field(default=2, ge=0, le=500)  # per tenant and memory shape that has been used
    template_init_ms: float = Field(default=50.0, ge=0, allow_inf_nan=False)  # init that earns a function template; 0: none
    template_memory_mb: int = Field(default=0, ge=0)  # what they may hold on a node; 0: a tenth of its memory
    idle_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)

    # of one source build (build = true); its disk is memory and counts as such
    build_seconds: float = Field(default=600.0, gt=0, le=MAX_BUILD_S, allow_inf_nan=False)
    build_memory_mb: int = Field(default=2048, ge=64, le=1 << 20)
    build_disk_mb: int = Field(default=1024, ge=16, le=1 << 20)
    build_hosts: str = "files.pythonhosted.org"  # where an index may say its files lie, beside its own host; comma-separated

    max_payload_bytes: int = Field(default=6 << 20, gt=0, le=16 << 20)
    max_waiting: int = Field(default=1000, ge=0)  # invocations the gateway lets wait for capacity
    max_wait_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    max_depth: int = Field(default=16, ge=1)

    otel_endpoint: str = Field(default="", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    log_level: str = "info"

    ops_address: str = ""  # host:port of this process's operations listener; empty: a unix socket in the runtime folder
    metrics_functions: int = Field(default=0, ge=0, le=1000)  # so many functions get a label of their own; 0: none

    @field_validator("state")
    @classmethod
    def _absolute(cls, state: Path) -> Path:
        if "\0" in str(state):
            raise ValueError("a path holds no zero character")
        try:
            return state.expanduser().absolute()
        except RuntimeError as error:  # ~somebody, who is not there
            raise ValueError("no such user's home folder") from error

    @field_validator("redis_url", "database_url", "origin_url")
    @classmethod
    def _address(cls, url: str, field: ValidationInfo) -> str:
        """Wrong addresses end here, in one line that never shows them: they may hold a password."""
        schemes = SCHEMES[str(field.field_name)]
        try:
            parts = urlsplit(url)
            known = not url or (parts.scheme.partition("+")[0] in schemes and "://" in url)
            _ = parts.port
        except ValueError as error:
            raise ValueError("not an address: its host or port cannot be read") from error
        if not known:
            raise ValueError(f"not an address that begins with one of {', '.join(f'{one}://' for one in schemes)}")
        return url

    @field_validator("driver", "accel", "tunnels")
    @classmethod
    def _one_of(cls, told: str, field: ValidationInfo) -> str:
        names = CHOICES[str(field.field_name)]
        if told not in names:
            raise ValueError(f"{told!r} is not one of {', '.join(names)}")
        return told

    @field_validator("log_level")
    @classmethod
    def _level(cls, level: str) -> str:
        if level.lower() not in LEVELS:
            raise ValueError(f"not one of {', '.join(LEVELS)}")
        return level

    @property
    def quotas(self) -> Quotas:
        """Those in force where none was set."""
        return Quotas(
            self.quota_functions,
            self.quota_concurrency,
            self.quota_package_bytes,
            self.quota_invocations_per_s,
            self.prewarm_instances,
            self.quota_vpcs,
            self.prewarm_idle_s_per_busy_s,
        )

    @property
    def release_rules(self) -> Rules:
        return Rules(
            self.release_target, self.release_timeout_s, self.release_error_rate, self.release_slowdown, self.release_requests
        )

    @field_validator("ops_address")
    @classmethod
    def _host_and_port(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        if address and not (host and port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"{address!r} is not host:port; bind it to an address that only operators reach")
        return address

    @field_validator("build_hosts")
    @classmethod
    def _hosts(cls, told: str) -> str:
        hosts = [one.strip() for one in told.split(",") if one.strip()]
        for host in hosts:
            if not all(letter.isalnum() or letter in "-._" for letter in host):
                raise ValueError(f"{host!r} is not a host's name; write names alone, without scheme, port or path")
        return ",".join(hosts)

    @field_validator("nodes", "gateways", "zone_caches")
    @classmethod
    def _readable(cls, told: str) -> str:
        _addresses(told, Path("/"))
        return told

    # -- folders

    @property
    def runtime_folder(self) -> Path:
        """Short, 0700, for sockets; one per state folder."""
        base = Path(os.environ.get("XDG_RUNTIME_DIR", "")) if os.environ.get("XDG_RUNTIME_DIR") else Path("/tmp")  # noqa: S108
        if os.geteuid() == 0:
            base = Path("/run")
        digest = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:10]
        return base / f"foreglow-{os.geteuid()}-{digest}"

    def socket(self, name: str) -> Path:
        """Path of a process's RPC socket: `gateway`, `planner`, `node`, or `valkey`."""
        return self.runtime_folder / f"{name}.sock"

    def ops_socket(self, process: str) -> Path:
        """Where a process answers /healthz, /readyz and /metrics when it has no ops_address."""
        return self.runtime_folder / f"{process}-ops.sock"

    @property
    def node_addresses(self) -> list[Address]:
        """`nodes` may say `none`: only those that joined."""
        return _addresses(self.nodes, self.socket("node"))

    @property
    def gateway_addresses(self) -> list[Address]:
        return _addresses(self.gateways, self.socket("gateway"))

    @property
    def zone_cache_addresses(self) -> list[Address]:
        """Tier 2 as this process is told of it; none unless it is."""
        if not self.zone_caches and not self.zone_cache:
            return []
        return _addresses(self.zone_caches, self.socket("zone-cache"))

    @property
    def zone_cache_folder(self) -> Path:
        return self.state / "zone-cache"

    @property
    def origin_folder(self) -> Path:
        return self.state / "origin"

    @property
    def node_folder(self) -> Path:
        return self.state / "node"

    @property
    def image_folder(self) -> Path:
        """Of the microVM driver's guest image; `foreglow image build` may fill it before any node starts."""
        return Path(self.image).expanduser().absolute() if self.image else self.state / "image"

    @property
    def planner_folder(self) -> Path:
        return self.state / "planner"

    @property
    def key_file(self) -> Path:
        """Seals environments; its digest is the RPC secret."""
        return self.state / "cluster.key"

    @property
    def admin_key_file(self) -> Path:
        """The bearer token `up` made for tenant `default`, for the CLI of the same user."""
        return self.state / "key"

    @property
    def addresses_file(self) -> Path:
        """JSON {functions, control, otlp}, written when `up` is ready; the CLI reads it."""
        return self.state / "addresses.json"

    # -- addresses

    @property
    def control_address(self) -> str:
        """Where control answers, from this machine."""
        host = reachable(self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.control_port}"

    @property
    def effective_redis_url(self) -> str:
        return self.redis_url or f"unix://{self.socket('valkey')}"

    @property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.state / 'foreglow.db'}"

    @property
    def effective_origin_url(self) -> str:
        return self.origin_url or self.origin_folder.as_uri()


def _addresses(told: str, default: Path) -> list[Address]:
    """Raises ValueError."""
    if told.strip() == "none":
        return []
    return [parse_address(one) for one in told.split(",") if one.strip()] or [default]


def rpc_secret(key: bytes) -> str:
    """The token processes show each other, derived so that it is not the sealing key itself."""
    return hashlib.sha256(b"foreglow rpc " + key).hexdigest()


def reachable(host: str) -> str:
    """Where a listener on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104

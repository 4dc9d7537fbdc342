"""Every setting, read once from the environment (FOREGLOW_*) and the command line; folders and addresses derived from them."""

import hashlib
import os
from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.folders import default_state
from workers.rpc.transport import Address, parse_address

MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes


class PrewarmPolicy(StrEnum):
    OFF = "off"
    PATH = "path"


class Settings(BaseSettings):
    """Raises pydantic.ValidationError naming the field; the CLI turns that into one line."""

    model_config = SettingsConfigDict(env_prefix="FOREGLOW_", extra="ignore", frozen=True)

    state: Path = Field(default_factory=default_state)
    host: str = "127.0.0.1"
    functions_port: int = Field(default=8700, ge=0, le=65535)
    control_port: int = Field(default=8701, ge=0, le=65535)
    otlp_port: int = Field(default=4318, ge=0, le=65535)

    join_port: int = Field(default=0, ge=0, le=65535)  # control's join listener; 0: none
    join_host: str = ""  # empty: `host`

    redis_url: str = ""  # empty: the embedded Valkey of this state folder
    database_url: str = ""  # empty: SQLite in the state folder
    origin_url: str = ""  # empty: a folder in the state folder

    nodes: str = ""  # addresses of nodes beside those that joined, comma-separated; empty: the node of this state folder
    gateways: str = ""  # likewise, for the planner

    planner_shards: int = Field(default=1, ge=1, le=64)  # the same for every planner and control

    prewarm: PrewarmPolicy = PrewarmPolicy.PATH
    prewarm_instances: int = Field(default=64, ge=0)
    prewarm_memory_mb: int = Field(default=8192, ge=0)
    prewarm_unused_s: float = Field(default=60.0, gt=0)

    driver: str = "process"
    allow_no_isolation: bool = False
    python: str = ""  # the interpreter of the runtime; empty: found by workers.drivers.process.interpreter
    node_memory_mb: int = Field(default=0, ge=0)  # 0: 80 % of what the machine has
    standbys: int = Field(default=2, ge=0, le=500)  # per tenant and memory shape that has been used
    idle_s: float = Field(default=600.0, gt=0)

    max_payload_bytes: int = Field(default=6 << 20, gt=0, le=16 << 20)
    max_waiting: int = Field(default=1000, ge=0)  # invocations the gateway lets wait for capacity
    max_wait_s: float = Field(default=10.0, ge=0)
    max_depth: int = Field(default=16, ge=1)

    otel_endpoint: str = Field(default="", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    log_level: str = "info"

    @field_validator("state")
    @classmethod
    def _absolute(cls, state: Path) -> Path:
        return state.expanduser().absolute()

    @field_validator("nodes", "gateways")
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
        digest = hashlib.sha256(str(self.state).encode()).hexdigest()[:10]
        return base / f"foreglow-{os.geteuid()}-{digest}"

    def socket(self, name: str) -> Path:
        """Path of a process's RPC socket: `gateway`, `planner`, `node`, or `valkey`."""
        return self.runtime_folder / f"{name}.sock"

    @property
    def node_addresses(self) -> list[Address]:
        """`nodes` may say `none`: only those that joined."""
        return _addresses(self.nodes, self.socket("node"))

    @property
    def gateway_addresses(self) -> list[Address]:
        return _addresses(self.gateways, self.socket("gateway"))

    @property
    def origin_folder(self) -> Path:
        return self.state / "origin"

    @property
    def node_folder(self) -> Path:
        return self.state / "node"

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

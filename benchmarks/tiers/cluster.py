"""Tier 2 as nodes reach it: a zone cache that joined a running platform, asked over mutual TLS on the loopback, and its
origin."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks import processes
from benchmarks.platform import Platform
from benchmarks.tiers.buckets import bucket
from orchestrator.settings import Settings
from workers.code.chunks import chunk_key
from workers.code.layers import Source
from workers.code.manifest import Manifest
from workers.code.origin import Origin, OriginError
from workers.code.publishing import publish_layer
from workers.code.zone import ZoneClient, ZoneParcel
from workers.ports import ChunkSource
from workers.rpc.transport import HostPort, Identity

COMMAND = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PROBE = "probe"
JOIN_TIMEOUT_S = 90
READY_TIMEOUT_S = 90.0


class Cluster:
    """`zone` asks the cache as a node of another host would; `filling` as flow does, over the cache's own socket.
    `bucket`: another origin, None when there is no server of buckets. Use `with`."""

    origin: Origin
    bucket: Origin | None
    zone: ZoneClient
    filling: ZoneClient

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            join = processes.free_port()
            platform = stack.enter_context(Platform(standbys=0, environment={"FOREGLOW_JOIN_PORT": str(join)}))
            self._folder = Path(tempfile.mkdtemp(prefix="fb-"))
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self.bucket = stack.enter_context(bucket(self._folder))
            listen = HostPort("127.0.0.1", processes.free_port())
            cache, node = self._folder / "cache", self._folder / "node"
            self._join(platform, join, cache, "zone-cache", str(listen))
            self._join(platform, join, node, "node", f"127.0.0.1:{processes.free_port()}")
            url = (self._folder / "origin").as_uri()
            settings = Settings(state=cache)
            stack.callback(shutil.rmtree, settings.runtime_folder, ignore_errors=True)
            environment = {
                "FOREGLOW_ORIGIN_URL": url,
                "FOREGLOW_REDIS_URL": f"unix://{Settings(state=platform.state).socket('valkey')}",
            }
            log = self._folder / "cache.log"
            process = processes.start([*COMMAND, "zone-cache", "--state", cache], log, environment)
            stack.callback(processes.stop, process)
            self._wait(settings, process, log)
            self.origin = Origin(url)
            self.zone = ZoneClient("default", Identity(node / "member.key", node / "member.pem", node / "ca.pem"), [listen])
            self.filling = ZoneClient("default", None, [settings.socket("zone-cache")])
            stack.callback(self.zone.close)
            stack.callback(self.filling.close)
            self._wait_until_admitted()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _join(self, platform: Platform, port: int, state: Path, role: str, listen: str) -> None:
        token = _run(["node-token", "--role", role], platform.state).strip()
        _run(["join", f"127.0.0.1:{port}", "-", "--name", f"bench-{role}", "--role", role, "--listen", listen], state, token)

    def _wait(self, settings: Settings, process: "subprocess.Popen[bytes]", log: Path) -> None:
        until = time.monotonic() + READY_TIMEOUT_S
        while not settings.socket("zone-cache").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the zone cache did not get ready: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)

    def _wait_until_admitted(self) -> None:
        """The cache has heard of the node that joined, and shows it a layer."""
        key = chunk_key(b"", PROBE)
        layer = publish_layer(self.origin, PROBE, key, [Source("probe.py", False, 0, io.BytesIO)])
        until = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                self.zone.manifest(PROBE, layer.digest)
            except OriginError as error:
                if time.monotonic() > until:
                    raise RuntimeError(f"the zone cache does not serve: {error}") from error
                time.sleep(0.2)
            else:
                return


def _run(arguments: list[str], state: Path, told: str = "") -> str:
    ended = subprocess.run(
        [*COMMAND, *arguments],
        input=told,
        capture_output=True,
        text=True,
        check=False,
        timeout=JOIN_TIMEOUT_S,
        env={**os.environ, "FOREGLOW_STATE": str(state)},
    )
    if ended.returncode:
        raise RuntimeError(f"foreglow {arguments[0]}: {ended.stderr[-500:]}")
    return ended.stdout


class Farther:
    """A source behind a longer way: every question waits `added_ms` first, in the thread that asks. A new connection would add
    more round trips; connections are kept."""

    def __init__(self, source: ChunkSource, added_ms: float) -> None:
        self.name = source.name
        self._source = source
        self._added_s = added_ms / 1000

    @property
    def there(self) -> bool:
        return self._source.there

    def manifest(self, tenant: str, digest: str) -> Manifest:
        time.sleep(self._added_s)
        return self._source.manifest(tenant, digest)

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        time.sleep(self._added_s)
        return self._source.chunk(tenant, digest, name)


class FartherZone(Farther):
    """One that sends parcels: a question, an answer."""

    def __init__(self, zone: ZoneClient, added_ms: float) -> None:
        super().__init__(zone, added_ms)
        self._zone = zone

    def parcel(self, tenant: str, digest: str) -> ZoneParcel:
        time.sleep(self._added_s)
        return self._zone.parcel(tenant, digest)

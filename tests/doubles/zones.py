"""Zone caches as processes of their own, an origin with layers, and what a test does to them."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import httpx

from orchestrator.settings import Settings
from orchestrator.zone_cache.disk import Key
from workers.code.chunks import chunk_key, unpack
from workers.code.layers import Source
from workers.code.manifest import CHUNK_BYTES, Manifest
from workers.code.origin import Origin
from workers.code.publishing import publish_layer
from workers.ports import ChunkSource

WAIT_S = 30.0
CLUSTER_KEY = b"cluster key of a test"


def wait_for(true: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)


def content(size: int, seed: int) -> bytes:
    """Bytes that no compressor makes smaller."""
    return random.Random(seed).randbytes(size)


def publish(origin: Origin, tenant: str, files: Mapping[str, bytes]) -> Manifest:
    """A layer of these files."""
    sources = [Source(path, False, len(plain), lambda plain=plain: BytesIO(plain)) for path, plain in files.items()]  # type: ignore[misc]
    return publish_layer(origin, tenant, chunk_key(CLUSTER_KEY, tenant), sources)


def big_layer(origin: Origin, tenant: str, chunks: int, seed: int = 0) -> Manifest:
    return publish(origin, tenant, {f"data{number}.bin": content(CHUNK_BYTES, seed + number) for number in range(chunks)})


def read_all(source: ChunkSource, tenant: str, manifest: Manifest) -> bytes:
    """The layer's content through `source`, each chunk checked as tier 1 checks it."""
    key = chunk_key(CLUSTER_KEY, tenant)
    found = source.manifest(tenant, manifest.digest)
    assert found == manifest
    return b"".join(unpack(key, one.name, source.chunk(tenant, manifest.digest, one.name)) for one in found.chunks)


class ZoneProcess:
    """`foreglow zone-cache` in a state folder of its own. Routes come from `redis`, which may be nobody's: its socket serves
    this host without them. Use `with`."""

    def __init__(self, origin_url: str, redis_url: str = "", state: Path | None = None, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fz-"))
        self.state = state or self.folder / "state"
        self.settings = Settings(state=self.state)
        self.socket = self.settings.socket("zone-cache")
        self.log = self.folder / "log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FOREGLOW_")},
            "FOREGLOW_STATE": str(self.state),
            "FOREGLOW_ORIGIN_URL": origin_url,
            "FOREGLOW_REDIS_URL": redis_url or f"unix://{self.folder / 'nobody.sock'}",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ZoneProcess":
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        shutil.rmtree(self.settings.runtime_folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        self.settings.ops_socket("zone-cache").unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "zone-cache"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)
        process = self.process
        wait_for(lambda: self._answers() or process.poll() is not None, "the zone cache answers")
        assert process.poll() is None, self.log.read_text()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError, OSError):
            with socket.socket(socket.AF_UNIX) as probe:  # a client of HTTP leaves its own open when nobody listens yet
                probe.settimeout(WAIT_S)
                probe.connect(str(self.settings.ops_socket("zone-cache")))
            return self.ops("/readyz").status_code == 200
        return False

    def ops(self, path: str) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.settings.ops_socket("zone-cache"))), timeout=5) as client:
            return client.get(f"http://operations{path}")

    def metric(self, name: str, **labels: str) -> float:
        told = ",".join(f'{key}="{value}"' for key, value in labels.items())
        shown = f"{name}{{{told}}}" if told else name
        return next(float(line.split()[-1]) for line in self.ops("/metrics").text.splitlines() if line.startswith(f"{shown} "))

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def file(self, key: Key) -> Path:
        """Where it keeps an object."""
        tenant, kind, name = key
        return self.settings.zone_cache_folder / tenant / kind / name[:2] / name

    def objects(self) -> set[str]:
        return {path.name for path in self.settings.zone_cache_folder.glob("*/*/*/*")}

"""First answer of a function in a 200 MB package, on a node of its own: lazily, lazily with a recorded order, and whole.

    python -m benchmarks.lazy_start [--runs N] [--megabytes N]

A driver, a tier 1 and an origin on the local disk in one process, no gateway: from asking for the code and a clone at once to
the first answer. The package is 40 packages of modules with their bytecode; the handler imports four of them, which is 5 % of
the bytes. `delay` is added to each question to the origin: a local disk is not a network. As root each tier runs in a process
of its own; for `userns` that is an ordinary user's, with a device like /dev/fuse that udev would give it. One JSON line each.
"""

import argparse
import asyncio
import json
import os
import py_compile
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from workers.code.chunks import chunk_key
from workers.code.layers import Limits, tree
from workers.code.lazy.link import DEVICE
from workers.code.lazy.mounts import LazyMounts
from workers.code.lazy.starting import FROM_BYTES, LazyStarts
from workers.code.manifest import Manifest
from workers.code.origin import Origin
from workers.code.publishing import publish_layer
from workers.code.tier1 import Tier1
from workers.drivers.frames import FromGuest, ToGuest
from workers.drivers.process.driver import ProcessDriver
from workers.drivers.process.isolation import enter_user_namespace
from workers.framing import Frame
from workers.mounts import enter_private_mounts
from workers.ports import Specialisation
from workers.versions import CodePackage, Kind, VersionSpec

KEY = b"a benchmark's key"
PACKAGES, IMPORTED = 40, 4
MODULE_BYTES = 50_000  # of source, and about as many of bytecode
MEMORY_MB = 512
ORDINARY = 65534
DELAYS_MS = (0.0, 5.0)


class DelayedOrigin(Origin):
    """The local origin, as far away as `delay_s`."""

    delay_s = 0.0
    chunks = 0

    def manifest(self, tenant: str, digest: str) -> Manifest:
        time.sleep(self.delay_s)
        return super().manifest(tenant, digest)

    def chunk(self, tenant: str, digest: str, name: str) -> bytes:
        time.sleep(self.delay_s)
        self.chunks += 1
        return super().chunk(tenant, digest, name)


def package(folder: Path, megabytes: int) -> None:
    """Modules that no compression makes much smaller, with unchecked bytecode as a build leaves it."""
    draw = random.Random(7)
    each = max(1, (megabytes << 20) // (2 * MODULE_BYTES * PACKAGES))
    for number in range(PACKAGES):
        home = folder / f"part{number:02}"
        home.mkdir(parents=True)
        (home / "__init__.py").write_text("".join(f"from part{number:02} import m{module:03}\n" for module in range(each)))
        for module in range(each):
            text = draw.randbytes(MODULE_BYTES // 2).hex()
            (home / f"m{module:03}.py").write_text(f"TABLE = {text!r}\n\n\ndef value():\n    return TABLE[{module}]\n")
    imports = "".join(f"import part{number:02}\n" for number in range(0, PACKAGES, PACKAGES // IMPORTED))
    (folder / "handler.py").write_text(f"{imports}\n\ndef handler(event, context):\n    return part00.m000.value()\n")
    for source in folder.rglob("*.py"):
        py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


async def first_answer(tier: Tier1, driver: ProcessDriver, spec: VersionSpec) -> float:
    """Milliseconds from nothing to the answer. The instance is gone after."""
    began = time.perf_counter()
    code, clone = await asyncio.gather(tier.fetch(spec), driver.clone(spec.tenant, MEMORY_MB))
    answered: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def took(frame: Frame) -> None:
        if frame.kind in (FromGuest.RESULT, FromGuest.ERROR) and not answered.done():
            answered.set_result(frame)

    clone.on_frame = took
    clone.on_output = lambda stream, text: None
    clone.on_exit = lambda reason: None
    try:
        await clone.specialise(Specialisation(spec.version, spec.handler, Kind.EVENT, 1, MEMORY_MB, tuple(code.folders), {}), 120)
        meta = {"invocation": "0" * 16, "content_type": "application/json", "deadline_s": 30.0, "trace_id": "f" * 32, "depth": 0}
        clone.send(ToGuest.INVOKE, 1, json.dumps(meta).encode(), b"null")
        frame = await asyncio.wait_for(answered, 30)
        took_ms = (time.perf_counter() - began) * 1000
        if frame.kind != FromGuest.RESULT:
            raise RuntimeError(f"the function failed: {bytes(frame.meta)!r}")
    finally:
        await clone.kill("measured")
    return took_ms


async def measure(folder: Path, device: Path, runs: int) -> None:
    spec = VersionSpec(
        "acme/f:1",
        "acme",
        "handler:handler",
        Kind.EVENT,
        "python3.11",
        MEMORY_MB,
        30.0,
        1,
        CodePackage((folder / "digest").read_text()),
    )
    driver = ProcessDriver(folder / f"driver{os.getuid()}")
    report = await driver.start()
    try:
        for delay_ms in DELAYS_MS:
            for way in ("whole", "lazy", "lazy, order known", "tier1"):
                found = []
                for number in range(runs + 1):
                    took = await _once(folder, device, driver, spec, way, delay_ms)
                    if number:  # the first fills caches on all sides
                        found.append(took)
                ms, chunks, kb = (statistics.median(one) for one in zip(*found, strict=True))
                line = {"tier": report.tier, "way": way, "delay_ms": delay_ms, "first_answer_ms": round(ms, 1)}
                print(json.dumps(line | {"chunks_before_answer": chunks, "server_rss_kb": kb, "runs": runs}), flush=True)
    finally:
        await driver.stop()


async def _once(
    folder: Path, device: Path, driver: ProcessDriver, spec: VersionSpec, way: str, delay_ms: float
) -> tuple[float, int, int]:
    """One start on a node that has nothing (`tier1`: all of it). The order is what an earlier start taught, or none."""
    origin = DelayedOrigin((folder / "origin").as_uri())
    origin.delay_s = delay_ms / 1000
    orders = list((folder / "origin" / "layers").rglob("*.order"))
    if way == "lazy":
        for order in orders:
            order.unlink()
    code = folder / f"code{os.getuid()}-{random.randrange(1 << 32):x}"
    lazy = LazyStarts(LazyMounts(code, device), origin, FROM_BYTES)
    if way.startswith("lazy") and (why_not := await lazy.mounts.probe()):
        raise RuntimeError(f"not possible here: {why_not}")
    tier = Tier1(code, [origin], KEY, lazy=lazy)
    try:
        if way == "tier1":
            await tier.fetch(spec)
        before = origin.chunks
        ms = await first_answer(tier, driver, spec)
        chunks = origin.chunks - before
        layer = lazy.mounts.get("acme", spec.package.code)
        kb = _rss_kb(layer.server) if layer is not None else 0
        if way == "lazy":
            await asyncio.sleep(2.5)  # what it touched is kept
        return ms, chunks, kb
    finally:
        await tier.stop()
        shutil.rmtree(code, ignore_errors=True)


def _rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def _tiers(folder: Path, words: list[str]) -> Iterator[subprocess.CompletedProcess[bytes]]:
    command = [sys.executable, "-B", "-m", "benchmarks.lazy_start", "--in", str(folder), *words]
    yield subprocess.run(command, check=False)
    if os.geteuid() == 0:
        os.mknod(folder / "fuse", 0o020666, os.stat(DEVICE).st_rdev)
        os.chmod(folder / "fuse", 0o666)
        subprocess.run(["chown", "-R", f"{ORDINARY}:{ORDINARY}", str(folder)], check=True)
        yield subprocess.run(command, user=ORDINARY, group=ORDINARY, extra_groups=[], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lazy_start")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--in", dest="inside", type=Path, help="used by itself")
    options = parser.parse_args()
    if options.inside is not None:
        if not enter_user_namespace():
            enter_private_mounts()
        device = options.inside / "fuse"
        asyncio.run(measure(options.inside, device if device.exists() else DEVICE, options.runs))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was made is removed on the way out
    folder = Path(tempfile.mkdtemp(prefix="foreglow-lazy-", dir="/var/tmp"))
    try:
        package(folder / "package", options.megabytes)
        sources = list(tree(folder / "package", Limits()))
        manifest = publish_layer(Origin((folder / "origin").as_uri()), "acme", chunk_key(KEY, "acme"), sources)
        (folder / "digest").write_text(manifest.digest)
        shutil.rmtree(folder / "package")
        made = {"package_mb": round(manifest.size / (1 << 20)), "files": len(manifest.files), "chunks": len(manifest.chunks)}
        print(json.dumps(made), flush=True)
        words = ["--runs", str(options.runs)]
        return max(done.returncode for done in _tiers(folder, words))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

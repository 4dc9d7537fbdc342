"""Builds what a version runs from: its code with bytecode, and its dependencies, each a layer in the origin, built once."""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.catalog.model import LayerRole
from orchestrator.catalog.packages import LayerView, Packages, PackageView
from orchestrator.flow.bounded import Bounds, TimedOut, run_bounded
from orchestrator.flow.dependencies import BuildFailed, BuildInterrupted, Busy, folder_size, install
from workers.code import bytecode
from workers.code.archive import unpack_archive, unpack_old_layer
from workers.code.chunks import chunk_key
from workers.code.layers import Limits, tree
from workers.code.manifest import LayerError
from workers.code.origin import Origin, OriginError
from workers.code.publishing import publish_layer

DEPENDENCY_LIMITS = Limits(size=512 << 20, files=50_000)
CODE_LIMITS = Limits(size=512 << 20, files=40_001)  # the package's, and as much again for its bytecode
COMPILE_TIMEOUT_S = 120
COMPILE_MEMORY = 1 << 30
LOCKS = 64
BUILDS = 2
CACHE_BYTES = 4 << 30
"""What the package installer may keep over a restart; a cache above it starts empty."""

MAX_OUTPUT = 1 << 20


class Builder:
    """`python`: the runtime's interpreter. Thread-safe.

    Nothing in it waits: who finds the same source being built, or BUILDS others, gets Busy and comes again. A slow build must
    not hold the threads that carry everybody's routes.
    """

    def __init__(self, packages: Packages, origin: Origin, cluster_key: bytes, python: str, folder: Path) -> None:
        self._packages = packages
        self._origin = origin
        self._cluster_key = cluster_key
        self._python = python
        self._folder = folder
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._slots = threading.BoundedSemaphore(BUILDS)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("build-*"):
            shutil.rmtree(left, ignore_errors=True)
        if folder_size(folder / "cache") > CACHE_BYTES:
            shutil.rmtree(folder / "cache", ignore_errors=True)

    def code_layer(self, package: PackageView, runtime: str, handler: str) -> LayerView:
        """The package's files with their bytecode. Raises Busy, BuildInterrupted, and BuildFailed without a handler's module that
        compiles."""
        module = handler.partition(":")[0]
        layer = self._once(package.tenant, LayerRole.CODE, package.digest, runtime, lambda: self._compile_package(package))
        if not package.requirements and not self._holds_module(package, module):
            raise BuildFailed(f"handler: the package holds no module {module!r}")
        stem = module.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in layer.failures:
                raise BuildFailed(f"handler: {path} does not compile, {layer.failures[path]}")
        return layer

    def dependency_layer(self, package: PackageView, runtime: str) -> LayerView | None:
        """What requirements.txt asks for; None when it asks for nothing. Raises Busy, BuildFailed, BuildInterrupted."""
        if not package.requirements:
            return None
        source = package.requirements_digest
        return self._once(package.tenant, LayerRole.DEPENDENCIES, source, runtime, lambda: self._install(package))

    def _holds_module(self, package: PackageView, module: str) -> bool:
        try:
            return self._origin.listing(package.tenant, package.digest).holds_module(module)
        except OriginError as error:
            raise BuildInterrupted(f"the code store: {error}") from error

    def _once(self, tenant: str, role: LayerRole, source: str, runtime: str, build: Callable[[], LayerView]) -> LayerView:
        try:
            known = self._known(tenant, role, source, runtime)
            if known is not None:
                return known
            with _held(self._locks[hash((tenant, role, source)) % LOCKS]), _held(self._slots):
                known = self._known(tenant, role, source, runtime)
                return known or self._packages.add_layer(tenant, role, source, runtime, build(), time.time())
        except OriginError as error:
            raise BuildInterrupted(f"the code store: {error}") from error
        except OSError as error:
            raise BuildInterrupted(f"building: {error.strerror or error}") from error

    def _known(self, tenant: str, role: LayerRole, source: str, runtime: str) -> LayerView | None:
        """What was built already; what an earlier release built is put into today's form first."""
        known = self._packages.find_layer(tenant, role, source, runtime)
        if known is None or not self._origin.holds_old(tenant, known.digest):
            return known
        with _held(self._slots), self._scratch() as scratch:
            with self._origin.old_layer(tenant, known.digest) as archive:
                unpack_old_layer(archive, scratch / "tree", known.digest, CODE_LIMITS)
            made = self._store(tenant, scratch, CODE_LIMITS, known.failures)
        return self._packages.replace_layer(tenant, role, source, runtime, known.digest, made)

    def _compile_package(self, package: PackageView) -> LayerView:
        with self._scratch() as scratch:
            with self._origin.package(package.tenant, package.digest) as archive:
                unpack_archive(archive, scratch / "tree", CODE_LIMITS)
            failures = self._compile(scratch / "tree")
            return self._store(package.tenant, scratch, CODE_LIMITS, failures)

    def _install(self, package: PackageView) -> LayerView:
        with self._scratch() as scratch:
            install(package.requirements, scratch / "tree", self._python, self._folder / "cache", DEPENDENCY_LIMITS)
            self._compile(scratch / "tree")
            return self._store(package.tenant, scratch, DEPENDENCY_LIMITS, {})

    def _store(self, tenant: str, scratch: Path, limits: Limits, failures: dict[str, str]) -> LayerView:
        key = chunk_key(self._cluster_key, tenant)
        try:
            manifest = publish_layer(self._origin, tenant, key, tree(scratch / "tree", limits))
        except LayerError as error:
            raise BuildFailed(f"package: {error}") from error
        return LayerView(manifest.digest, manifest.size, failures)

    def _compile(self, folder: Path) -> dict[str, str]:
        """In a process of its own with limits: a source made to break the compiler breaks nothing else."""
        command = [self._python, "-I", "-S", "-B", str(bytecode.__file__), str(folder)]
        output = folder.parent / "compiled"
        try:
            run_bounded(command, {}, output, Bounds(COMPILE_TIMEOUT_S, CODE_LIMITS.size, COMPILE_MEMORY))
        except TimedOut:
            return {}
        return _told(output)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._folder, ignore_cleanup_errors=True) as scratch:
            (Path(scratch) / "tree").mkdir(mode=0o755)
            yield Path(scratch)


@contextmanager
def _held(lock: "threading.Lock | threading.BoundedSemaphore") -> Iterator[None]:
    if not lock.acquire(blocking=False):
        raise Busy("other builds run")
    try:
        yield
    finally:
        lock.release()


def _told(output: Path) -> dict[str, str]:
    failures: dict[str, str] = {}
    for line in output.read_bytes()[:MAX_OUTPUT].splitlines():
        with suppress(ValueError, KeyError, TypeError):  # a crash may leave half a line
            one = json.loads(line)
            failures[str(one["path"])] = f"line {one['line']}: {one['message']}"
    return failures

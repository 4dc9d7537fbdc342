"""Function templates seen from the node: a keeper, the original it holds, and the instances cloned from that."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from workers.drivers import watch
from workers.drivers.originals import import_once
from workers.drivers.process.clone import ProcessClone
from workers.drivers.process.layers import LayerSource
from workers.drivers.process.templates import CloneRequest, Template
from workers.ports import DriverError, Specialisation, TemplateRefused

HEADROOM_MB = 16  # a fork copies page tables, and those of the original are its own


class Part(StrEnum):
    """What is asked of a template: a sandbox of its own; of a keeper the original, or an instance."""

    WHOLE = "whole"
    ORIGINAL = "original"
    INSTANCE = "instance"


class CloneMaker(Protocol):
    async def __call__(self, template: Template, memory_mb: int, part: Part) -> ProcessClone: ...


class ProcessFunctionTemplate:
    """Implements workers.ports.FunctionTemplate."""

    def __init__(self, keeper: Template, original: ProcessClone, make: CloneMaker, init_ms: float, memory_mb: int) -> None:
        self.init_ms = init_ms
        self.memory_mb = memory_mb
        self.on_gone: Callable[[str], None] = lambda _reason: None
        self._keeper = keeper
        self.original = original
        self._make = make
        self._ended = False
        original.on_exit = self._lost

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    async def clone(self, memory_mb: int) -> ProcessClone:
        if self._ended:
            raise DriverError("the function template has ended")
        return await self._make(self._keeper, memory_mb, Part.INSTANCE)

    async def end(self, reason: str) -> None:
        self._ended = True
        with contextlib.suppress(DriverError):
            await self.original.kill(reason)
        self._keeper.retire()

    def _lost(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._keeper.retire()
            self.on_gone(reason)


async def start_keeper(
    template: Template, number: int, source: LayerSource, layers: Sequence[Path], keepers: set[Template]
) -> Template:
    """A keeper with `layers` at their places; one of `keepers` until it has gone. Raises DriverError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    trees: list[int] = []

    def gone(keeper: Template) -> None:
        keepers.discard(keeper)
        template.clone_gone()

    try:
        with theirs:
            for layer in layers:
                trees.append(source.detach(layer))  # noqa: PERF401  those made before a failure are closed below
            _, pidfds = await template.clone(CloneRequest(number, keeper=True), [theirs.fileno(), *trees], lambda _how: None)
    except OSError as error:
        ours.close()
        raise DriverError(f"attaching the code: {error}") from error
    except BaseException:
        ours.close()
        raise
    finally:
        for tree in trees:
            os.close(tree)
    keeper = Template((watch.pid_of(pidfds[0]), pidfds[0]), None, ours, template.uid, gone)
    keepers.add(keeper)
    return keeper


async def make_function_template(
    keeper: Template, make: CloneMaker, number: Callable[[], int], work: Specialisation, timeout_s: float
) -> ProcessFunctionTemplate:
    """Init, once. Raises what Driver.template does; ending the keeper is then the caller's."""
    original = await make(keeper, work.memory_mb, Part.ORIGINAL)
    try:
        report = await import_once(original, work, timeout_s)
        refused = await keeper.inspect(number())
        if refused is not None:
            raise TemplateRefused(refused[0], f"after the import {refused[1][:500]}")
        memory_mb = await asyncio.get_running_loop().run_in_executor(None, _tightened, original, work.memory_mb)
    except BaseException:
        await original.kill("no function template came of it")
        raise
    original.memory_mb = memory_mb
    return ProcessFunctionTemplate(keeper, original, make, report.init_ms, memory_mb)


def _tightened(original: ProcessClone, shape_mb: int) -> int:
    """MB it may hold from now on: what it does, and a little."""
    usage = original.usage()
    if usage is None:
        return shape_mb
    memory_mb = min(shape_mb, (usage.memory_bytes >> 20) + 1 + HEADROOM_MB)
    if original.cell is not None:
        with contextlib.suppress(OSError):
            original.cell.tighten(memory_mb)
            return memory_mb
        return shape_mb
    return memory_mb

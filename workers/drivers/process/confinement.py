"""What a confined command gets on this machine: the tier, control groups, and the compiler if there is one."""

import dataclasses
import os
from pathlib import Path

from workers.drivers.limits import Cgroups, detect, name_of, sweep
from workers.drivers.process import tiers
from workers.drivers.process.confining import Command, ConfinementError, Confines, confined
from workers.drivers.process.interpreter import Interpreter
from workers.drivers.process.tiers import Tier

PROBE = Confines(seconds=30, memory_mb=256, disk_mb=16)
COMPILERS = ("/usr/bin/gcc", "/usr/bin/cc", "/usr/bin/clang")
TOOLCHAIN = ("/usr/bin", "/usr/include", "/usr/lib", "/usr/lib64", "/usr/libexec", "/etc/alternatives")


def open_cgroups(folder: Path) -> Cgroups:
    """Our own control groups, what killed predecessors left of theirs gone."""
    layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    name = name_of(folder, os.getpid())
    sweep(layout, name)
    cgroups = Cgroups(layout, name)
    cgroups.open()
    return cgroups


def probe(interpreter: Interpreter, cgroups: Cgroups | None) -> tuple[Tier | None, str]:
    """Makes a sandbox in each tier until one works; (None, what failed) when none does. Takes a fifth of a second."""
    tried: list[str] = []
    command = Command([interpreter.executable, "-I", "-S", "-c", "pass"], {})
    for tier in tiers.candidates():
        if not tier.sandboxed:
            continue
        try:
            with confined(interpreter, tier, cgroups, command, PROBE, 0) as (running, cell):
                ended = running.wait(cell, lambda: None)
            if ended.code == 0:
                return tier, ""
            tried.append(f"{tier.name}: {ended.output[-200:] or f'exit {ended.code}'}")
        except ConfinementError as error:
            tried.append(f"{tier.name}: {error}")
    return None, "; ".join(tried)


def with_toolchain(interpreter: Interpreter) -> Interpreter:
    """With the machine's C compiler and headers in the sandbox, when it has any: only what every user of the machine may read."""
    folders = [folder for folder in TOOLCHAIN if os.path.isdir(folder) and not os.path.islink(folder)]
    headers = str(Path(interpreter.executable).resolve().parent.parent / "include")
    if not any(os.path.exists(compiler) for compiler in COMPILERS):
        folders = []
    elif os.path.isdir(headers) and not headers.startswith("/usr/include"):
        folders.append(headers)
    masks = [f"{folder}/{name}" for folder in folders for name in ("python3/dist-packages",) if os.path.isdir(f"{folder}/{name}")]
    binds = [(folder, folder) for folder in folders] + [pair for pair in interpreter.binds if pair[0] not in folders]
    return dataclasses.replace(interpreter, binds=tuple(binds), masks=tuple({*interpreter.masks, *masks}))

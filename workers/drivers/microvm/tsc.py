"""How fast this CPU's time stamp counter runs: told to the guest, which would hang measuring it with clocks it does not have."""

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable
from pathlib import Path

READ_COUNTER = bytes([0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3])  # rdtsc; shl rdx, 32; or rax, rdx; ret
MEASURE_S = 0.5
TRIES = 200


@functools.cache
def tsc_khz() -> int:
    """Measured against the monotonic clock, to about 1 in a million, whatever else runs: else a guest's clock would be off by
    50 ms within hours. The kernel's own number where it tells it. Blocks for MEASURE_S. Raises OSError where code cannot be
    mapped, and on other machines than x86_64."""
    told = Path("/sys/devices/system/cpu/cpu0/tsc_freq_khz")
    if told.exists():
        return int(told.read_text())
    if platform.machine() != "x86_64":
        raise OSError("microVMs run on x86_64 only")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    try:
        code.write(READ_COUNTER)
        view = ctypes.c_char.from_buffer(code)
        count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(view))
        first_ticks, first_ns = _both(count)
        time.sleep(MEASURE_S)
        ticks, elapsed_ns = _both(count)
        del view, count
    finally:
        code.close()
    return round((ticks - first_ticks) * 1e6 / (elapsed_ns - first_ns))


def _both(count: Callable[[], int]) -> tuple[int, float]:
    """(ticks, ns) of one moment: of many tries the one where the least time passed between looking at both."""
    best, found = float("inf"), (0, 0.0)
    for _ in range(TRIES):
        before, ticks, after = time.monotonic_ns(), count(), time.monotonic_ns()
        if after - before < best:
            best, found = after - before, (int(ticks), (before + after) / 2)
    return found

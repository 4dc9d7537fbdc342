"""How fast this CPU's time stamp counter runs: told to the guest, which would hang measuring it with clocks it does not have."""

import ctypes
import functools
import mmap
import platform
import time
from pathlib import Path

READ_COUNTER = bytes([0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3])  # rdtsc; shl rdx, 32; or rax, rdx; ret
MEASURE_S = 0.25


@functools.cache
def tsc_khz() -> int:
    """Measured against the monotonic clock, to about 1 in 100,000; the kernel's own number where it tells it. Blocks for that
    long. Raises OSError where code cannot be mapped, and on other machines than x86_64."""
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
        first, began = count(), time.monotonic_ns()
        time.sleep(MEASURE_S)
        ticks, elapsed_ns = count() - first, time.monotonic_ns() - began
        del view, count
    finally:
        code.close()
    return round(int(ticks) * 1_000_000 / elapsed_ns)

"""python -m benchmarks.standstill [SECONDS]: how long an event loop stands still while sandboxes compute, with the CPU group of
its own that a node has (workers.drivers.limits) and without, in turns. As root, where there are control groups.

The loop works 2 ms of every 10, as a node does that serves some hundred requests a second; BUSY processes compute in cells as
sandboxes do, OTHERS outside as other work of the machine does. One JSON line each, and their ratio.
"""

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

from workers.drivers.limits import CORES, Cgroups, detect, name_of, sweep

BUSY, OTHERS = 12, 4
ROUNDS = 5
WORK_S, PERIOD_S = 0.002, 0.01


def burn(doors: list[str]) -> None:
    for door in doors:
        Path(door).write_text("0", encoding="ascii")
    while True:
        sum(range(10_000))


async def late(seconds: float) -> list[float]:
    """By how much each turn of the loop was late, in ms: its wait and its work took longer than they are."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        spent = time.thread_time()
        while time.thread_time() - spent < WORK_S:
            pass
        await asyncio.sleep(PERIOD_S - WORK_S)
        found.append((time.monotonic() - began - PERIOD_S) * 1000)
    return found


def measured(folder: Path, own: bool, seconds: float) -> list[float]:
    layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    name = name_of(folder, os.getpid())
    sweep(layout, name)
    groups = Cgroups(layout, name)
    if refused := groups.open():
        sys.exit("no control groups here: " + "; ".join(refused))
    cells = [groups.take(128, 0) for _ in range(BUSY)]
    burners = [multiprocessing.Process(target=burn, args=(cell.doors,), daemon=True) for cell in cells]
    burners += [multiprocessing.Process(target=burn, args=([],), daemon=True) for _ in range(OTHERS)]
    try:
        for burner in burners:
            burner.start()
        if own:
            groups.own_weight()
        time.sleep(0.5)
        return asyncio.run(late(seconds))
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
        for cell in cells:
            groups.give_back(cell)
        groups.close()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    if os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    found: dict[str, list[list[float]]] = {"as_others": [], "own_group": []}
    for _ in range(ROUNDS):
        for way, rounds in found.items():
            rounds.append(measured(Path(__file__), way == "own_group", seconds))
    longest = {way: statistics.median(max(one) for one in rounds) for way, rounds in found.items()}
    for way, rounds in found.items():
        every = sorted(ms for one in rounds for ms in one)
        told = {
            "node": way,
            "longest_ms": round(longest[way], 1),
            "worst_ms": round(every[-1], 1),
            "p99_ms": round(every[int(len(every) * 0.99)], 1),
            "median_ms": round(statistics.median(every), 2),
            "turns": len(every),
            "sandboxes_busy": BUSY,
            "others_busy": OTHERS,
            "cores": CORES,
            "rounds": ROUNDS,
        }
        sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.write(json.dumps({"longest_ratio": round(longest["own_group"] / longest["as_others"], 2)}) + "\n")


if __name__ == "__main__":
    main()

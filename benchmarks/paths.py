"""Paths of N functions, each calling the next, cold and warm, on ours and on peers."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec

from benchmarks import processes
from benchmarks.client import Answer
from benchmarks.peers.servers import Peer
from benchmarks.platform import Deployed, Platform

INIT_S = 0.15
WORK_S = 0.01
SETTLE_S = 0.15  # until what was dropped has gone and everybody knows
GAP_S = 0.03  # ahead of a warm request: the records of the one before are off the machine's hands
WARM = 2  # warm requests a round
EVENT = b'{"stages":0}'


@dataclass
class Path:
    """ms end to end, first and warm; `cpu_ms`: what the node and its instances computed in each first one."""

    first: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def names(init: str, length: int) -> list[str]:
    return [f"{init}{length}s{at}" for at in range(length)]


def stages(init: str, length: int) -> list[Deployed]:
    """A path of functions of its own, each declaring the next. `init`: wait or cpu."""
    found = []
    path = names(init, length)
    for at, name in enumerate(path):
        following = path[at + 1 : at + 2]
        environment = {"INIT": init, "INIT_S": str(INIT_S), "WORK_S": str(WORK_S), "NEXT": "".join(following)}
        found.append(Deployed(name, "chain", "chain:handler", {"environment": environment, "calls": following, "timeout_s": 60}))
    return found


@dataclass
class Side:
    """Where a path runs: how to ask its entry, and how to bring all of it back to zero. `pids`: whose CPU a start costs."""

    name: str
    invoke: Callable[[str], Answer]
    cool: Callable[[Sequence[str]], None]
    pids: Callable[[], Iterable[int]]
    entry: Callable[[str, int], str]

    @classmethod
    def of(cls, platform: Platform) -> Self:
        return cls(
            "foreglow",
            lambda name: platform.invoke(name, EVENT),
            lambda _: platform.cool(),
            lambda: platform.pids()["node"],
            lambda init, length: names(init, length)[0],
        )

    @classmethod
    def of_peer(cls, peer: Peer) -> Self:
        entry = (lambda _, length: f"s{length}_0") if peer.name == "workerd" else (lambda init, length: names(init, length)[0])
        return cls(
            peer.name,
            lambda name: peer.invoke(name, EVENT),
            lambda found: peer.cool(list(found)),
            lambda: processes.descendants(peer.process.pid),
            entry,
        )

    def ask(self, init: str, length: int) -> Answer:
        """One request to the entry; raises RuntimeError when it did not pass every stage."""
        answer = self.invoke(self.entry(init, length))
        passed = msgspec.json.decode(answer.body)["stages"]
        if passed != length:
            raise RuntimeError(f"{self.name}: a path of {length} passed {passed} stages")
        return answer


def measure(side: Side, init: str, paths: dict[int, Path], rounds: int) -> None:
    """Adds one first request and WARM warm ones a round to every path, the lengths in an order drawn anew each round."""
    order = random.Random(1)
    for _ in range(rounds):
        for length in order.sample(list(paths), len(paths)):
            side.cool(names(init, length))
            time.sleep(SETTLE_S)
            before = processes.cpu_seconds(side.pids())
            answer = side.ask(init, length)
            paths[length].cpu_ms.append((processes.cpu_seconds(side.pids()) - before) * 1000)
            if answer.start in ("warm", "prewarmed"):
                raise RuntimeError(f"{side.name}: the entry of a path that was to be cold started {answer.start}")
            paths[length].first.append(answer.ms)
            for _ in range(WARM):
                time.sleep(GAP_S)
                paths[length].warm.append(side.ask(init, length).ms)

"""Turns recorded traces into functions that behave like the recorded services, and a map from recorded to deployed names.

python examples/trainticket/generate.py OUT FILE.csv.gz...      then: foreglow deploy OUT
                                                                      foreglow traces import --map OUT/map.json FILE.csv.gz...
"""

import gzip
import hashlib
import json
import random
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from graph.calls import Trace
from graph.ids import TenantId, name_of
from tracing.assembly import traces_of
from tracing.formats import trainticket

SAMPLES = 64  # recorded invocations kept per function
MAX_NAME = 63
TENANT = TenantId("recorded")

Behaviour = tuple[float, list[list[str]]]
"""Own work in ms, and the calls: groups one after the other, the calls of a group at once."""


def main() -> None:
    out, *files = map(Path, sys.argv[1:])
    names = generate(read(files), out)
    print(f"{len(names)} functions in {out}")


def read(files: Iterable[Path]) -> list[Trace]:
    spans = []
    for file in files:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        spans += trainticket.read(content.decode().splitlines())
    return traces_of(TENANT, spans)[0]


def generate(traces: Sequence[Trace], out: Path) -> dict[str, str]:
    """Writes a deployable folder. Returns recorded -> deployed names."""
    recorded = behaviours(traces)
    names = deployable_names(recorded)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("service.py"), out / "service.py")
    behaviour = {
        names[name]: [(work_ms, [[names[callee] for callee in group] for group in groups]) for work_ms, groups in of]
        for name, of in recorded.items()
    }
    (out / "behaviour.json").write_text(json.dumps(behaviour))
    (out / "map.json").write_text(json.dumps(names, indent=1))
    tables = (f'[functions.{name}]\nhandler = "service:handle"\n' for name in sorted(names.values()))
    (out / "foreglow.toml").write_text("[defaults]\nmemory_mb = 128\ntimeout_s = 60\n\n" + "\n".join(tables))
    return names


def behaviours(traces: Sequence[Trace]) -> dict[str, list[Behaviour]]:
    """Per function up to SAMPLES invocations, picked at random (the same ones each time) from those recorded."""
    found: dict[str, list[Behaviour]] = defaultdict(list)
    for trace in traces:
        below = defaultdict(list)
        for call in trace.calls:
            below[call.caller_index].append(call)
        found[name_of(trace.entry)].append(_behaviour(trace.duration_s, below[-1]))
        for index, call in enumerate(trace.calls):
            found[name_of(call.callee)].append(_behaviour(call.duration_s, below[index]))
    picked = random.Random(0)
    return {name: picked.sample(of, min(len(of), SAMPLES)) for name, of in found.items()}


def _behaviour(duration_s: float, calls) -> Behaviour:
    groups: list[list[str]] = []
    ends, waiting = float("-inf"), 0.0
    for call in sorted(calls, key=lambda one: one.offset_s):
        if groups and call.offset_s < ends:
            groups[-1].append(name_of(call.callee))
        else:
            groups.append([name_of(call.callee)])
        end = call.offset_s + call.duration_s
        waiting += max(0.0, end - max(call.offset_s, ends))
        ends = max(ends, end)
    return round(max(0.0, duration_s - waiting) * 1000, 2), groups


def deployable_names(recorded: Iterable[str]) -> dict[str, str]:
    """A name a function may have for each recorded one: short where that tells them apart. Raises ValueError otherwise."""
    short = {name: deployable(re.sub(r"/\{[^}]*\}", "", name)) for name in recorded}
    taken = Counter(short.values())
    names = {name: one if taken[one] == 1 else deployable(name) for name, one in short.items()}
    if len(set(names.values())) != len(names):
        raise ValueError("two recorded names became the same deployable one")
    return names


def deployable(name: str) -> str:
    """`ts-seat-service/api/v1/seatservice/seats/left_tickets` -> `seat-seats-left_tickets`; a cut one keeps a digest."""
    service, _, route = name.partition("/")
    service = service.removeprefix("ts-").removesuffix("-service")
    route = re.sub(r"^api/v\d+/[^/]+", "", route)
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", f"{service}-{route}").strip("-_") or "unnamed"
    if len(plain) <= MAX_NAME:
        return plain
    return f"{plain[: MAX_NAME - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


if __name__ == "__main__":
    main()

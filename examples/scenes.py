"""What the demo shows of runs: stages side by side, the bound they are held against, and counts per function."""

import gzip
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from stage import stages

from orchestrator.cli.show import ms, start_text, table

AHEAD = {"prewarmed", "almost-warm", "warm"}
STEPS = ("clone", "code", "net", "init")
TITLES = {"a": "(a) cold, off", "b": "(b) cold, learned", "c": "(c) warm", "d": "(d) first, declared"}


class Comparison:
    """Runs of one workflow under letters; per letter the median one is shown."""

    def __init__(self, entry: str, cores: int) -> None:
        self._entry = entry
        self._cores = cores
        self._runs: dict[str, dict] = {}
        self._all: dict[str, list[dict]] = {}
        self._costs: dict[str, float] = {}

    def add(self, letter: str, runs: Sequence[dict]) -> dict:
        """Keeps the runs; returns the median one."""
        ordered = sorted(runs, key=lambda run: run["duration_ms"])
        self._all[letter] = list(runs)
        self._runs[letter] = ordered[len(ordered) // 2]
        return self._runs[letter]

    def run(self, letter: str) -> dict:
        return self._runs[letter]

    def costs(self, runs: Sequence[dict]) -> None:
        """Takes from cold runs what starting each function costs, ms."""
        seen = defaultdict(list)
        for run in runs:
            for one in stages(run):
                seen[one["function"]].append(sum(one["timings_ms"][step] for step in STEPS))
        self._costs = {name: min(values) for name, values in seen.items()}

    def all_kinds(self, letter: str) -> set[str]:
        return {one["start"] for run in self._all[letter] for one in stages(run)}

    def prewarmed(self, letter: str) -> bool:
        """True when in no run a stage below the entry had to start on demand."""
        return all(one["start"] in AHEAD for run in self._all[letter] for one in stages(run)[1:])

    def table(self) -> Table:
        """Stages down, letters across: start kind and how long the stage waited for its instance."""
        letters = sorted(self._runs)
        cells = {
            letter: {one["function"]: f"{start_text(one['start'])} {ms(one['wait_ms'])}" for one in stages(run)}
            for letter, run in self._runs.items()
        }
        order = [one["function"] for one in stages(self._runs[letters[0]])]
        rows = [(f"[bold]{name}[/]", *(cells[letter].get(name, "") for letter in letters)) for name in order]
        rows.append(("", *("" for _ in letters)))
        rows.append(("[bold]end to end, ms[/]", *(f"[bold]{ms(self._runs[letter]['duration_ms'])}[/]" for letter in letters)))
        title = "Per stage: how it started and the ms it waited for its instance"
        return table(title, ("stage", *(f"{TITLES[letter]}>" for letter in letters)), rows)

    def verdict(self) -> str:
        """How much longer than warm each took, and the bound: one cold start, or all preparing spread over the cores."""
        warm = self._runs["c"]["duration_ms"]
        one, every = max(self._costs.values()), sum(self._costs.values()) / self._cores
        extra = ", ".join(f"({letter}) {ms(self._runs[letter]['duration_ms'] - warm)}" for letter in ("a", "b", "d"))
        bound = max(one, every)
        return (
            f"Longer than warm, ms: {extra}. Bound for (b) and (d): max(one cold start {ms(one)}, "
            f"all preparing {ms(every * self._cores)} on {self._cores} cores = {ms(every)}) = {ms(bound)}."
        )


def kinds(run: Mapping, below_entry: bool = False) -> Counter:
    return Counter(one["start"] for one in stages(run)[1 if below_entry else 0 :])


def by_function(runs: Mapping[str, dict]) -> Table:
    """Functions down, runs across: how their invocations started, and the ms all of them together waited."""
    cells: dict[str, dict[str, str]] = {}
    calls: dict[str, int] = {}
    for title, run in runs.items():
        starts, waited = defaultdict(Counter), Counter()
        for one in stages(run):
            starts[one["function"]][one["start"]] += 1
            waited[one["function"]] += one["wait_ms"]
        cells[title] = {
            name: ", ".join(f"{count} {start_text(kind)}" for kind, count in found.items()) + f"  {ms(waited[name])}"
            for name, found in starts.items()
        }
        calls |= {name: found.total() for name, found in starts.items() if name not in calls}
    rows = [(f"[bold]{name}[/]", calls[name], *(cells[title].get(name, "") for title in runs)) for name in calls]
    rows.append(
        ("[bold]end to end, ms[/]", sum(calls.values()), *(f"[bold]{ms(run['duration_ms'])}[/]" for run in runs.values()))
    )
    return table("How each was started, and the ms it waited", ("function", "calls>", *(f"{title}>" for title in runs)), rows)


def isolation(status: Mapping) -> str:
    """The tier in force, in words."""
    node = status["node"]
    report = node["isolation"] if isinstance(node, dict) else {}
    means = {
        "root+cgroups": "namespaces, seccomp, limits by control groups, a user id per sandbox",
        "root": "namespaces, seccomp, a user id per sandbox; limits by rlimits and a watchdog",
        "userns": "an unprivileged user namespace, seccomp; limits by rlimits and a watchdog",
        "none": "NO isolation: functions run as this user",
    }
    tier = str(report.get("tier", "unknown"))
    missing = "".join(f"\n  not in force: {line}" for line in report.get("missing", ()))
    if report.get("driver") == "microvm":
        how = "emulated: tcg" if tier == "tcg" else f"hardware virtualisation: {tier}"
        return f"A virtual machine per instance ({how}).{missing}"
    return f"Isolation tier: {tier} ({means.get(tier, 'not reported')}). A process sandbox, no virtual machine.{missing}"


def unpacked(file: Path) -> str:
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode()


def last_words(state: Path, lines: int = 5) -> str:
    """The ends of the logs, for a demo that failed on a machine we cannot see."""
    said = []
    for path in sorted((state / "logs").glob("*.log")):
        said.append(f"{path.name}:")
        said += [f"  {line[:300]}" for line in path.read_text(errors="replace").splitlines()[-lines:]]
    return "\n".join(said).replace("[", "\\[")

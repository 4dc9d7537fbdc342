"""`foreglow whatif`: what prewarming would do for recorded traces, before anything is migrated. Needs no platform."""

import json as jsonlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json

if TYPE_CHECKING:
    from graph.ids import FunctionId
    from orchestrator.whatif.compare import Basis, Result
    from orchestrator.whatif.engine import Settings
    from orchestrator.whatif.load import Load
    from orchestrator.whatif.recorded import Recorded
    from orchestrator.whatif.starts import Spread, Starts

TEACHING = 100
PICTURES = (".png", ".svg", ".pdf")
MAX_RUNS = 200_000
MAX_FILE = 16 << 20  # of --functions
LONGEST_S = 86_400.0  # of a start

Files = Annotated[
    list[Path], typer.Argument(metavar="TRACES...", help="OTLP, Jaeger, Zipkin or X-Ray JSON, or CSV; plain or in gzip.")
]
LoadOption = Annotated[
    str,
    typer.Option("--load", help="A CSV of runs per minute (docs/whatif.md; Azure's too), or poisson:RATE. Default: as recorded."),
]


def whatif(
    files: Files,
    load: LoadOption = "",
    form: Annotated[str, typer.Option("--format", help="Of the traces; default: found out.")] = "",
    policy: Annotated[list[str] | None, typer.Option("--policy", help="Only this one; may be repeated.")] = None,
    runs: Annotated[int, typer.Option("--runs", help="Replay at most so many.")] = 2000,
    driver: Annotated[str, typer.Option("--driver", help="Whose start times: process, microvm.")] = "process",
    clone_ms: Annotated[str, typer.Option("--clone-ms", help="Start without init: MEDIAN or MEDIAN:P99.")] = "",
    standby_ms: Annotated[str, typer.Option("--standby-ms", help="The same out of a standby.")] = "",
    init_ms: Annotated[str, typer.Option("--init-ms", help="A function's own init: MEDIAN or MEDIAN:P99.")] = "150",
    memory_mb: Annotated[int, typer.Option("--memory-mb", help="Of an instance.")] = 256,
    functions: Annotated[
        Path | None, typer.Option("--functions", help='JSON: {"name": {"init_ms": 80, "memory_mb": 512}}, where they differ.')
    ] = None,
    keep_alive: Annotated[float, typer.Option("--keep-alive", help="Seconds an instance waits after a call.")] = 600.0,
    late_price: Annotated[float, typer.Option("--late-price", help="Of a second that a run takes longer.")] = 19.0,
    idle_price: Annotated[float, typer.Option("--idle-price", help="Of a GB idle for a second.")] = 1.0,
    keep_price: Annotated[
        float | None, typer.Option("--keep-price", help="Of a GB kept idle for a second after its use; default: --idle-price.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 1,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also a picture: FILE.png, .svg or .pdf.")] = None,
    json: Json = False,
) -> None:
    """Replay recorded traces under each prewarming policy: what would wait, and what would stand idle."""
    from graph.plans import Prices
    from orchestrator.cli import show
    from orchestrator.whatif import recorded, report
    from orchestrator.whatif.compare import POLICIES, Basis, compare
    from orchestrator.whatif.engine import Settings
    from orchestrator.whatif.load import LoadError
    from tracing.formats import FORMS, FormatError

    _positive(("--runs", runs), ("--memory-mb", memory_mb), ("--late-price", late_price), ("--idle-price", idle_price))
    if keep_price is not None:
        _positive(("--keep-price", keep_price))
    if runs > MAX_RUNS:
        raise Failure(f"--runs: at most {MAX_RUNS:,}")
    if not 0.0 <= keep_alive < math.inf:
        raise Failure(f"--keep-alive: {keep_alive:g} is not a number of seconds")
    if plot is not None and plot.suffix not in PICTURES:
        raise Failure(f"--plot: {plot} must end with {', '.join(PICTURES)}")
    if form and form not in FORMS:
        raise Failure(f"--format: {form!r} is not one of {', '.join(FORMS)}")
    chosen = tuple(policy or POLICIES)
    for name in chosen:
        if name not in POLICIES:
            raise Failure(f"--policy: {name!r} is not one of {', '.join(POLICIES)}")
    progress = show.progress_console()
    try:
        with progress.status("reading traces"):
            read = recorded.read(files, form)
        starts, memory = _starts(driver, clone_ms, standby_ms, init_ms, functions, report.functions(read))
        found = _load(load, read, runs, seed)
    except (FormatError, recorded.RecordedError, LoadError) as error:
        raise Failure(str(error)) from error
    settings = Settings(starts=starts, memory_mb=memory, default_memory_mb=memory_mb, seed=seed)
    used = {function for _, program in found.arrivals for function in program.functions}
    capacity_gb = sum(memory.get(function, memory_mb) for function in used) / 1024 / 2
    prices = Prices(idle_gb_s=idle_price, late_s=late_price)
    basis = Basis(keep_s=keep_alive, capacity_gb=capacity_gb, prices=prices, keep_price=keep_price)
    skip = min(TEACHING, len(found.arrivals) // 2)
    results: list[Result] = []
    with progress.status("replaying") as status:
        for result in compare(found.arrivals, settings, basis, skip, chosen):
            results.append(result)
            status.update(f"replaying: {len(results)} of {len(chosen)} policies done")
    told = report.document(read, found, settings, basis, skip, results)
    if plot is not None:
        _picture(plot, told, found, settings, basis, skip, results)
    if json:
        show.as_json(told)
        return
    console = show.console()
    for line in report.assumptions(told):
        console.print(show.plain(line))
    console.print(show.table("per 1,000 runs", report.HEADINGS, [report.row(result) for result in results]))


def _positive(*given: tuple[str, float]) -> None:
    for name, value in given:
        if not 0.0 < value < math.inf:
            raise Failure(f"{name}: {value:g} must be over 0")


def _load(told: str, read: "Recorded", runs: int, seed: int) -> "Load":
    from orchestrator.whatif import load
    from orchestrator.whatif.programs import program_of

    programs = [program_of(trace) for trace in read.traces]
    if not told:
        return load.as_recorded(
            read.started_s, [(trace.trace_id, program) for trace, program in zip(read.traces, programs, strict=True)], runs
        )
    if told.startswith("poisson:"):
        return load.poisson(told, programs, runs, seed)
    try:
        return load.per_minute(Path(told), programs, runs, seed)
    except OSError as error:
        raise Failure(f"--load: {told!r}: {error.strerror}; give a CSV of runs per minute, or poisson:RATE") from error


def _starts(
    driver: str, clone_ms: str, standby_ms: str, init_ms: str, functions: Path | None, known: set[str]
) -> "tuple[Starts, dict[FunctionId, int]]":
    import msgspec

    from graph.ids import function_id
    from orchestrator.whatif.recorded import TENANT
    from orchestrator.whatif.starts import DRIVERS, Starts

    if driver not in DRIVERS:
        raise Failure(f"--driver: {driver!r} is not one of {', '.join(DRIVERS)}")
    base = DRIVERS[driver]
    if clone_ms:
        base = msgspec.structs.replace(base, clone=_spread("--clone-ms", clone_ms), source="given")
    if standby_ms:
        base = msgspec.structs.replace(base, standby=_spread("--standby-ms", standby_ms), source="given")
    inits, memory = {}, {}
    for name, one in _functions(functions).items():
        function = function_id(TENANT, name)
        if function not in known:
            raise Failure(f"--functions: {functions}: {name[:80]!r} is in no trace")
        if "init_ms" in one:
            inits[function] = _spread(f"--functions: {functions}: {name[:80]}.init_ms", str(one["init_ms"]))
        if "memory_mb" in one:
            memory[function] = _whole(f"--functions: {functions}: {name[:80]}.memory_mb", one["memory_mb"])
    return Starts(base, _spread("--init-ms", init_ms), inits), memory


def _functions(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    with path.open("rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise Failure(f"--functions: {path} is longer than {MAX_FILE >> 20} MB")
    try:
        told = jsonlib.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failure(f"--functions: {path} is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise Failure(f"--functions: {path} must be one JSON object")
    for name, one in told.items():
        if not isinstance(one, dict) or not one.keys() <= {"init_ms", "memory_mb"}:
            raise Failure(f"--functions: {path}: {name[:80]} must be an object of init_ms and memory_mb")
    return told


def _spread(field: str, told: str) -> "Spread":
    from orchestrator.whatif.starts import Spread

    try:
        median, *rest = (float(part) / 1000 for part in told.split(":"))
        p99 = rest[0] if rest else median
        valid = len(rest) <= 1 and 0.0 <= median <= p99 <= LONGEST_S
    except ValueError:
        valid = False
    if not valid:
        raise Failure(f"{field}: {told[:40]!r} is not MEDIAN or MEDIAN:P99 in milliseconds, a day at most")
    return Spread(median, p99)


def _whole(field: str, told: Any) -> int:
    if not isinstance(told, int) or isinstance(told, bool) or not 0 < told <= 1 << 20:
        raise Failure(f"{field}: {str(told)[:40]} is not a number of MB")
    return told


def _picture(
    path: Path,
    told: dict[str, Any],
    found: "Load",
    settings: "Settings",
    basis: "Basis",
    skip: int,
    results: "list[Result]",
) -> None:
    """One point for each policy; the keep-alive as a line through other times, for comparison."""
    import msgspec

    from orchestrator.whatif.compare import compare
    from orchestrator.whatif.plot import frontier

    def point(result: "Result") -> tuple[float, float]:
        return result.figures.wasted_s.value / 1000, result.figures.added_s.value

    curves = {result.policy: [point(result)] for result in results}
    if "keep-alive" in curves:
        for share in (0.02, 0.1, 0.3):
            other = msgspec.structs.replace(basis, keep_s=basis.keep_s * share)
            curves["keep-alive"] += map(point, compare(found.arrivals, settings, other, skip, ("keep-alive",)))
    load = told["load"]
    frontier(path, f"{load['runs']} runs: {load['told'][:80]}", curves)

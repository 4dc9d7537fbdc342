"""The story of Foreglow in a terminal: cold, learned, warm, declared; then a system it has only read about.

    make demo                       ends by itself and leaves nothing
    make demo DEMO_ARGS=--keep      leaves the platform running, with its address
    make demo DRIVER=microvm        in microVMs, emulated unless ACCEL says otherwise; needs QEMU

Everything happens on a platform of its own: free ports, a temporary folder, this user's rights.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import scenes
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from stage import Platform, run_of
from trainticket import generate

from orchestrator.cli.client import Client, problem_line
from orchestrator.cli.deploying import deploy_entries
from orchestrator.cli.failure import Failure
from orchestrator.cli.functions import reason_of
from orchestrator.cli.manifest import read_manifest
from orchestrator.cli.seeing import decisions_table, graph_table, plan_table
from orchestrator.cli.show import percent, run_tree

HERE = Path(__file__).parent
REPEATS = 3
PLAN_ROWS = 8
ON_DEMAND = {"cold", "standby"}
MICROVM_STANDBYS = "4"
LEARN_TIMEOUT_S = 10
TICKET_ENTRY = "preserve-preserve"
out = Console(highlight=False)
if not out.is_terminal:
    out = Console(highlight=False, width=130)


class Story:
    """One telling, on one platform. `broken` collects what did not happen as promised."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.broken: list[str] = []
        self.functions: list[str] = []
        self.entries: list[str] = []
        self.told = 0  # runs the planner should have learned from

    # -- steps

    def deploy(self, folder: Path, entry: str, manifest: str = "foreglow.toml") -> None:
        entries = read_manifest(folder, manifest)
        columns = (SpinnerColumn(), BarColumn(bar_width=30), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=out, transient=True) as progress:
            task = progress.add_task("", total=len(entries))
            began = time.monotonic()
            versions = deploy_entries(
                self.client, entries, lambda what, done: progress.update(task, description=what, completed=done)
            )
        failed = {name: reason_of(one) for name, one in versions.items() if one["state"] != "ready"}
        if failed:
            raise Failure("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
        self.functions = list(versions)
        self.entries.append(entry)
        out.print(f"Deployed {len(versions)} functions from {folder.name}/{manifest} in {time.monotonic() - began:.1f} s.")

    def cool(self) -> None:
        """Gives up every idle instance, and waits until the planner has heard of it."""
        self.client.post("/v1/cool", {})
        deadline = time.monotonic() + LEARN_TIMEOUT_S
        while any(self.client.get(f"/v1/plans/{name}")["ready"] for name in self.entries):
            if time.monotonic() > deadline:
                raise TimeoutError("instances are still ready after they were given up")
            time.sleep(0.05)

    def prewarm(self, policy: str) -> None:
        self.client.put("/v1/prewarm", {"policy": policy})

    def run(self, name: str, payload: object) -> dict:
        answer = self.client.invoke(name, json.dumps(payload).encode(), "application/json")
        if answer.status != 200:
            line, stack = problem_line(answer.status, answer.body)
            raise Failure(f"{name}: {line}", stack)
        self.told += 1
        return run_of(self.client, answer.trace_id)

    def learned(self) -> None:
        """Waits until the planner has learned from every run so far; it leaves late records a moment to arrive."""
        deadline = time.monotonic() + LEARN_TIMEOUT_S
        while (planner := self.client.get("/v1/status")["planner"])["learned"]["observed"] < self.told:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the planner learned from {planner['learned']['observed']} of {self.told} runs")
            time.sleep(0.1)

    def expect(self, holds: bool, promise: str) -> None:
        out.print(f"  [green]yes[/]  {promise}" if holds else f"  [red]NO[/]   {promise}")
        if not holds:
            self.broken.append(promise)

    def repeat(self, payloads: list[object], cold: bool, what: str) -> list[dict]:
        runs = []
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=out, transient=True) as progress:
            task = progress.add_task(what)
            for index, payload in enumerate(payloads):
                progress.update(task, description=f"{what} ({index + 1} of {len(payloads)})")
                if cold:
                    self.cool()
                runs.append(self.run("checkout", payload))
        return runs

    # -- the two acts

    def checkout(self) -> None:
        order, gift = (json.loads((HERE / "checkout" / name).read_text()) for name in ("order.json", "gift.json"))
        out.rule("[bold]A shop's checkout: eight functions, real packages to import[/]", align="left")
        out.print(
            "checkout -> inventory | pricing | fraud (at once) -> payment -> invoice or giftcard (a branch) -> notify\n"
            "[dim]First use downloads and builds their packages; none of them says whom it calls.[/]"
        )
        self.deploy(HERE / "checkout", "checkout")
        told = scenes.Comparison("checkout", os.cpu_count() or 1)

        out.print("\n[bold](a) All cold, prewarm off.[/] Each stage waits for its own start, one after the other:")
        self.prewarm("off")
        cold = self.repeat([order, gift, *[order] * REPEATS], True, "cold, prewarm off")
        told.costs(cold)
        self.scene(told, "a", [cold[0], *cold[2:]])
        self.expect(told.all_kinds("a") <= ON_DEMAND, "every stage started on demand")

        out.print("\n[bold](b) All cold again, prewarm from what those runs taught.[/] The path starts with its entry:")
        self.learned()
        self.prewarm("path")
        self.scene(told, "b", self.repeat([order] * REPEATS, True, "cold, prewarm path"))
        self.expect(told.prewarmed("b"), "every stage below the entry was prepared ahead: prewarmed, or almost-warm")

        out.print("\n[bold](c) Fully warm.[/]")
        self.repeat([order], False, "warming up")
        self.scene(told, "c", self.repeat([order] * REPEATS, False, "warm"))
        self.expect(told.all_kinds("c") <= {"warm", "prewarmed"}, "every stage was warm")

        out.print("\n[bold](d) A fresh deploy that declares its calls.[/] Its very first request:")
        self.learned()
        for name in self.functions:
            self.client.delete(f"/v1/functions/{name}")
        self.deploy(HERE / "checkout", "checkout", "foreglow.declared.toml")
        self.cool()
        self.scene(told, "d", [self.run("checkout", order)])
        self.expect(told.prewarmed("d"), "the first request it ever had was prewarmed all the way down")

        out.print()
        out.print(told.table())
        out.print(told.verdict())
        self.why("checkout", told.run("d"))

    def scene(self, told: scenes.Comparison, letter: str, runs: list[dict]) -> None:
        out.print(run_tree(told.add(letter, runs)))

    def why(self, entry: str, run: dict) -> None:
        out.print(f"\n[bold]Why.[/] The plan for {entry} as it would be made now, all cold:")
        self.cool()
        plan = self.client.get(f"/v1/plans/{entry}")
        out.print(plan_table(plan["decisions"]))
        out.print("Each decision of the last run, and how it ended:")
        out.print(decisions_table(self.client.get("/v1/decisions", run=run["trace_id"], limit=100)["decisions"], one_run=True))

    def trainticket(self, folder: Path) -> None:
        out.rule("[bold]Train-Ticket: a system known only from its traces[/]", align="left")
        files = sorted((HERE / "trainticket").glob("*.csv.gz"))
        traces = generate.read(files)
        names = generate.generate(traces, folder)
        imported = 0
        for file in files:
            document = {"format": "csv", "text": scenes.unpacked(file), "map": names, "decay": False}
            imported += self.client.post("/v1/traces/import", document)["traces"]
        edges = [edge for edge in self.client.get("/v1/graph", format="json")["edges"] if edge["caller"] in names.values()]
        out.print(f"Imported {imported} recorded traces: {len(names)} functions, {len(edges)} call edges. The busiest:")
        out.print(graph_table(sorted(edges, key=lambda edge: -edge["traces"])[:12]))
        self.deploy(folder, TICKET_ENTRY)
        plan = self.client.get(f"/v1/plans/{TICKET_ENTRY}")
        planned = plan["decisions"]
        out.print(f"Nothing of it has run here. The plan for {TICKET_ENTRY} (booking a ticket), from the traces alone:")
        out.print(plan_table(planned[:5] + planned[-3:] if len(planned) > PLAN_ROWS else planned))
        out.print(f"{len(planned)} instances in all{', the first and last shown' if len(planned) > PLAN_ROWS else ''}.")
        for one in plan["skipped"][:3]:
            out.print(f"  left out: {escape(one['function'])}, reach {percent(one['reach'])}: {escape(one['why'])}")

        self.prewarm("path")
        event = {"seed": 10}  # one of the longer bookings
        first = self.run(TICKET_ENTRY, event)
        warm = self.run(TICKET_ENTRY, event)
        self.prewarm("off")
        self.cool()
        cold = self.run(TICKET_ENTRY, event)
        out.print("\nIts first run ever, prewarmed, against the same run warm and all cold:")
        out.print(scenes.by_function({"first run": first, "warm": warm, "cold, prewarm off": cold}))
        kinds = scenes.kinds(first, below_entry=True)
        ahead = sum(count for kind, count in kinds.items() if kind in ("prewarmed", "almost-warm", "warm"))
        self.expect(
            ahead >= 0.8 * sum(kinds.values()) and kinds["prewarmed"] > 0,
            f"{ahead} of {sum(kinds.values())} stages found an instance prepared from somebody else's traces",
        )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", action="store_true", help="leave the platform running")
    options.add_argument("--driver", default="process", choices=("process", "microvm"), help="what functions run in")
    chosen = options.parse_args()
    keep, driver = chosen.keep, ["--driver", chosen.driver]
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to stop: tidy up as after Ctrl-C
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foreglow"
    out.rule("[bold]Foreglow[/]", align="left")
    # no standbys of processes: a start without prewarm is a cold one; prepared and unused ones are given up soon enough to see it
    standbys = MICROVM_STANDBYS if chosen.driver == "microvm" else "0"
    os.environ.setdefault("FOREGLOW_IMAGE", str(caches / "image"))
    os.environ["FOREGLOW_PREWARM_UNUSED_S"] = os.environ.get("FOREGLOW_PREWARM_UNUSED_S", "20")
    platform = Platform("--prewarm", "off", "--standbys", standbys, *driver, cache=caches / "wheels", outlive=keep)
    generated = Path(tempfile.mkdtemp(prefix="foreglow-trainticket-"))
    kept = False
    try:
        platform.wait_ready()
        with platform.client() as client:
            story = Story(client)
            out.print(f"{platform.said[-1]}\n[dim]{scenes.isolation(client.get('/v1/status'))}[/]")
            story.checkout()
            story.trainticket(generated)
        broken, kept = story.broken, keep
    except (Failure, RuntimeError, TimeoutError) as error:
        broken = [str(error)]
        out.print(f"[red]{escape(str(error))}[/]\n{escape(getattr(error, 'more', ''))}")
        out.print(scenes.last_words(platform.state))
    except KeyboardInterrupt:
        broken = ["interrupted"]
    finally:
        shutil.rmtree(generated, ignore_errors=True)
        left = [] if kept else platform.stop()
        if not kept:
            shutil.rmtree(platform.state, ignore_errors=True)
    out.rule(align="left")
    if kept:
        out.print(
            f"Left running. Use it with FOREGLOW_HOME={platform.state}, for example\n"
            f"  FOREGLOW_HOME={platform.state} {sys.prefix}/bin/foreglow runs\nstop it with: kill {platform.process.pid}"
        )
    else:
        out.print("Stopped; nothing is left running." if not left else "[red]Left behind: [/]" + escape("; ".join(left)))
    out.print(f"{time.monotonic() - began:.0f} s in all.")
    if broken:
        out.print(f"[red]Not as promised: {escape('; '.join(broken))}[/]")
    return 1 if broken or left else 0


if __name__ == "__main__":
    sys.exit(main())

"""Topic page: how long the live page takes to show many functions in a browser, and to filter them: calls, and scaling."""

import random

from playwright.sync_api import Browser, Page

from benchmarks.chromium import launched
from benchmarks.estimates import quantile
from benchmarks.platform import Deployed, Platform
from benchmarks.report import Report

FUNCTIONS, CALLS, LAYERS = 1_000, 5_000, 9
RUNS_EACH = 3
SEED = 20260301
TIMEOUT_MS = 60_000
HEADER = "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
DRAWN = "(count) => Number(document.querySelector('.callgraph')?.dataset.nodes) === count"
FILTER = """(wanted) => new Promise((done) => {
    const picture = document.querySelector(".callgraph"), field = document.querySelector("main input[type=search]");
    const began = performance.now(), before = picture.dataset.drawn;
    const watching = new MutationObserver(() => {
        if (picture.dataset.drawn === before) return;
        watching.disconnect();
        done([performance.now() - began, Number(picture.dataset.nodes)]);
    });
    watching.observe(picture, { attributes: true });
    field.value = wanted;
    field.dispatchEvent(new Event("input", { bubbles: true }));
})"""
CHARTS = 24  # as many are drawn at first
CHARTED = """([names, charts]) => {
    const drawn = [...document.querySelectorAll(".course")].filter((one) => Number(one.dataset.points));
    const said = `of ${names.toLocaleString("en")} functions`;
    return drawn.length === charts && [...document.querySelectorAll(".rest")].some((one) => one.innerText.includes(said));
}"""
NARROW = """(wanted) => new Promise((done) => {
    const field = document.querySelector("main input[type=search]"), began = performance.now();
    const drawn = () => [...document.querySelectorAll(".course")].filter((one) => Number(one.dataset.points));
    const names = () => drawn().map((one) => one.dataset.key);
    const before = names().join();
    const look = () => {
        const now = names();
        const there = now.length && now.join() !== before && now.every((name) => name.includes(wanted));
        if (there) done([performance.now() - began, now.length]);
        else requestAnimationFrame(look);
    };
    field.value = wanted;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(look);
})"""


def run(report: Report, full: bool) -> None:
    rounds = 15 if full else 5
    calls_of(report, rounds)
    scaling_of(report, rounds)


def calls_of(report: Report, rounds: int) -> None:
    """The call graph that imported traces taught."""
    with Platform(standbys=0) as platform, launched() as browser:
        report.driver, report.tier = platform.driver, platform.tier
        report.progress(f"teaching {FUNCTIONS} functions and {CALLS} calls")
        calls = graph()
        for text in traces(calls):
            platform.post("/v1/traces/import", {"text": text, "decay": False})
        learned = platform.get("/v1/graph")
        size = {"functions": len(learned["functions"]), "calls": len(learned["edges"])}
        report.progress(f"learned {size}")
        firsts: list[float] = []
        narrowed: list[float] = []
        cleared: list[float] = []
        shown = 0
        first_picture(platform, browser, "", DRAWN, FUNCTIONS)  # the processes' own first time is not the page's
        for number in range(rounds):
            seconds, page = first_picture(platform, browser, "", DRAWN, FUNCTIONS)
            firsts.append(seconds)
            report.progress(f"first picture {number + 1} of {rounds}: {seconds:.2f} s")
            for wanted in (f"svc-{number * 37 % FUNCTIONS:04d}", f"svc-{number:02d}"):
                took, shown = page.evaluate(FILTER, wanted)
                narrowed.append(took)
                took, _ = page.evaluate(FILTER, "")
                cleared.append(took)
            page.context.close()
    report.emit("page.first_picture_s", quantile(firsts, 0.5), **size)
    report.emit("page.filter_ms", quantile(narrowed, 0.5), to="a name or a hundred", shown=shown)
    report.emit("page.filter_ms", quantile(cleared, 0.5), to="all again")


def scaling_of(report: Report, rounds: int) -> None:
    """The view Scaling, of functions that each have an instance."""
    memory = {"FOREGLOW_NODE_MEMORY_MB": str(2 * 128 * FUNCTIONS)}  # promised, not used: an idle one takes a few MB
    with Platform(standbys=8, environment=memory) as platform, launched() as browser:
        report.driver, report.tier = platform.driver, platform.tier
        names = [f"svc-{number:04d}" for number in range(FUNCTIONS)]
        for first in range(0, FUNCTIONS, 100):
            report.progress(f"deploying and invoking {first + 1} to {first + 100} of {FUNCTIONS}")
            chosen = names[first : first + 100]
            platform.deploy([Deployed(name, "echo", "echo:handler") for name in chosen])
            for name in chosen:
                platform.invoke(name)
        firsts: list[float] = []
        narrowed: list[float] = []
        first_picture(platform, browser, "scaling", CHARTED, [FUNCTIONS, CHARTS])
        for number in range(rounds):
            seconds, page = first_picture(platform, browser, "scaling", CHARTED, [FUNCTIONS, CHARTS])
            firsts.append(seconds)
            report.progress(f"first charts {number + 1} of {rounds}: {seconds:.2f} s")
            for wanted in (f"svc-{number * 37 % FUNCTIONS:04d}", f"svc-{number:02d}"):
                took, _ = page.evaluate(NARROW, wanted)
                narrowed.append(took)
            page.context.close()
    report.emit("page.first_charts_s", quantile(firsts, 0.5), functions=FUNCTIONS, charts=CHARTS)
    report.emit("page.filter_charts_ms", quantile(narrowed, 0.5), functions=FUNCTIONS)


def first_picture(platform: Platform, browser: Browser, room: str, drawn: str, arg: object) -> tuple[float, Page]:
    """Seconds from going to this room of the page, signed in and with an empty cache, until `drawn` holds in the browser."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    base = str(platform.control.base_url).rstrip("/")
    link = platform.post("/v1/page/links")["path"]
    context.request.get(f"{base}{link}", max_redirects=0)
    page.goto(f"{base}/page/{room}", wait_until="commit")
    page.wait_for_function(drawn, arg=arg, timeout=TIMEOUT_MS, polling="raf")
    return float(page.evaluate("performance.now()")) / 1000, page


def graph() -> list[tuple[int, int]]:
    """Calls between functions of neighbouring layers, few of them calling back; everybody calls or is called."""
    source = random.Random(SEED)
    layer = [index * LAYERS // FUNCTIONS for index in range(FUNCTIONS)]
    members = [[index for index in range(FUNCTIONS) if layer[index] == one] for one in range(LAYERS)]
    calls = {(source.choice(members[layer[index] - 1]), index) for index in range(FUNCTIONS) if layer[index]}
    while len(calls) < CALLS:
        caller = source.randrange(FUNCTIONS)
        ahead = source.choice((1, 1, 1, 1, 2, 2, 3, -1 if source.random() < 0.05 else 1))
        if 0 <= layer[caller] + ahead < LAYERS:
            calls.add((caller, source.choice(members[layer[caller] + ahead])))
    return sorted(calls)


def traces(calls: list[tuple[int, int]]) -> list[str]:
    """The calls as imported traces, in texts of moderate size; each call is in one run of its caller at least."""
    source = random.Random(SEED + 1)
    callees: dict[int, list[int]] = {}
    for caller, callee in calls:
        callees.setdefault(caller, []).append(callee)
    texts, lines, number = [], [HEADER], 0
    for caller, called in callees.items():
        for turn in range(RUNS_EACH):
            number += 1
            lines.append(_span(number, 1, "root", caller, 0, 100))
            chosen = called if turn == 0 else [one for one in called if source.random() < 0.7]
            for place, callee in enumerate(chosen):
                lines.append(_span(number, place + 2, "1", callee, 5 + place, 50))
        if len(lines) > 4_000:
            texts.append("".join(lines))
            lines = [HEADER]
    return [*texts, "".join(lines)]


def _span(trace: int, span: int, parent: str, function: int, at_ms: int, took_ms: int) -> str:
    began = 1_700_000_000_000_000_000 + trace * 1_000_000_000 + at_ms * 1_000_000
    return (
        f"{trace:x},{span:x},{parent},svc-{function:04d}-7f8c-x2k4p,/do,{began},{began + took_ms * 1_000_000},{took_ms * 1000}\n"
    )

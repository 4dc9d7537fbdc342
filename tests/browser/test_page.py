"""The live page in chromium, against a running platform: what it shows, that it follows, and that everybody can use it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.system

CALLS = "Functions, their state and their calls"
VIEWS = ("Graph", "Decisions", "Runs", "Scaling", "Releases", "Functions and nodes")
CONTRASTS = """() => {
    const channel = (value) => { value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parse = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
    const over = (top, bottom) => [0, 1, 2].map((i) => top[i] * top[3] + bottom[i] * (1 - top[3]));
    const ground = (element) => {
        if (!element) return [255, 255, 255];
        const own = parse(getComputedStyle(element).backgroundColor);
        return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
    };
    const weak = [];
    let checked = 0;
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        const field = element.matches("input, select");
        if ((!text && !field) || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        if (element.closest("#popup, #too_long_message_popup, #esm-fallback, script, style, .unseen, .skip")) continue;
        const style = getComputedStyle(element), behind = ground(element);
        const pair = [light(over(parse(style.color), behind)), light(behind)].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        checked += 1;
        if (ratio < (large ? 3 : 4.5)) weak.push(`${element.tagName}.${element.className} ${element.textContent}: ${ratio}`);
    }
    return { checked, weak };
}"""
WIDE = """() => [...document.querySelectorAll("main *")]
    .filter((one) => one.getBoundingClientRect().right > 391 && !one.closest(".unseen"))
    .map((one) => one.outerHTML.slice(0, 80))"""
TABLES = {
    "Graph": CALLS,
    "Decisions": "Prewarm decisions, newest first",
    "Runs": "Runs, newest first",
    "Scaling": "Instances of each function, and who decided",
    "Releases": "Releases, newest first",
    "Functions and nodes": "Nodes, what they hold and how they isolate",
}
CHOSEN = {
    "Runs": ("table", "The run's invocations and their steps"),
    "Scaling": ("table", "Changes of the chosen function"),
    "Releases": ("region", "Release 1"),
}
FOCUSED = """() => {
    const element = document.activeElement, style = getComputedStyle(element);
    element.dataset.reached = "";
    const box = element.getBoundingClientRect();
    const label = element.getAttribute("aria-label") || element.textContent || element.closest("label")?.textContent || "";
    return {
        name: label.trim(), tag: element.tagName, outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
        seen: box.width > 0 && box.height > 0 && box.right > 0,
    };
}"""


def drawn(page: Page, nodes: int | None = None, timeout: float = 30_000) -> None:
    """Until a picture of that many functions is on the screen."""
    page.wait_for_function(
        "(nodes) => { const of = document.querySelector('.callgraph')?.dataset; "
        "return of?.drawn && (nodes === null || Number(of.nodes) === nodes) }",
        arg=nodes,
        timeout=timeout,
    )


def row(page: Page, table: str, name: str) -> Any:
    return (
        page.get_by_role("table", name=table).get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))
    )


# -- before anything is there


def test_who_has_nothing_yet_is_told_what_to_do_next(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop, token=shop.tenant("newcomer")).page
    expect(page.get_by_text("foreglow deploy FOLDER")).to_be_visible()
    for name, line in (("Decisions", "foreglow warm NAME"), ("Runs", "foreglow invoke NAME --data '{}'"),
                       ("Scaling", "foreglow invoke NAME"), ("Releases", "foreglow deploy FOLDER --ramp"),
                       ("Functions and nodes", "foreglow deploy FOLDER")):  # fmt: skip
        page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
        expect(page.get_by_text(line)).to_be_visible()


# -- what it shows


def test_the_graph_shows_calls_and_follows_the_states(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    visitor = visit(shop)
    page = visitor.page
    drawn(page, 9)
    expect(page.get_by_text("9 functions, 8 calls")).to_be_visible()
    table = CALLS
    expect(row(page, table, "payment")).to_contain_text(re.compile(r"giftcard \d+ %, invoice \d+ %"))
    shop.invoke("checkout", {})
    expect(row(page, table, "checkout")).to_contain_text("warm")
    picture(page, "graph-light")
    shop.cool()
    expect(row(page, table, "checkout")).to_contain_text("cold")
    shop.invoke("inventory", {})
    expect(row(page, table, "inventory")).to_contain_text("warm")
    assert visitor.complaints == []


def test_the_filter_narrows_drawing_and_table(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).page
    drawn(page, 9)
    page.get_by_label("Filter functions").fill("gift")
    drawn(page, 3)
    expect(page.get_by_role("table", name=CALLS).get_by_role("rowheader")).to_have_text(["giftcard"])
    page.get_by_label("Filter functions").fill("nobody")
    expect(page.get_by_text("No function's name holds")).to_be_visible()
    expect(page.get_by_label("Filter functions")).to_have_value("nobody")
    page.get_by_label("Filter functions").fill("")
    drawn(page, 9)


def test_a_function_is_chosen_by_keyboard_and_told_in_detail(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    shop.invoke("checkout", {})
    page = visit(shop).page
    drawn(page, 9)
    button = page.get_by_role("table", name=CALLS).get_by_role("button", name="payment", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    detail = page.get_by_role("region", name="The chosen function")
    expect(detail.get_by_role("heading", name="payment")).to_be_focused()
    expect(detail.get_by_role("row").filter(has_text="calls invoice")).to_contain_text("%")
    expect(detail.get_by_role("table", name="Latest decisions about the chosen function")).to_contain_text("hit")
    assert urlsplit(page.url).path == "/page/graph/payment"
    picture(page, "graph-chosen-light")
    page.reload()
    expect(detail.get_by_role("heading", name="payment")).to_be_visible()
    page.get_by_role("button", name="Close the details").click()
    expect(detail).to_be_hidden()


def test_a_function_is_chosen_in_the_drawing(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).page
    drawn(page, 9)
    place = page.evaluate("""() => {
        const chart = mounted_app.$refs[Object.keys(mounted_app.$refs).find((name) => mounted_app.$refs[name]?.picture)].chart;
        const at = chart.getModel().getSeriesByIndex(0).getData();
        const index = at.indexOfName("checkout");
        return at.getItemLayout(index);
    }""")
    page.locator(".callgraph").click(position={"x": place[0], "y": place[1]})
    expect(page.get_by_role("region", name="The chosen function").get_by_role("heading", name="checkout")).to_be_visible()


def test_decisions_come_by_themselves_with_totals_and_filters(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    visitor = visit(shop)
    page = visitor.go("Decisions")
    table = page.get_by_role("table", name="Prewarm decisions, newest first")
    expect(table.get_by_role("row").nth(1)).to_contain_text("reach")
    expect(page.get_by_text("Hit ratio")).to_be_visible()
    expect(page.locator(".tile").first).to_contain_text(re.compile(r"\d+ %.*\d+ of \d+ prepared instances?"))
    picture(page, "decisions-light")
    before = table.get_by_role("row").count()
    shop.api.post("/v1/functions/invoice/warm", json={"count": 3})
    expect(table.get_by_role("row").filter(has_text="invoice #3")).to_be_visible()
    assert table.get_by_role("row").count() > before
    page.get_by_label("Function").fill("payment")
    expect(table.get_by_role("row").filter(has_text="invoice #3")).to_have_count(0)
    page.get_by_label("Function").fill("")
    page.get_by_label("Outcome").select_option("hit")
    expect(table.locator(".state").filter(has_text="hit").first).to_be_visible()
    expect(table.locator(".state").filter(has_not_text="hit")).to_have_count(0)


def test_pausing_holds_the_feed_still(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).go("Decisions")
    table = page.get_by_role("table", name="Prewarm decisions, newest first")
    expect(table.get_by_role("row").nth(1)).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Go on")).to_have_attribute("aria-pressed", "true")
    shop.api.post("/v1/functions/notify/warm", json={"count": 4})
    page.wait_for_timeout(2500)
    expect(table.get_by_role("row").filter(has_text="notify #4")).to_have_count(0)
    page.get_by_role("button", name="Go on").click()
    expect(table.get_by_role("row").filter(has_text="notify #4")).to_be_visible()


def test_a_run_is_a_waterfall_in_which_a_cold_start_shows_its_steps(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    run = next(one for one in shop.api.get("/v1/runs").json()["runs"] if one["entry"] == "checkout")
    page = visit(shop).go("Runs")
    page.get_by_role("row").filter(has_text=run["trace_id"][:8]).get_by_role("button").click()
    waterfall = page.get_by_role("table", name="The run's invocations and their steps")
    expect(waterfall.get_by_role("row")).to_have_count(run["invocations"] + 1)
    first = waterfall.get_by_role("row").nth(1)
    expect(first).to_contain_text(re.compile(r"standby|cold"))
    expect(first).to_contain_text(re.compile(r"init [\d,.]+ m?s"))
    for step in ("init", "run"):
        expect(first.locator(f".piece.tone-{step}")).to_have_count(1)
    expect(waterfall.locator(".piece.tone-ahead").first).to_be_attached()
    assert urlsplit(page.url).path == f"/page/runs/{run['trace_id']}"
    picture(page, "runs-light")
    page.go_back()
    expect(waterfall).to_be_hidden()


def test_functions_and_nodes_say_states_conditions_and_errors(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    page = visit(shop).go("Functions and nodes")
    functions = "Functions, their instances, conditions and errors"
    failing = page.get_by_role("table", name=functions).get_by_role("row").filter(has_text="report")
    expect(failing).to_contain_text("error ValueError")
    expect(failing).to_contain_text("hold")
    node = page.get_by_role("table", name="Nodes, what they hold and how they isolate").get_by_role("row").nth(1)
    expect(node).to_contain_text("process:")
    expect(node).to_contain_text(" GB of ")
    expect(page.get_by_role("table", name="Other parts of the platform")).to_contain_text("learned since it started")
    picture(page, "platform-light")
    failing.get_by_role("button", name="error ValueError").click()
    expect(page.get_by_role("table", name="The run's invocations and their steps")).to_contain_text("error ValueError")


def test_private_networks_say_who_reaches_them_and_why_nobody_does(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None], tmp_path: Path
) -> None:
    page = visit(shop).go("Functions and nodes")
    there = row(page, "Private networks, their proxies and the tunnels into them", "cellar")
    shop("vpc", "create", "cellar", "--cidr", "10.0.0.0/16", "--rule", "tcp:10.0.1.0/24:5432")
    (tmp_path / "wine.py").write_text("def handle(event, context):\n    return event\n")
    (tmp_path / "foreglow.toml").write_text('[functions.wine]\nhandler = "wine:handle"\nvpc = "cellar"\n')
    try:
        for text in ("not reached", "10.0.0.0/16", "tcp:10.0.1.0/24:5432", "none has joined", "no proxy"):
            expect(there).to_contain_text(text)
        with shop.beside("vpc", "proxy", "--vpc", "default/cellar", "--listen", "127.0.0.1:0"):
            for text in ("(primary)", "(portable, 0 attached)"):
                expect(there).to_contain_text(text)
            expect(there).not_to_contain_text("not reached")
            shop("deploy", str(tmp_path))
            expect(there).to_contain_text("wine")
            assert shop.invoke("wine", 1).status_code == 200
            expect(there).to_contain_text(re.compile(r"\(portable, [1-9] attached\)"))
            picture(page, "networks-light")
        for text in ("not reached", "none has joined"):
            expect(there).to_contain_text(text)
    finally:
        for path in ("functions/wine", "vpcs/cellar"):
            shop.api.delete(f"/v1/{path}")
    expect(there).to_have_count(0)


# -- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(
    shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None], scheme: str
) -> None:
    page = visit(shop, scheme=scheme).page
    for view in VIEWS:
        visit_view(page, view)
        found = page.evaluate(CONTRASTS)
        assert found["checked"] > 15, view
        assert found["weak"] == [], view
        if scheme == "dark":
            picture(page, f"{view.lower().replace(' ', '-')}-dark")


def visit_view(page: Page, view: str) -> None:
    page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Call graph" if view == "Graph" else view)
    expect(page.get_by_role("table", name=TABLES[view])).to_be_visible()
    if view in CHOSEN:
        page.get_by_role("table", name=TABLES[view]).get_by_role("button").first.click()
        role, name = CHOSEN[view]
        expect(page.get_by_role(role, name=name)).to_be_visible()  # type: ignore[arg-type]


def test_the_theme_is_chosen_and_kept(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(ground) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme")).to_be_visible()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ground) != light
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(ground) == light


def test_nothing_is_wider_than_a_telephone(shop: Any, visit: Callable[..., Any], picture: Callable[[Page, str], None]) -> None:
    page = visit(shop, width=390).page
    drawn(page)
    for view in VIEWS:
        visit_view(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
        wide = page.evaluate(WIDE)
        assert wide == [], view
        picture(page, f"{view.lower().replace(' ', '-')}-narrow")


def test_every_control_is_reached_by_tab_with_a_visible_focus(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).page
    for view in VIEWS:
        visit_view(page, view)
        controls = page.locator("a[href]:visible, button:visible, input:visible, select:visible")
        page.get_by_role("button", name="Pause").click()  # rows that come meanwhile would be counted twice
        expect(page.get_by_role("button", name="Go on")).to_be_visible()
        missed = page.locator(":is(a[href], button, input, select):visible:not([data-reached])")
        for _ in range(3 * (controls.count() + 2)):  # once round by way of the document; again for what came late
            page.keyboard.press("Tab")
            focused = page.evaluate(FOCUSED)
            if focused["tag"] != "BODY":
                assert focused["outline"], (view, focused)
                assert focused["seen"], (view, focused)
                assert focused["name"], (view, focused)
            elif not missed.count():
                break
        assert [one.inner_text() for one in missed.all()] == [], view
        page.get_by_role("button", name="Go on").click()


def test_the_page_has_language_titles_and_landmarks(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).page
    assert page.evaluate("document.documentElement.lang") == "en-US"
    titles = set()
    for view in VIEWS:
        visit_view(page, view)
        page.wait_for_function(
            "(said) => document.title.endsWith(' - Foreglow') && !said.includes(document.title)", arg=list(titles)
        )
        titles.add(page.title())
        for landmark in ("banner", "main", "navigation"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        expect(page.get_by_role("navigation").locator("[aria-current=page]")).to_have_text(view)


def test_nothing_is_asked_of_anybody_else(shop: Any, visit: Callable[..., Any]) -> None:
    visitor = visit(shop)
    for view in VIEWS:
        visit_view(visitor.page, view)
    own = urlsplit(shop.control).netloc
    assert len(visitor.requests) > 10
    assert {urlsplit(url).netloc for url in visitor.requests if not url.startswith("data:")} == {own}
    assert {urlsplit(url).path.split("/")[1] for url in visitor.requests if not url.startswith("data:")} <= {"login", "page"}
    assert visitor.complaints == []


# -- when something is away


def test_a_planner_that_is_away_is_said_and_what_was_known_stays(shop: Any, visit: Callable[..., Any]) -> None:
    page = visit(shop).page
    drawn(page, 9)
    with stopped(shop, "planner"):
        expect(page.get_by_role("alert")).to_contain_text("planner")
        expect(page.get_by_role("alert")).to_contain_text("What is shown is the last that was known")
        expect(page.get_by_text("9 functions, 8 calls")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_page_process_that_is_killed_comes_back_by_itself(shop: Any, visit: Callable[..., Any]) -> None:
    import os
    import signal

    page = visit(shop).page
    drawn(page, 9)
    pid = process(shop, "page")
    os.kill(pid, signal.SIGKILL)
    shop.eventually(lambda: process(shop, "page") not in (0, pid))
    assert shop.invoke("checkout", {}).status_code == 200
    page.goto(f"{shop.control}/page/")
    drawn(page, 9, timeout=60_000)  # it has begun anew


@pytest.mark.parametrize("part", ["**/quasar.umd.prod.js", "**/*vue*.js", "**/socket.io.min.js"])
def test_a_part_that_did_not_come_is_asked_for_again(shop: Any, visit: Callable[..., Any], part: str) -> None:
    page = visit(shop).page
    lost: list[str] = []

    def lose_twice(route: Any) -> None:
        if len(lost) < 2:
            lost.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route(part, lose_twice)
    page.reload()
    drawn(page, 9)
    assert len(lost) == 2
    assert page.evaluate("sessionStorage.getItem('foreglow-tries')") is None


# -- whose page it is


def test_signed_out_there_is_nothing_to_see(shop: Any, visit: Callable[..., Any]) -> None:
    visitor = visit(shop)
    page = visitor.page
    cookie = next(one for one in visitor.context.cookies() if one["name"] == "foreglow_session")
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/page")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="You are signed out")).to_be_visible()
    page.goto(f"{shop.control}/page/")
    expect(page.get_by_role("heading", name="You are not signed in")).to_be_visible()


def test_a_session_that_ended_elsewhere_empties_the_page(shop: Any, visit: Callable[..., Any]) -> None:
    visitor = visit(shop)
    drawn(visitor.page, 9)
    second = visitor.context.new_page()
    second.goto(f"{shop.control}/page/runs")
    second.get_by_role("button", name="Sign out").click()
    expect(visitor.page.get_by_role("alert")).to_contain_text("foreglow open")
    expect(visitor.page.get_by_role("table")).to_have_count(0)


def test_a_filter_typed_after_the_session_has_ended_ends_the_page_too(shop: Any, visit: Callable[..., Any]) -> None:
    visitor = visit(shop)
    page = visitor.page
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Scaling").click()
    field = page.get_by_role("searchbox").first
    expect(field).to_be_visible()
    page.get_by_role("button", name="Pause").click()  # so that it is not heard of by itself
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    second = visitor.context.new_page()
    second.goto(f"{shop.control}/page/runs")
    second.get_by_role("button", name="Sign out").click()
    expect(second.get_by_role("heading", name="You are signed out")).to_be_visible()
    field.press_sequentially("pay")
    expect(page.get_by_role("alert")).to_contain_text("foreglow open")
    log = shop.state / "logs" / "page.log"
    assert not log.exists() or "Traceback" not in log.read_text()


def test_another_tenant_sees_nothing_of_mine(shop: Any, chromium: Browser) -> None:
    link = shop.link(shop.tenant("rival"))
    context = chromium.new_context()
    page = context.new_page()
    heard: list[str] = []
    page.on("websocket", lambda opened: opened.on("framereceived", lambda frame: heard.append(str(frame))))
    page.goto(link)
    for view in VIEWS:
        page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
        expect(page.locator(".empty").first).to_be_visible()
    said = page.content() + "".join(heard)
    for name in ("checkout", "payment", "giftcard", "report"):
        assert name not in said
    context.close()


# -- processes


def process(shop: Any, name: str) -> int:
    """Its pid as the supervisor noted it; 0 while there is none."""
    import json

    noted = json.loads((shop.state / "processes.json").read_text())["processes"]
    return int(noted[name]["pid"]) if name in noted else 0


def stopped(shop: Any, name: str) -> Any:
    """A process that hangs, until the end of the block."""
    import contextlib
    import os
    import signal

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        pid = process(shop, name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    return held()

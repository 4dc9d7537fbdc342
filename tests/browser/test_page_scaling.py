"""Scaling and releases on the page, in chromium, as a tenant with traffic sees them while they go on."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from doubles.releasing import Releaser, numbers
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.system

BURST, CLIENTS = 5, 3
READ = "(range) => range.getAttribute('aria-valuetext')"


@pytest.fixture(scope="module")
def token(shop: Any) -> str:
    return str(shop.tenant("depot"))


@pytest.fixture(scope="module")
def depot(shop: Any, token: str) -> Iterator[Releaser]:
    """`quote` calls `stock`; both had some traffic."""
    made: Releaser = shop.releaser(token)
    made.deploy("stock", 1)
    made.deploy("quote", 1, calls=("stock",), work_s=0.03)
    with made.load("quote", CLIENTS, {"calls": ["stock"]}) as answers:
        shop.eventually(lambda: numbers(answers)[1] > 60)
    yield made
    made.close()


def card(page: Page, name: str) -> Any:
    return page.get_by_role("list", name="Instances of each function").locator(f"[data-key={name}]")


# -- scaling


def test_a_burst_is_seen_as_it_is_scaled_to_with_the_term_and_the_reason(
    shop: Any, token: str, depot: Releaser, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    visitor = visit(shop, token=token)
    page = visitor.go("Scaling")
    chart = card(page, "quote")
    expect(chart).to_contain_text("version 1")
    expect(chart.locator("path.wanted")).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+.*H1000$"))
    known = int(chart.get_attribute("data-points") or 0)
    with depot.load("quote", BURST, {"calls": ["stock"]}):
        expect(chart).to_contain_text(re.compile(rf"reactive\s+{BURST} at once in the last 6 s need {BURST}"))
        expect(chart.locator(".counts")).to_contain_text(f"{BURST} wanted")
        page.wait_for_function(
            "([key, known]) => Number(document.querySelector(`[data-key=${key}]`).dataset.points) > known", arg=["quote", known]
        )
    row = (
        page.get_by_role("table", name="Instances of each function, and who decided").get_by_role("row").filter(has_text="quote")
    )
    expect(row).to_contain_text("reactive")
    picture(page, "scaling-light")
    assert visitor.complaints == []


def test_each_change_of_a_function_is_told_and_a_moment_is_read_by_keyboard(
    shop: Any, token: str, depot: Releaser, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    page = visit(shop, token=token).go("Scaling")
    card(page, "quote").get_by_role("button", name="quote").focus()
    page.keyboard.press("Enter")
    detail = page.get_by_role("region", name="The chosen function")
    expect(detail.get_by_role("heading", name="quote")).to_be_focused()
    assert urlsplit(page.url).path == "/page/scaling/quote"
    changes = detail.get_by_role("table", name="Changes of the chosen function")
    expect(changes.get_by_role("row").filter(has_text=re.compile(r"\d+ → \d+")).first).to_contain_text("reactive")
    expect(changes).to_contain_text(re.compile(r"\d at once in the last 6 s need \d"))
    wanted = changes.get_by_role("row").count()
    detail.get_by_role("combobox", name="Changes").select_option("every")
    expect(changes.get_by_role("row").nth(wanted)).to_be_visible()
    moment = detail.get_by_role("slider", name="Point in time, Version 1")
    moment.focus()
    now = moment.evaluate(READ)
    page.keyboard.press("Home")
    first = moment.evaluate(READ)
    assert re.match(r"\d\d:\d\d:\d\d: \d+ wanted, \d+ ready, \d+ busy\. reactive \d", first), first
    second = first
    for _ in range(3):  # two points in time may be of one second
        page.keyboard.press("ArrowRight")
        second = moment.evaluate(READ)
        if second[:8] != first[:8]:
            break
    assert len({now[:8], first[:8], second[:8]}) == 3
    expect(detail.locator(".readout").first).to_contain_text(second[:8])
    picture(page, "scaling-chosen-light")
    page.keyboard.press("End")
    assert detail.locator(".cursor").count() == 0
    page.get_by_role("combobox", name="Time").select_option("1800")
    expect(page.get_by_text("began 30 minutes ago")).to_be_visible()
    page.reload()
    expect(detail.get_by_role("heading", name="quote")).to_be_visible()
    page.get_by_role("button", name="Close the function").click()
    expect(detail).to_be_hidden()


# -- releases


def test_a_gate_that_is_shut_a_step_that_holds_and_an_abort(
    shop: Any, token: str, depot: Releaser, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    page = visit(shop, token=token).go("Releases")
    with depot.load("quote", CLIENTS, {"calls": ["stock"]}) as answers:
        shop.eventually(lambda: numbers(answers)[1] > 20)
        first = int(depot.ask("GET", "/v1/functions/quote")["latest"])
        slow = depot.put(
            "quote", 2, calls=("stock",), work_s=0.03, release={"ramp": [0.3, 1.0], "hold_s": 600.0}, at_init="time.sleep(20)"
        )
        panel = page.get_by_role("region", name="Release ").filter(has_text=f"to version {slow}")
        expect(panel).to_contain_text(re.compile(r"The gate is shut: 0 of \d+ instances of quote:\d+ ready"))
        gate = panel.get_by_role("table", name="What the step needs ready before the route changes")
        expect(gate.get_by_role("row").filter(has_text=f"quote:{slow}")).to_contain_text(re.compile(r"preparing.*0 of \d"))
        expect(gate.get_by_role("row").filter(has_text="stock:1")).to_contain_text("on its call path")
        expect(panel.get_by_role("list", name="Steps of the release").get_by_role("listitem")).to_have_text(
            [re.compile("30 %.*preparing"), re.compile("100 %.*to come")]
        )
        expect(panel).to_contain_text(f"version {first}: 100 % of the runs")
        picture(page, "releases-gate-light")
        expect(panel.get_by_role("listitem").filter(has_text="30 %").first).to_contain_text("in force", timeout=90_000)
        expect(panel).to_contain_text(f"version {slow}: 30 % of the runs")
        expect(panel.get_by_role("progressbar", name="How much of the hold has passed")).to_be_visible()
        expect(panel).to_contain_text(re.compile(r"Hold: [\d.]+ min of 10\.0 min left"))
        watched = panel.get_by_role("table", name="Requests since the step is in force")
        expect(watched.get_by_role("row").filter(has_text="the new one")).to_contain_text(re.compile(r"\d+.*0 \(0 %\).*ms"))
        picture(page, "releases-hold-light")
        depot.ask("POST", f"/v1/releases/{depot.release('quote', ('holding',))['id']}/abort")
    row = page.get_by_role("table", name="Releases, newest first").get_by_role("row").nth(1)
    expect(row).to_contain_text(re.compile("aborted.*it was aborted"))
    expect(panel).to_be_hidden()
    row.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(panel.get_by_role("heading", level=2)).to_be_focused()
    expect(panel).to_contain_text(f"went back to version {first}, at once")
    expect(panel).to_contain_text(f"brings back version {first} 70 %, version {slow} 30 %, at once: foreglow rollback quote")
    panel.get_by_role("button", name="Close the release").click()
    expect(panel).to_be_hidden()


def test_a_release_that_was_stopped_says_why_and_releases_are_filtered(
    shop: Any, token: str, depot: Releaser, visit: Callable[..., Any], picture: Callable[[Page, str], None]
) -> None:
    page = visit(shop, token=token, width=390, scheme="dark").go("Releases")
    with depot.load("stock", 1) as answers:
        shop.eventually(lambda: numbers(answers)[1] > 10)
        depot.put("stock", 3, at_init='raise KeyError("no such setting")')
        table = page.get_by_role("table", name="Releases, newest first")
        row = table.get_by_role("row").filter(has_text="stock")
        expect(row).to_contain_text(re.compile("stopped.*KeyError"))
    row.get_by_role("button").click()
    panel = page.get_by_role("region", name="Release ").filter(has_text="stock")
    expect(panel).to_contain_text("An instance of stock:2 did not start: KeyError")
    expect(panel.get_by_role("listitem").first).to_contain_text("stopped")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "releases-stopped-narrow-dark")
    page.get_by_label("State").select_option("done")
    expect(table.get_by_role("row").filter(has_text="stock")).to_have_count(0)
    page.get_by_label("State").select_option("")
    page.get_by_label("Filter by function").fill("nobody")
    expect(page.get_by_text("0 releases")).to_be_visible()

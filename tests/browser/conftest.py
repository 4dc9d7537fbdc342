"""A running platform with a small shop on it, and chromium. `--pictures FOLDER` keeps pictures of every view."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from doubles.releasing import Releaser
from playwright.sync_api import Browser, BrowserContext, Page, expect

from benchmarks.chromium import launched, program
from orchestrator.catalog.store import Store
from orchestrator.settings import Settings

FOREGLOW = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PORTS = ("--functions-port", "0", "--control-port", "0", "--otlp-port", "0")
SHOP = Path(__file__).with_name("shop")
WAIT_S = 90.0
expect.set_options(timeout=30_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", help="Folder for pictures of every view of the page.")


class Shop:
    """`foreglow up` with the shop deployed and some orders placed."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self._log = (folder / "up.log").open("wb")
        command = [*FOREGLOW, "up", "--state", str(self.state), *PORTS]
        quiet = {"FOREGLOW_LOG_LEVEL": "warning", "FOREGLOW_RELEASE_SLOWDOWN": "50"}  # of a busy machine no version is to blame
        environment = os.environ | quiet
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, env=environment, process_group=0)
        try:
            self.eventually((self.state / "addresses.json").exists)
            self.addresses = json.loads((self.state / "addresses.json").read_text())
            self.control = str(self.addresses["control"])
            self.key = {"Authorization": f"Bearer {(self.state / 'key').read_text().strip()}"}
            self.api = httpx.Client(base_url=self.control, headers=self.key, timeout=60, trust_env=False)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)
        self._log.close()

    def __call__(self, *words: str) -> Any:
        command = [*FOREGLOW, *words, "--state", str(self.state), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def beside(self, *words: str) -> Iterator[None]:
        """A command that goes on, until the end of the block."""
        command = [*FOREGLOW, *words, "--state", str(self.state)]
        process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        try:
            yield
            assert process.poll() is None, "it ended by itself"
        finally:
            process.terminate()
            process.wait(WAIT_S)

    def invoke(self, name: str, event: object) -> httpx.Response:
        url = f"{self.addresses['functions']}/function/{name}"
        return httpx.post(url, json=event, headers=self.key, timeout=60, trust_env=False)

    def link(self, token: str = "") -> str:
        """For the browser of whoever has the token; the shop's own."""
        headers = {"Authorization": f"Bearer {token}"} if token else self.key
        return self.control + str(self.api.post("/v1/page/links", headers=headers).json()["path"])

    def tenant(self, name: str) -> str:
        """Makes one that has nothing yet; its token."""
        store = Store(Settings(state=self.state).effective_database_url)
        try:
            store.keys.create_tenant(name, 1)
            return str(store.keys.make_key(name, "k", 1).token)
        finally:
            store.close()

    def releaser(self, token: str) -> Releaser:
        """Deploys and calls in the name of whoever has the token."""
        return Releaser(SimpleNamespace(key=token, control=self.control, functions=self.addresses["functions"]))  # type: ignore[arg-type]

    def cool(self) -> None:
        self.api.post("/v1/cool", json={})

    @staticmethod
    def eventually(true: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_S
        while not (found := true()):
            assert time.monotonic() < deadline, "did not come true in time"
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")  # to its end playwright keeps an event loop in this thread
def chromium() -> Iterator[Browser]:
    if program() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    """One for all files. Orders were placed: some cold, one that took the other branch, one function that fails and was released
    twice. Who needs other functions makes a tenant."""
    if program() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    folder = Path(tempfile.mkdtemp(prefix="fg-browser-"))
    made = Shop(folder)
    try:
        fill(made)
        yield made
    finally:
        made.api.close()
        made.stop()
        shutil.rmtree(folder)


def fill(shop: Shop) -> None:
    shop("deploy", str(SHOP))
    for event in ({}, {}, {"gift": True}, {}):
        assert shop.invoke("checkout", event).status_code == 200
    shop.eventually(lambda: len(shop.api.get("/v1/runs").json()["runs"]) == 4)
    shop.cool()
    assert shop.invoke("checkout", {}).status_code == 200
    assert shop.invoke("report", {}).status_code == 502
    shop.eventually(lambda: len(shop.api.get("/v1/runs").json()["runs"]) == 6)
    served = shop.api.get("/v1/functions/report").json()["versions"][0]
    again = {name: served[name] for name in ("package", "handler", "timeout_s")}
    assert shop.api.put("/v1/functions/report", json=again).status_code == 202
    shop.eventually(lambda: [one["phase"] for one in shop.api.get("/v1/releases").json()["releases"]] == ["done"])


class Visitor:
    """A browser context that is signed in. `requests`: every address it asked for; `complaints`: what its console said."""

    def __init__(self, browser: Browser, shop: Shop, width: int, scheme: str, token: str) -> None:
        self.shop = shop
        self.requests: list[str] = []
        self.complaints: list[str] = []
        height = 844 if width < 500 else 900
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda opened: self.requests.append(opened.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.shop.eventually(lambda: self.shop.api.get("/healthz").status_code == 200)
        self.page.goto(shop.link(token))
        # the page may still be starting: its notice reloads by itself
        expect(self.page.get_by_role("navigation", name="Views")).to_be_visible(timeout=60_000)

    def go(self, name: str) -> Page:
        """To one of the views, by its link."""
        self.page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
        title = "Call graph" if name == "Graph" else name
        expect(self.page.get_by_role("heading", level=1)).to_have_text(title)
        return self.page


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visitor]]:
    made: list[Visitor] = []

    def visitor(shop: Shop, width: int = 1280, scheme: str = "light", token: str = "") -> Visitor:
        made.append(Visitor(chromium, shop, width, scheme, token))
        return made[-1]

    yield visitor
    for one in made:
        one.context.close()


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keeps a picture when the tests were asked to."""
    folder = request.config.getoption("--pictures")

    def keep(page: Page, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return keep

"""One running platform for everything here that speaks to a whole one. It has to end well after all of it."""

import time
from collections.abc import Iterator

import pytest
import requests
from doubles.archives import written
from doubles.platforms import Platform

FUNCTIONS = b"""
def handle(event, context):
    return event

def answer(request, context):
    return {"method": request.method, "path": request.path, "query": request.query, "size": len(request.body)}
"""
READY_S = 120.0


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """It serves `echo`, which answers with its payload, and `web`, of kind http."""
    running = Platform(tmp_path_factory.mktemp("platform"), FOREGLOW_PREWARM_INSTANCES="8", FOREGLOW_STANDBYS="1")
    try:
        deploy(running, "echo", "app:handle")
        deploy(running, "web", "app:answer", kind="http")
        yield running
    finally:
        code = running.stop()
    assert code == 0, running.logs()
    assert not (running.state / "addresses.json").exists()


def deploy(platform: Platform, name: str, handler: str, **more: object) -> None:
    key = {"Authorization": f"Bearer {platform.key}"}
    zipped = written([("app.py", FUNCTIONS, 0o644 << 16, True)])
    made = requests.post(
        f"{platform.control}/v1/packages", zipped, headers={**key, "Content-Type": "application/zip"}, timeout=30
    )
    wanted = {"package": made.json()["digest"], "handler": handler, **more}
    put = requests.put(f"{platform.control}/v1/functions/{name}", json=wanted, headers=key, timeout=30)
    assert put.status_code == 202, put.text
    deadline = time.monotonic() + READY_S
    while requests.post(f"{platform.functions}/function/{name}", json=1, headers=key, timeout=30).status_code != 200:
        assert time.monotonic() < deadline, f"{name} does not serve\n{platform.logs()}"
        time.sleep(0.1)

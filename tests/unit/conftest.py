"""A command in this process, and the API it talks to."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from doubles.canned_api import KEY, Api

from orchestrator.cli.main import main


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    known = Api()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            known.asked.append((self.command, self.path, body, self.headers.get("authorization", "")))
            status, headers, content = known.next(self.command, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names the server calls

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "addresses.json").write_text(json.dumps({"functions": address, "control": address, "otlp": address}))
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv("FOREGLOW_HOME", str(tmp_path))
    for name in ("FOREGLOW_STATE", "FOREGLOW_KEY", "FOREGLOW_CONTROL_URL", "FOREGLOW_FUNCTIONS_URL"):
        monkeypatch.delenv(name, raising=False)
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def foreglow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foreglow", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.py").write_text("def handle(event, context):\n    return 1\n")
    (folder / "foreglow.toml").write_text(
        '[functions.a]\nhandler = "app:handle"\ncalls = ["b"]\n[functions.b]\nhandler = "app:handle"\nmemory_mb = 256\n'
    )
    return folder

"""A package index over HTTP on loopback, and source distributions that build themselves without anything from a network."""

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BACKEND = """
import base64, hashlib, os, zipfile

NAME, VERSION, TAG = {name!r}, "1.0", {tag!r}

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {{f"{{NAME}}.py": "VALUE = 7\\n"}}
    files.update(work(wheel_directory) or {{}})
    info = f"{{NAME}}-{{VERSION}}.dist-info"
    files[f"{{info}}/METADATA"] = "Metadata-Version: 2.1\\nName: %s\\nVersion: %s\\n%s" % (NAME, VERSION, {requires!r})
    files[f"{{info}}/WHEEL"] = f"Wheel-Version: 1.0\\nGenerator: hand\\nRoot-Is-Purelib: true\\nTag: {{TAG}}\\n"
    files[f"{{info}}/RECORD"] = "".join(f"{{path}},,\\n" for path in [*files, f"{{info}}/RECORD"])
    file = f"{{NAME}}-{{VERSION}}-{{TAG}}.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, file), "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    return file

"""
QUIET = "def work(wheel_directory):\n    return {}\n"


def source(name: str, work: str = QUIET, requires: str = "", tag: str = "py3-none-any") -> bytes:
    """A .tar.gz whose own backend makes the wheel; `work` defines `work(folder)`, what the build does and adds to the wheel.

    `requires`: lines for METADATA, such as `Requires-Dist: other`.
    """
    metadata = f"Metadata-Version: 2.2\nName: {name}\nVersion: 1.0\n{requires}"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": metadata,
        "backend.py": BACKEND.format(name=name, tag=tag, requires=requires) + work,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{path}")
            entry.size = len(content.encode())
            archive.addfile(entry, io.BytesIO(content.encode()))
    return packed.getvalue()


def wheel(name: str, version: str = "1.0") -> bytes:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "VALUE = 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return packed.getvalue()


class PackageIndex:
    """Pages below /simple, files below /files. `asked`: (path, whether with the right credentials).

    `credentials`: wanted on every page and file; empty: none. `elsewhere`: file name -> address that its page names instead of
    ours. `moved`: path -> where it redirects to. `broken`: everything is a 503.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[tuple[str, bool]] = []
        self.credentials = ""
        self.elsewhere: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.broken = False
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = index.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Location" if status == 302 else "Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/simple"

    def add(self, project: str, file: str, content: bytes) -> str:
        """Its SHA-256."""
        self.files.setdefault(project, {})[file] = content
        return hashlib.sha256(content).hexdigest()

    def answer(self, path: str, authorization: str) -> tuple[int, str, bytes]:
        right = authorization == "Basic " + base64.b64encode(self.credentials.encode()).decode()
        self.asked.append((path, bool(self.credentials) and right))
        if self.broken:
            return 503, "text/plain", b"away"
        if self.credentials and not right:
            return 401, "text/plain", b"who are you"
        if path in self.moved:
            return 302, self.moved[path], b""
        parts = path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2 and parts[1] in self.files:
            links = []
            for file, content in self.files[parts[1]].items():
                address = self.elsewhere.get(file, f"/files/{parts[1]}/{file}")
                links.append(f'<a href="{address}#sha256={hashlib.sha256(content).hexdigest()}">x</a>')
            return 200, "text/html", f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
        if parts[0] == "files" and len(parts) == 3 and parts[2] in self.files.get(parts[1], {}):
            return 200, "application/octet-stream", self.files[parts[1]][parts[2]]
        return 404, "text/plain", b"no"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def package_index() -> Iterator[PackageIndex]:
    made = PackageIndex()
    made.start()
    try:
        yield made
    finally:
        made.stop()

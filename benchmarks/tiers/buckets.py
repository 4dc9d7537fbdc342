"""An origin that is a bucket, as moto's server gives one: S3's protocol over HTTP on this machine. Its speed is that of a program
written for tests, and says nothing about S3's; what is measured is that our side of it costs no more than the rest."""

import contextlib
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from benchmarks import processes
from workers.code.origin import Origin

BUCKET = "bench"
START_S = 60.0


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[Origin | None]:
    """None when moto is not installed. Its log lies in `folder`."""
    if find_spec("moto") is None:
        yield None
        return
    port = processes.free_port()
    address = f"http://127.0.0.1:{port}"
    process = processes.start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log")
    try:
        processes.wait_for_port(port, process, START_S)
        made = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(made, timeout=START_S).close()
        with _environment(
            {
                "AWS_ENDPOINT_URL": address,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_REGION": "us-east-1",
                "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
            }
        ):
            origin = Origin(f"s3://{BUCKET}/foreglow")
        yield origin
    finally:
        processes.stop(process)


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

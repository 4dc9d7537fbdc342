"""Object stores that speak the protocols of S3 and Azure over HTTP on this machine: moto's server and azurite.

Each dies with the test run (PDEATHSIG), even when that is killed, and forgets everything.
"""

import base64
import contextlib
import email.utils
import hmac
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from doubles.ports import held_port

START_S = 60.0
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's, the same everywhere and in its documentation."""


class Bucket:
    """`url` for the settings, `environment` beside it."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self.url = url
        self.environment = environment


@contextlib.contextmanager
def s3() -> Iterator[Bucket]:
    with held_port() as port, _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        address = f"http://127.0.0.1:{port}"
        httpx.put(f"{address}/code-bucket", timeout=START_S).raise_for_status()
        yield Bucket(
            "s3://code-bucket/foreglow",
            {
                "AWS_ENDPOINT_URL": address,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "someone",
                "AWS_SECRET_ACCESS_KEY": "somesecret",
                "AWS_REGION": "us-east-1",
                "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
            },
        )


@contextlib.contextmanager
def azure() -> Iterator[Bucket]:
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is missing: npm install --global azurite")
    folder = tempfile.mkdtemp(prefix="fg-azurite-")
    command = [program, "--location", folder, "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobPort"]
    try:
        with held_port() as port, _running([*command, str(port)], port):
            address = f"http://127.0.0.1:{port}/{ACCOUNT}"
            _make_container(address, "code")
            yield Bucket(
                "az://code/foreglow",
                {
                    "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
                    "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
                    "AZURE_STORAGE_ENDPOINT": address,
                    "AZURE_ALLOW_HTTP": "true",
                },
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_container(address: str, name: str) -> None:
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    signed = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), signed.encode(), "sha256")).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    httpx.put(f"{address}/{name}?restype=container", headers=headers, timeout=START_S).raise_for_status()


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    guarded = ["setpriv", "--pdeathsig", "KILL", *command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(guarded, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "HOME": "/tmp"})
        try:
            _wait(process, port, Path(command[0]).name)
            yield
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)


def _wait(process: "subprocess.Popen[bytes]", port: int, what: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{what} does not listen")
        time.sleep(0.05)

"""AWS's runtime interface client behind a small gateway of our own: a process per instance, started on demand."""

import json
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.client import request
from benchmarks.peers.environments import python_with
from benchmarks.peers.servers import Peer

SERVED = Path(__file__).with_name("served")
REQUIREMENTS = Path(__file__).parents[1] / "functions" / "imports400" / "requirements.txt"


class LambdaRuntime(Peer):
    name: ClassVar[str] = "awslambdaric"
    scales_to_zero: ClassVar[bool] = True

    def __init__(self, paths: dict[str, dict[str, str]] | None = None) -> None:
        """`paths`: stages by name, each with its environment; NEXT names the next stage."""
        self._paths = paths or {}

    def command(self) -> list[str | Path]:
        python = python_with(self.name, ["awslambdaric==4.2.2", *REQUIREMENTS.read_text().split()])
        functions: dict[str, Any] = {
            "echo": {"handler": "handlers.echo", "environment": {}},
            "imports400": {"handler": "handlers.echo", "environment": {"IMPORTS": "400"}},
        }
        for name, environment in self._paths.items():
            following = environment.get("NEXT", "")
            address = f"127.0.0.1:{self.port}/{following}" if following else ""
            functions[name] = {"handler": "handlers.stage", "environment": {**environment, "NEXT": address}}
        described = self.folder / "functions.json"
        described.write_text(json.dumps(functions))
        return [python, SERVED / "lambda_gateway.py", str(self.port), described]

    def cool(self, functions: list[str]) -> None:
        for name in functions:
            request(self.port, f"/{name}", b"", method="DELETE")

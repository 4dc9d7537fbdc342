"""A program: a platform, a database and a proxy of one ordinary user, on one machine. It prints what it saw, as one JSON object.

    python alone.py FOLDER MANIFEST

To be run in a network namespace whose loopback has the address 10.0.1.5: see tests/journeys/test_private_networks_user.py.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOREGLOW = str(Path(sys.executable).with_name("foreglow"))
SERVER, PORT = "10.0.1.5", "6379"
WAIT_S = 90.0


def eventually(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := true()):
        if time.monotonic() > deadline:
            raise SystemExit(f"did not come true in time: {what}")
        time.sleep(0.1)
    return value


def main(folder: Path, project: Path) -> dict[str, Any]:
    state = folder / "state"
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("FOREGLOW_")}, "XDG_RUNTIME_DIR": str(folder)}
    running: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        with (folder / "said.log").open("ab") as output:
            running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
        return running[-1]

    def foreglow(*arguments: str) -> str:
        command = [FOREGLOW, *arguments, "--state", str(state)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stdout}{done.stderr}\n{(folder / 'said.log').read_text()[-4000:]}")
        return done.stdout

    def network() -> Any:
        """As control tells of it; without the tunnel while the node does not answer it in time."""
        return json.loads(foreglow("vpc", "describe", "shop", "--json"))

    def with_its_tunnel() -> Any:
        found = network()
        return found if found["tunnels"] else None

    def redis(*words: str) -> bool:
        command = ["redis-cli", "-h", SERVER, *words]
        return "OK" in subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout

    try:
        start("redis-server", "--bind", SERVER, "--port", PORT, "--save", "", "--protected-mode", "no", "--dir", str(folder))
        eventually(lambda: redis("SET", "customer:7", "Ann") and redis("SET", "stock:tea", "5"), "the database answers")
        ports = [word for name in ("functions", "control", "otlp") for word in (f"--{name}-port", "0")]
        platform = start(FOREGLOW, "up", "--state", str(state), *ports)
        eventually((state / "addresses.json").exists, "the platform is ready")
        foreglow("vpc", "create", "shop", "--cidr", "10.0.0.0/16", "--rule", f"tcp:{SERVER}/32:{PORT}")
        proxy = start(FOREGLOW, "vpc", "proxy", "--vpc", "default/shop", "--listen", "127.0.0.1:0", "--state", str(state))
        eventually(lambda: any(one["ready"] for one in network()["tunnels"]), "the tunnel is open")
        foreglow("deploy", str(project))
        invoked = json.loads(foreglow("invoke", "order", "--data", json.dumps({"customer": "7", "item": "tea"}), "--json"))
        found = eventually(with_its_tunnel, "the node tells of its tunnel")
        proxy.terminate()
        left = proxy.wait(30)
        after = network()
        platform.terminate()
        return {"invoked": invoked, "vpc": found, "after": after, "proxy": left, "platform": platform.wait(60)}
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
            one.wait(10)
        shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))

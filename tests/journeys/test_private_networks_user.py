"""An ordinary user's platform on one machine: a function in a private network reads a database, by a proxy beside control."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from doubles.servers import tool

pytestmark = [pytest.mark.system, pytest.mark.needs_user]

ROOT = Path(__file__).parents[2]
INSIDE = (
    "ip link set lo up && ip address add 10.0.1.5/32 dev lo && "
    'exec setpriv --ambient-caps=-all --inh-caps=-all "$@"'  # what made the network is not the platform's
)
LIMIT_S = 300


def test_a_function_reads_a_database_without_any_privilege() -> None:
    for program, package in (("redis-server", "redis-server"), ("redis-cli", "redis-tools"), ("ip", "iproute2")):
        tool(program, package)
    with tempfile.TemporaryDirectory(prefix="fg-alone-") as folder:
        program = [sys.executable, str(ROOT / "tests" / "doubles" / "alone.py"), folder, str(ROOT / "examples" / "orders")]
        apart = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net", "sh", "-c", INSIDE, "sh", *program]
        done = subprocess.run(apart, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    saw = json.loads(done.stdout.splitlines()[-1])
    assert saw["invoked"]["body"] == {"for": "Ann", "item": "tea", "accepted": True}
    assert saw["invoked"]["steps_ms"]["net"] > 0
    (tunnel,) = saw["vpc"]["tunnels"]
    assert (tunnel["ready"], tunnel["backend"]) == (True, "portable")
    assert "kernel" in tunnel["reason"], "why it is no better one"
    assert [one["role"] for one in saw["vpc"]["proxies"]] == ["primary"]
    assert saw["after"]["proxies"] == [], "one beside control says when it goes"
    assert (saw["proxy"], saw["platform"]) == (0, 0)

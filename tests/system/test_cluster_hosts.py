"""Several hosts: nodes, gateways and planners that joined over the network, and what happens when one is cut off."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator

import httpx
import pytest
from doubles.clusters import FUNCTIONS, RPC, Cluster, running_cluster

from orchestrator.planner.vigil import AFTER_S

pytestmark = [pytest.mark.system, pytest.mark.needs_root]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        yield made


def test_a_node_that_is_cut_off_fails_at_once_leaves_comes_back_and_counts_again(cluster: Cluster) -> None:
    token = cluster.token("node")
    wrong = cluster.join("b", "gateway", "node-x", RPC, token)
    assert wrong.returncode == 1
    assert "this join token is for a node, not for a gateway" in wrong.stderr
    for host in ("b", "c"):  # as large as each other: the freest is chosen, and the machine has less by the second one's start
        cluster.member(host, "node", f"node-{host}", RPC, FOREGLOW_NODE_MEMORY_MB="4096")
    cluster.wait(lambda: len(cluster.served_by()) == 2, "both nodes answer")
    cluster.deploy()
    assert cluster.invoke(0.0).result().json() == 0.0

    # several gateways on one Redis, one of them on another host
    cluster.member("c", "gateway", "gateway-c", RPC + 1, FOREGLOW_FUNCTIONS_PORT=str(FUNCTIONS))

    def answered() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return bool(cluster.invoke(0.0, "c").result().status_code == 200)
        return False

    cluster.wait(answered, "the second gateway serves")

    def busy() -> int:
        return sum(one["busy"] for one in cluster("scaling")["versions"])

    # in flight on both nodes; then one is gone without a word
    before = cluster.nodes()
    flying = []
    for _ in range(6):
        flying.append(cluster.invoke(45.0))
        cluster.wait(lambda: busy() >= len(flying), "its node has told of it, so the next may go to the other")
    cut_at = time.monotonic()
    cluster.hosts.cut("b")
    answers = [one.result() for one in flying]
    lost = [(one, answer) for one, answer in zip(flying, answers, strict=True) if answer.status_code != 200]
    assert lost, "some ran on the node that was cut off"
    assert len(lost) < len(answers), "and some did not"
    for one, answer in lost:
        assert answer.status_code == 502, answer.text
        assert "NodeLost" in answer.text
        assert one.ended - cut_at < 15.0, "at once, not at the deadline"
    for _ in range(4):
        again = cluster.invoke(0.0).result()
        assert again.status_code == 200, again.text
    cluster.wait(lambda: cluster.nodes()["node-b"]["state"] == "silent", "declared silent", 10)
    assert cluster.nodes()["node-b"]["epoch"] > before["node-b"]["epoch"]
    silent = cluster.nodes()["node-b"]["epoch"]

    # back: refused with its old epoch, it cleans itself, joins again, and serves
    cluster.hosts.mend("b")
    cluster.wait(lambda: cluster.nodes()["node-b"]["state"] == "up", "it has joined again", 30)
    assert cluster.nodes()["node-b"]["epoch"] > silent
    assert re.search(r"node\.stale", cluster.log("node-b")), "it was told"
    flying = [cluster.invoke(1.0) for _ in range(6)]
    assert [one.result().status_code for one in flying] == [200] * 6

    # removed for good
    done = cluster.hosts.run("a", "nodes", "remove", "node-b", "--state", str(cluster.state))
    assert done.returncode == 0, done.stderr
    cluster.wait(lambda: cluster.served_by() == ["node-c"], "only one node is asked")
    assert cluster.invoke(0.0).result().status_code == 200
    assert answered(), "the gateway on the other host too"

    # a removed gateway still has its certificate, its routes and the cluster's key: nodes let it in no more
    done = cluster.hosts.run("a", "nodes", "remove", "gateway-c", "--state", str(cluster.state))
    assert done.returncode == 0, done.stderr
    cluster.wait(lambda: "peer.gone" in cluster.log("node-c"), "the node has dropped it", 10)
    assert not answered()
    assert cluster.invoke(0.0).result().status_code == 200


def test_a_planner_that_stands_still_or_dies_is_followed_by_the_next(cluster: Cluster) -> None:
    cluster.node("b")
    cluster.wait(lambda: len(cluster.served_by()) == 1, "the node answers")
    cluster.deploy()
    first = json.loads((cluster.state / "processes.json").read_text())["processes"]["planner"]["pid"]

    said: list[str] = []

    def warms() -> bool:
        done = cluster.hosts.run("a", "warm", "nap", "--state", str(cluster.state), "--json")
        said.append(done.stderr)
        return done.returncode == 0

    def lease() -> tuple[str, float]:
        """Its holder, and until when."""
        with contextlib.closing(sqlite3.connect(cluster.state / "foreglow.db", timeout=10)) as database:
            found = database.execute("SELECT holder, expires FROM leases WHERE name = 'planner/0'").fetchone()
        return str(found[0]), float(found[1])

    def holder() -> str:
        return lease()[0]

    cluster.wait(warms, "the first planner decides")
    assert holder().startswith("planner@")
    second = cluster.member(
        "c",
        "planner",
        "planner-c",
        RPC,
        FOREGLOW_DATABASE_URL=f"sqlite:///{cluster.state / 'foreglow.db'}",
        FOREGLOW_GATEWAYS=str(cluster.settings.socket("gateway")),
    )
    cluster.wait(lambda: "planner" in cluster.nodes().get("planner-c", {}).get("role", ""), "the second planner has joined")
    time.sleep(6.0)  # the second one is up by then
    os.kill(first, signal.SIGSTOP)
    try:
        cluster.wait(lambda: holder().startswith("planner-c"), "the second takes over", 60)
        cluster.wait(warms, f"the second decides: {said}", 60)
        held_by, held_until = lease()
        assert held_by.startswith("planner-c")
    finally:
        os.kill(first, signal.SIGCONT)
    looked_until = time.monotonic() + 2.5
    while time.monotonic() < looked_until:
        now_held_by, ends = lease()
        if now_held_by != held_by:  # so it ran out before, for the second one stood still too
            assert time.time() >= held_until, "who stood still does not take it back while it is held"
            break
        held_until = ends
        time.sleep(0.05)
    second.kill()
    cluster.wait(lambda: holder().startswith("planner@"), "the first takes over again", 60)
    cluster.wait(warms, "the first decides", 60)

    # the only node falls silent: there is nowhere else, so nothing is void, but nobody reads that it is up
    before = cluster.nodes()["node-b"]
    cluster.hosts.cut("b")
    cluster.wait(lambda: cluster.nodes()["node-b"]["state"] == "silent", "told as silent", 20)
    silent = cluster.nodes()["node-b"]
    assert silent["epoch"] == before["epoch"]
    assert before["joined"] < silent["silent_since"] <= time.time() - AFTER_S  # it may have been noted right before
    shown = cluster.hosts.run("a", "nodes", "--state", str(cluster.state)).stdout
    assert "silent since" in " ".join(shown.split()), shown
    cluster.hosts.mend("b")
    cluster.wait(lambda: cluster.nodes()["node-b"]["state"] == "up", "heard again", 30)
    assert cluster.nodes()["node-b"]["epoch"] == before["epoch"]

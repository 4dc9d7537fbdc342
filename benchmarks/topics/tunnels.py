"""Topic tunnels: attaching an instance to its private network, what it costs its packets, and what a pair of proxies is worth.

As root; on the test bed (tests/doubles/private_networks.py) with each backend. The slow path does at the call what is otherwise
done ahead: it opens the tunnel and wires the sandbox; it is measured in turns with the prepared one.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.estimates import Estimate, bootstrap, quantile
from benchmarks.report import Report

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from doubles.besieging import bait, besiege, tempted
from doubles.private_networks import SERVER, Host, redis, sandbox
from doubles.tunnel_planes import BACKENDS, Backend, Network, PlaneInHost, network, private_network

from benchmarks.round_trips import round_trips

VPC = "acme/main"
IPERF_PORT = 5201
PAIRS = 10
A_SECOND = 50
PATIENCE_S = 30.0


def run(report: Report, full: bool) -> None:
    for backend in BACKENDS:
        report.driver, report.tier = "none", "root"
        report.progress(f"backend {backend.name}: two tenants, their proxies, a node")
        with private_network(backend) as running:
            _attaching(report, running, 1000 if full else 200)
            _busy(report, running, 20.0 if full else 6.0)
            _first_replies(report, running, 100 if full else 15)
            _packets(report, running, 10.0 if full else 1.0)
        _failover(report, backend, 5 if full else 2)
        with private_network(backend) as running:
            _hostile(report, running)


def _attaching(report: Report, running: Network, times: int) -> None:
    report.progress(f"attaching {times} wired sandboxes, one after another")
    found = asyncio.run_coroutine_threadsafe(_attach_all(running.planes[0], times, 0.0), running.planes[0].loop.loop).result(600)
    wired, attached, detached = (np.asarray(values) * 1e3 for values in found)
    name = running.backend.name
    report.emit("tunnel.attach.p50_ms", quantile(attached, 0.5), backend=name)
    report.emit("tunnel.attach.p99_ms", quantile(attached, 0.99), backend=name)
    report.emit("tunnel.wire.p50_ms", quantile(wired, 0.5), backend=name)
    report.emit("tunnel.detach.p50_ms", quantile(detached, 0.5), backend=name)


def _busy(report: Report, running: Network, seconds: float) -> None:
    report.progress(f"{A_SECOND} attaches a second for {seconds:g} s")
    plane = running.planes[0]
    work = _attach_all(plane, round(seconds * A_SECOND), 1 / A_SECOND)
    wired, attached, _ = asyncio.run_coroutine_threadsafe(work, plane.loop.loop).result(600)
    for name, q in (("tunnel.busy.p50_ms", 0.5), ("tunnel.busy.p99_ms", 0.99)):
        report.emit(name, quantile(np.asarray(attached) * 1e3, q), backend=running.backend.name)
    report.emit("tunnel.wire.p50_ms", quantile(np.asarray(wired) * 1e3, 0.5), backend=running.backend.name, attaches=A_SECOND)


async def _attach_all(running: PlaneInHost, times: int, every_s: float) -> tuple[list[float], list[float], list[float]]:
    """Seconds to wire, to attach, to detach; `every_s`: one starts then, whatever became of those before; 0: after the last."""
    wired, attached, detached = list[float](), list[float](), list[float]()
    loop, plane = asyncio.get_running_loop(), running.plane

    async def one() -> None:
        function = await loop.run_in_executor(None, sandbox)
        try:
            known = network(function)
            began = time.perf_counter()
            await plane.wire(known)
            wired.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            attachment = await plane.attach(VPC, "none", known)
            attached.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            attachment.detach()
            detached.append(time.perf_counter() - began)
        finally:
            await loop.run_in_executor(None, function.close)

    if not every_s:
        for _ in range(times):
            await one()
        return wired, attached, detached
    began, tasks = loop.time(), list[asyncio.Task[None]]()
    for number in range(times):
        await asyncio.sleep(max(0.0, began + number * every_s - loop.time()))
        tasks.append(loop.create_task(one()))
    await asyncio.gather(*tasks)
    return wired, attached, detached


def _first_replies(report: Report, running: Network, times: int) -> None:
    report.progress("first answers of Redis, by turns: prepared, and all at the call")
    plane, name, umbra = running.planes[0], running.backend.name, running.specs["umbra"]
    prepared, slow, registered = list[float](), list[float](), list[float]()
    for _ in range(times):
        with _function() as function:
            plane.wire(function)
            prepared.append(_answered(plane, function, lambda: None))
        plane.use(umbra)
        _wait(lambda: VPC not in plane.states(), "the tunnel is closed")
        with _function() as function:

            def open_now() -> None:
                began = time.perf_counter()
                plane.use(*running.specs.values())
                plane.opened(VPC)
                registered.append((time.perf_counter() - began) * 1e3)

            slow.append(_answered(plane, function, open_now))
    report.emit("tunnel.registration.p50_ms", quantile(registered, 0.5), backend=name)
    for metric, values in (("first_reply", prepared), ("slow", slow)):
        report.emit(f"tunnel.{metric}.p50_ms", quantile(values, 0.5), backend=name)
        report.emit(f"tunnel.{metric}.p99_ms", quantile(values, 0.99), backend=name)


def _answered(plane: PlaneInHost, function: Host, first: Callable[[], None]) -> float:
    """ms from here to the first answer, in a process's place that is in the namespace already."""
    go, done = threading.Event(), threading.Event()
    answers: list[str] = []

    def ask() -> None:
        go.wait(PATIENCE_S)
        answers.append(redis("GET", "tenant"))
        done.set()

    thread = threading.Thread(target=function.run, args=(ask,))
    thread.start()
    time.sleep(0.02)
    began = time.perf_counter()
    first()
    detach = plane.attach(VPC, function)
    go.set()
    done.wait(PATIENCE_S)
    took = (time.perf_counter() - began) * 1e3
    thread.join()
    detach()
    if answers != ["acme"]:
        raise RuntimeError(f"Redis answered {answers}")
    return took


def _packets(report: Report, running: Network, seconds: float) -> None:
    """Round trips and throughput, by turns through the tunnel and over a cable straight into the private network."""
    name = running.backend.name
    acme = running.bed.networks["acme"]
    acme.server.start("iperf3", "-s", "-B", SERVER, "-p", str(IPERF_PORT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    direct = Host("direct")
    try:
        acme.plug(direct, "10.0.9.9/16")
        with running.planes[0].attached(VPC) as function:
            report.progress("round trips, by turns")
            inside = [acme.redis.pid, *(proxy.process.pid for proxy in running.proxies["acme"] if proxy.process is not None)]
            for found in round_trips(function, direct, inside):
                median = bootstrap([found.added], lambda groups: float(np.median(groups[0])))
                told = {"backend": name, "placed": found.placed, "cores": found.cores}
                report.emit(f"tunnel.{name}.rtt_added_us", median, **told, direct_us=round(statistics.median(found.direct), 1))
            report.progress("throughput, by turns")
            pairs = [(_gbps(function, seconds), _gbps(direct, seconds)) for _ in range(PAIRS)]
            for system, values in (("foreglow", [pair[0] for pair in pairs]), ("direct veth", [pair[1] for pair in pairs])):
                report.emit("tunnel.gbps", bootstrap([values], lambda groups: float(np.median(groups[0]))), system, backend=name)
            share = bootstrap([[one / other for one, other in pairs]], lambda groups: float(np.median(groups[0])))
            report.emit(f"tunnel.{name}.throughput_share", share, backend=name)
    finally:
        direct.close()


def _gbps(host: Host, seconds: float) -> float:
    said = host.call("iperf3", "-c", SERVER, "-p", str(IPERF_PORT), "-t", f"{seconds:g}", "-J")
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _failover(report: Report, backend: Backend, rounds: int) -> None:
    for how in ("killed", "cut off"):
        gaps = []
        for number in range(rounds):
            report.progress(f"backend {backend.name}: the primary is {how}, {number + 1} of {rounds}")
            with private_network(backend) as running:
                gaps.append(_gap(running, how))
        report.emit("tunnel.failover_s", Estimate(max(gaps), min(gaps), max(gaps), len(gaps)), backend=backend.name, primary=how)


def _gap(running: Network, how: str) -> float:
    """The longest time between two answers, connections one after another (each given 0.1 s), from before to 3 s after."""
    with running.planes[0].attached(VPC) as function:
        place = _carrier(running)
        ended = threading.Event()
        longest = [0.0]

        def ask() -> None:
            served = time.monotonic()
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    redis("GET", "tenant", timeout_s=0.1)
                    now = time.monotonic()
                    longest[0], served = max(longest[0], now - served), now
                time.sleep(0.002)
            longest[0] = max(longest[0], time.monotonic() - served)

        thread = threading.Thread(target=function.run, args=(ask,))
        thread.start()
        time.sleep(0.5)
        if how == "killed":
            running.proxies["acme"][place].kill()
        else:
            host = running.bed.proxies["acme"][place]
            for nic in ("eth0", "lan0"):  # the other hears no goodbye
                host.ip("link", "set", nic, "down")
        time.sleep(3)
        ended.set()
        thread.join()
        return longest[0]


def _carrier(running: Network) -> int:
    """Who carries acme's tunnel; where a backend uses both, the first."""
    time.sleep(2.5)
    reason = running.planes[0].states()[VPC].reason
    return next((place for place, host in enumerate(running.bed.proxies["acme"]) if host.name in reason), 0)


def _hostile(report: Report, running: Network) -> None:
    report.progress("10,000 attempts of a hostile function")
    bait(running)
    plane = running.planes[0]
    with plane.attached(VPC) as hostile, plane.attached("umbra/main") as stranger, plane.attached(VPC) as twin:
        crossed = besiege(running, hostile, tempted([stranger, twin]), 10_000, 7)
    report.emit("tunnel.crossed", Estimate(crossed, crossed, crossed, 10_000), backend=running.backend.name)


@contextlib.contextmanager
def _function():  # type: ignore[no-untyped-def]
    made = sandbox()
    try:
        yield made
    finally:
        made.close()


def _wait(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(0.002)

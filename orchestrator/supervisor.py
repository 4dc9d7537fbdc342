"""`foreglow up`: Valkey and the six processes on one machine, as one thing that starts, stops and heals.

Order: valkey, then control, gateway, planner and node, then flow (its tables are there by then). The page starts once all are
ready: nobody waits for it, and nothing else stops when it fails. Back: gateway first, so that it drains while the rest still
answers; Valkey last.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator import orphans, preflight, remains, valkey
from orchestrator.ops.notify import VARIABLE as NOTIFY_SOCKET
from orchestrator.ops.notify import notify
from orchestrator.settings import Settings, reachable
from orchestrator.supervised import BoundedLog, Supervised
from workers.sealing import load_key

START_TIMEOUT_S = 60.0
MICROVM_START_TIMEOUT_S = 180.0  # its node boots a machine first, emulated perhaps, on a busy host
START_ATTEMPTS = 3  # a process that ends this often before `ready` will not come
PROBE_EVERY_S = 0.05
PROBE_TIMEOUT_S = 2.0
STOP_TIMEOUTS_S = {"gateway": 20.0, "valkey": 10.0}
STOP_TIMEOUT_S = 10.0
REAP_EVERY_S = 5.0
ORPHANS_TIMEOUT_S = 5.0
WAVES = (("control", "gateway", "planner", "node"), ("flow",))
BESIDE = ("page", "zone-cache")
OPTIONAL = {"zone-cache": "zone_cache"}
"""Beside it when its setting says so."""

STOP_ORDER = (("gateway",), ("page", "flow", "planner", "node", "control", "zone-cache"), ("valkey",))

Commands = Mapping[str, Sequence[str]]


class StartFailed(Exception):
    """A process did not come up; the message is one line with its last words."""


def process_commands(settings: Settings) -> Commands:
    """How each process is started: this interpreter, this installation."""
    names = [name for wave in (*WAVES, BESIDE) for name in wave if name not in OPTIONAL or getattr(settings, OPTIONAL[name])]
    return {name: [sys.executable, "-P", "-m", "orchestrator.cli.main", name] for name in names}


def run(settings: Settings, announce: Callable[[str], None] = print, commands: Commands | None = None) -> None:
    """Starts everything, announces `ready` with the addresses, returns when told to stop (SIGTERM, Ctrl-C).

    Raises preflight.NotPossible, StartFailed, valkey.ValkeyMissing; nothing is left running then.
    """
    lock = preflight.lock_state(settings.state)
    try:
        preflight.check_disk(settings.state)
        held = preflight.reserve_ports(settings)
        try:
            preflight.make_runtime_folder(settings.runtime_folder)
            for line in preflight.sweep(settings):
                announce(line)
            try:
                remains.check_keys(settings)
                remains.check_database(settings)
                load_key(settings.key_file)
                asyncio.run(_supervise(settings, held, announce, commands or process_commands(settings)))
            finally:
                shutil.rmtree(settings.runtime_folder, ignore_errors=True)
                for path in (settings.addresses_file, preflight.processes_file(settings)):
                    path.unlink(missing_ok=True)
        finally:
            for bound in held.values():
                bound.close()
    finally:
        os.close(lock)


async def _supervise(
    settings: Settings, held: Mapping[str, socket.socket], announce: Callable[[str], None], commands: Commands
) -> None:
    ports = {name: int(bound.getsockname()[1]) for name, bound in held.items()}
    await Supervisor(settings, ports, announce, commands).run()


class Supervisor:
    """Lives inside one event loop: make it there, then `run`."""

    def __init__(self, settings: Settings, ports: Mapping[str, int], announce: Callable[[str], None], commands: Commands) -> None:
        self._settings = settings
        self._ports = ports
        self._announce = announce
        self._asked_to_stop = asyncio.Event()
        self._ready = False
        self._failure = ""
        environment = child_environment(settings, ports)
        everything = dict(commands)
        if not settings.redis_url:
            everything["valkey"] = valkey.command(settings.socket("valkey"), settings.state / "valkey")
        logs = settings.state / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        self._all = {
            name: Supervised(name, command, environment, BoundedLog(logs / f"{name}.log"), self._ended)
            for name, command in everything.items()
        }

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup says that a lost terminal is no reason
                loop.add_signal_handler(number, self._told_to_stop)
        orphans.adopt()
        try:
            if await self._start_all():
                self._say_ready()
                self._start_beside()
                while not self._asked_to_stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._asked_to_stop.wait(), REAP_EVERY_S)
                    orphans.reap([one.pid for one in self._all.values() if one.pid is not None])
        finally:
            notify("STOPPING=1")
            await self._stop_all()
            if count := orphans.end(ORPHANS_TIMEOUT_S):
                self._announce(f"ended {count} processes that others had left behind")
        if self._failure:
            raise StartFailed(self._failure)

    def _told_to_stop(self) -> None:
        if self._asked_to_stop.is_set():  # the second time: at once
            for one in self._all.values():
                one.kill()
        self._asked_to_stop.set()

    # -- up

    async def _start_all(self) -> bool:
        """False when it was told to stop, or a process failed, before all were ready."""
        for wave in (("valkey",), *WAVES):
            members = [self._all[name] for name in wave if name in self._all]
            try:
                for one in members:
                    one.start()
            except OSError as error:
                self._failure = f"{one.name} cannot be started: {error.strerror}"
                return False
            self._note()
            timeout_s = MICROVM_START_TIMEOUT_S if self._settings.driver == "microvm" else START_TIMEOUT_S
            deadline = asyncio.get_running_loop().time() + timeout_s
            for one in members:
                while not await self._is_ready(one.name):
                    if asyncio.get_running_loop().time() > deadline:
                        self._failure = self._failure or f"{one.name} was not ready in {timeout_s:.0f} s{_last_words(one)}"
                    if self._failure or self._asked_to_stop.is_set():
                        return False
                    await asyncio.sleep(PROBE_EVERY_S)
        return not (self._failure or self._asked_to_stop.is_set())

    def _start_beside(self) -> None:
        for one in [self._all[name] for name in BESIDE if name in self._all]:
            try:
                one.start()
            except OSError as error:
                self._announce(f"{one.name} cannot be started: {error.strerror}; the rest runs")
        self._note()

    async def _is_ready(self, name: str) -> bool:
        if self._all[name].pid is None:
            return False
        if name == "valkey":
            return valkey.answers(self._settings.socket(name))
        # flow has deploys to do, which wait for it anyway: nothing that `ready` promises does
        return name == "flow" or await answers_ready(self._settings.ops_socket(name))

    def _say_ready(self) -> None:
        host = reachable(self._settings.host)
        host = f"[{host}]" if ":" in host else host
        addresses = {name: f"http://{host}:{self._ports[name]}" for name in preflight.PORTS}
        fresh = self._settings.addresses_file.with_suffix(".new")
        fresh.write_text(json.dumps(addresses))
        fresh.replace(self._settings.addresses_file)
        self._ready = True
        notify("READY=1")
        self._announce("ready  " + "  ".join(f"{name} {address}" for name, address in addresses.items()))

    # -- while it runs

    def _ended(self, one: Supervised, code: int, delay: float) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if not self._ready and one.crashes >= START_ATTEMPTS:
            self._failure = self._failure or f"{one.name} {how}, {one.crashes} times in a row{_last_words(one)}"
            return
        self._announce(f"{one.name} {how}; it starts again in {delay:.1f} s, see {one.log.path}")
        asyncio.get_running_loop().call_later(delay + 0.1, self._note)

    def _note(self) -> None:
        running = {name: one.pid for name, one in self._all.items() if one.pid is not None}
        preflight.record(preflight.processes_file(self._settings), running)

    # -- down

    async def _stop_all(self) -> None:
        for group in STOP_ORDER:
            members = [self._all[name] for name in group if name in self._all]
            stopped = await asyncio.gather(*(one.stop(STOP_TIMEOUTS_S.get(one.name, STOP_TIMEOUT_S)) for one in members))
            for one, in_time in zip(members, stopped, strict=True):
                if not in_time:
                    self._announce(f"{one.name} did not stop in time and was killed")


def child_environment(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    """The environment in which a process reads the same settings, its ports the real ones."""
    chosen = {name: getattr(settings, name) for name in settings.model_fields_set if name != "otel_endpoint"}
    chosen |= {field: ports[name] for name, field in preflight.PORTS.items()} | {"state": settings.state}
    chosen["ops_address"] = ""  # of one process; here each has its socket, and control shows them all
    kept = {name: value for name, value in os.environ.items() if name != NOTIFY_SOCKET}  # it is ours to say `ready`
    return kept | {f"FOREGLOW_{name.upper()}": str(value) for name, value in chosen.items()}


async def answers_ready(path: Path) -> bool:
    """True when GET /readyz on this operations socket is answered with 200."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: operations\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


def _last_words(one: Supervised) -> str:
    """The last line of the log that says something, shortened, and where the rest is."""
    last = next((line.strip() for line in reversed(one.log.tail)), "no output")
    return f": {last[:200]} (see {one.log.path})"

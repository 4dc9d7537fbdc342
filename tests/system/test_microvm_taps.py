"""Namespaces with a tap: quick to take, each used once, nothing answers in them, nothing of them stays."""

import asyncio
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from doubles.loop import in_loop, until
from doubles.neighbours import neighbours

from workers.drivers.microvm import taps
from workers.drivers.microvm.taps import GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, NoTap, Tap, TapPool

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

T = TypeVar("T")
VNET_HEADER = bytes(10)
CYCLES = 1000 if os.environ.get("FULL") == "1" else 150
MAC = bytes.fromhex(GUEST_MAC.replace(":", ""))


def made() -> Tap:
    """One, without a pool; this thread stays where it is."""
    return apart(taps.make_tap)


def apart(work: Callable[[], T]) -> T:
    """In a thread of its own, which may enter another namespace."""
    found: list[T | BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def in_namespace(tap: Tap, *command: str) -> str:
    entered = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{tap.namespace}", *command]
    return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


def inode(tap: Tap) -> int:
    return os.fstat(tap.namespace).st_ino


def holders(number: int) -> list[str]:
    """Descriptors, processes and mounts through which a network namespace is still there."""
    name = f"net:[{number}]"
    found, others = list[tuple[int, str]](), neighbours()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in others:
            try:
                links = [
                    entry / "ns" / "net",
                    *(entry / "fd").iterdir(),
                    *(task / "ns" / "net" for task in (entry / "task").iterdir()),
                ]
                found += [(int(entry.name), str(link)) for link in links if _leads_to(link, name)]
            except OSError:
                continue
    others |= neighbours()  # those too that came as we looked; and some have gone
    held = [link for pid, link in found if pid not in others and _leads_to(Path(link), name)]
    return held + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]


def _leads_to(link: Path, name: str) -> bool:
    try:
        return os.readlink(link) == name
    except OSError:  # gone
        return False


def say(tap: Tap, kind: int, payload: bytes, to: bytes = b"\xff" * 6) -> None:
    """As the guest's card: one Ethernet frame."""
    os.write(tap.tap, VNET_HEADER + to + MAC + struct.pack("!H", kind) + payload)


def arp_for(address: str) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return head + MAC + socket.inet_aton(GUEST_ADDRESS) + bytes(6) + socket.inet_aton(address)


def udp_to(address: str, port: int) -> bytes:
    udp = struct.pack("!HHHH", 4000, port, 8 + 4, 0) + b"ping"
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(GUEST_ADDRESS), socket.inet_aton(address)
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:] + udp


def heard(tap: Tap, seconds: float = 0.3) -> list[bytes]:
    """Every frame that comes to the guest's card."""
    frames, until_ = [], time.monotonic() + seconds
    while (left := until_ - time.monotonic()) > 0:
        if select.select([tap.tap], [], [], left)[0]:
            frames.append(os.read(tap.tap, 65536)[len(VNET_HEADER) :])
    return frames


def mac_in(tap: Tap) -> bytes:
    text = in_namespace(tap, "ip", "-o", "link", "show", taps.TAP_NAME)
    return bytes.fromhex(text.split("link/ether ")[1].split()[0].replace(":", ""))


def test_nothing_answers_a_guest_and_nothing_is_passed_on() -> None:
    with made() as tap, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind(("0.0.0.0", 0))
        host.settimeout(0.05)
        port, mac = host.getsockname()[1], mac_in(tap)
        assert in_namespace(tap, "ip", "-o", "addr").strip() == ""
        assert in_namespace(tap, "ip", "route", "show", "table", "all").strip() == ""
        assert in_namespace(tap, "ip", "-6", "route", "show", "table", "all").strip() == ""
        assert in_namespace(tap, "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
        heard(tap, 0.05)
        for address in (GUEST_GATEWAY, "127.0.0.1", "169.254.169.254", "10.0.0.1", "192.0.2.1"):
            say(tap, 0x0806, arp_for(address))
            say(tap, 0x0800, udp_to(address, port), mac)
        say(tap, 0x86DD, bytes.fromhex("6000000000003aff") + bytes(16) + bytes.fromhex("ff02" + "00" * 13 + "01"))
        assert heard(tap) == []
        with pytest.raises(TimeoutError):
            host.recv(100)


def test_this_would_be_heard_if_it_did_answer() -> None:
    with made() as tap:
        in_namespace(tap, "ip", "addr", "add", f"{GUEST_GATEWAY}/30", "dev", taps.TAP_NAME)
        say(tap, 0x0806, arp_for(GUEST_GATEWAY))
        assert any(frame[12:14] == b"\x08\x06" for frame in heard(tap))


@in_loop
async def test_each_is_another_namespace_and_taken_once() -> None:
    pool = TapPool(ahead=3)
    await pool.start()
    taken = [await pool.take() for _ in range(10)]  # more than there are: some are waited for
    try:
        assert len({inode(tap) for tap in taken}) == 10
        assert os.stat("/proc/self/ns/net").st_ino not in {inode(tap) for tap in taken}
    finally:
        for tap in taken:
            tap.close()
        await pool.close()


@in_loop
async def test_the_pool_refills_itself_up_to_its_bound() -> None:
    pool = TapPool(ahead=4)
    await pool.start()
    try:
        for _ in range(3):
            await until(lambda: pool.ready >= 4, "it is full again")
            (await pool.take()).close()
            (await pool.take()).close()
        await until(lambda: pool.ready >= 4)
        await asyncio.sleep(0.05)
        assert pool.ready == 4
    finally:
        await pool.close()


@in_loop
async def test_many_leave_no_descriptor_no_thread_and_no_namespace() -> None:
    before, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    pool = TapPool()
    await pool.start()
    numbers = []
    for _ in range(CYCLES):
        tap = await pool.take()
        numbers.append(inode(tap))
        tap.close()
        tap.close()
    await pool.close()
    await pool.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "foreglow-taps"]
    assert [holder for number in numbers[-3:] for holder in holders(number)] == []


@in_loop
async def test_one_who_gives_up_waiting_costs_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pool = TapPool(ahead=1)
    await pool.start()
    waiting = [asyncio.ensure_future(pool.take()) for _ in range(20)]
    await asyncio.sleep(0)
    for one in waiting[::2]:
        one.cancel()
    for tap in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(tap, Tap):
            tap.close()
    await until(lambda: pool.ready >= 1)
    await pool.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def take_all(pool: TapPool) -> None:
    """Those that are ready or on their way too. Raises NoTap: nothing can be made any more."""
    async with asyncio.timeout(60):
        while True:
            (await pool.take(60)).close()


@in_loop
async def test_what_cannot_be_made_is_said_by_step_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pool = TapPool(ahead=1)
    await pool.start()
    await until(lambda: pool.ready >= 1)
    monkeypatch.setattr(taps, "TUN", "/dev/net/none")
    with pytest.raises(NoTap, match="tap by /dev/net/none: No such file"):
        await take_all(pool)
    monkeypatch.undo()
    async with asyncio.timeout(60):
        while True:
            try:
                (await pool.take(60)).close()
                break
            except NoTap:
                pass
    await pool.close()
    with pytest.raises(NoTap, match="closed"):
        await pool.take()
    assert len(os.listdir("/proc/self/fd")) == before


@in_loop
async def test_a_pool_that_cannot_begin_says_so_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(taps, "TUN", "/dev/null")
    with pytest.raises(NoTap, match="tap by /dev/null: Inappropriate ioctl"):
        await TapPool().start()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_killed_owner_leaves_no_namespace() -> None:
    program = (
        "import asyncio, os, sys\n"
        "from workers.drivers.microvm.taps import TapPool\n"
        "async def main():\n"
        "    pool = TapPool(); await pool.start(); tap = await pool.take()\n"
        "    print(os.fstat(tap.namespace).st_ino, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        number = int(owner.stdout.readline())
        assert holders(number)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
    assert holders(number) == []

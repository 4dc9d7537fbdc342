"""A function that attacks from inside its sandbox. Deployed as it is: standard library only, nothing of ours.

`besiege`: connections and datagrams by any way a program has of sending them, at places where it must not come. `tamper`: every
way of changing its own network that a program may try, each in a child of its own, which looks afterwards whether it got
anywhere. Events name what to do under `do`; the answers are numbers and names, for the test to judge.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import selectors
import socket
import struct
import threading
import time

ROUND = 200
MARK, TRANSPARENT, FREEBIND, BIND_DEVICE, IP_OPTIONS, PKTINFO = 36, 19, 15, 25, 4, 8
NEWUTS, NEWNET, NEWUSER, NEWNS = 0x04000000, 0x40000000, 0x10000000, 0x00020000
UNSHARE, SETNS, BPF, MOUNT, CLONE = 272, 308, 321, 165, 56
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
REQUEST, ACK, CREATE, DUMP = 0x1, 0x4, 0x400, 0x300
LOOPBACK = 1


def handler(event, context):
    return {"besiege": besiege, "tamper": tamper, "greet": greet, "begin": begin, "end": end}[event["do"]](
        **event.get("with", {})
    )


# -- what may be reached


def greet(host, port, timeout_s=5.0):
    """Who answers there; empty: nobody."""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            return connection.recv(100).split(b" ")[0].decode()
    except OSError:
        return ""


# -- attempts


def besiege(places, sources, count, seed, wait_s=0.25):
    """`count` attempts, in rounds. {"made": as many, "answered": [how and where]}"""
    chance, found = random.Random(seed), []
    made = 0
    while made < count:
        chosen = [chance.choice(places) for _ in range(min(ROUND, count - made))]
        found += _round(chosen, sources, chance, wait_s)
        made += len(chosen)
    return {"made": made, "answered": found}


def _round(chosen, sources, chance, wait_s):
    answered = []
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as opened:
        for place in map(tuple, chosen):
            how = chance.choice(list(WAYS))
            with contextlib.suppress(OSError):
                sock = WAYS[how](place, sources, chance)
                opened.callback(sock.close)
                waiting.register(sock, selectors.EVENT_READ, (how, place))
        until = time.monotonic() + wait_s
        while waiting.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                with contextlib.suppress(OSError):
                    if key.fileobj.recv(2048):
                        answered.append([key.data[0], *key.data[1]])
                waiting.unregister(key.fileobj)
    return answered


def _stream():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def _datagrams():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return sock


def connected(place, sources, chance):
    sock = _stream()
    sock.connect_ex(place)
    return sock


def told(place, sources, chance):
    sock = _datagrams()
    sock.sendto(b"who are you", place)
    return sock


def as_somebody(place, sources, chance):
    """From an address that is not its own, which needs no right at all."""
    sock = _stream()
    sock.setsockopt(socket.SOL_IP, FREEBIND, 1)
    sock.bind((chance.choice(sources), 0))
    sock.connect_ex(place)
    return sock


def told_as_somebody(place, sources, chance):
    sock = _datagrams()
    sock.setsockopt(socket.SOL_IP, FREEBIND, 1)
    sock.bind((chance.choice(sources), 0))
    sock.sendto(b"forged", place)
    return sock


def told_with_a_source(place, sources, chance):
    """The source beside the datagram."""
    sock = _datagrams()
    sock.setsockopt(socket.SOL_IP, FREEBIND, 1)
    said = struct.pack("@i4s4s", 0, socket.inet_aton(chance.choice(sources)), bytes(4))
    sock.sendmsg([b"forged"], [(socket.SOL_IP, PKTINFO, said)], 0, place)
    return sock


def by_a_device(place, sources, chance):
    sock = _stream()
    name = chance.choice([name for _, name in socket.if_nameindex()])
    sock.setsockopt(socket.SOL_SOCKET, BIND_DEVICE, name.encode())
    sock.connect_ex(place)
    return sock


def routed_by_the_source(place, sources, chance):
    """By way of a server it may reach (RFC 791, loose source route)."""
    sock = _stream()
    by = socket.inet_aton(sources[0])
    sock.setsockopt(socket.SOL_IP, IP_OPTIONS, b"\x83\x07\x04" + by + b"\x01")
    sock.connect_ex(place)
    return sock


def marked(place, sources, chance):
    sock = _stream()
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, MARK, chance.getrandbits(31))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_IP, TRANSPARENT, 1)
    sock.connect_ex(place)
    return sock


def raw(place, sources, chance):
    """A datagram with a header of its own, and an echo request."""
    kind = chance.choice([socket.IPPROTO_RAW, socket.IPPROTO_ICMP])
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, kind)
    except OSError:
        sock, kind = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), socket.IPPROTO_ICMP
    sock.setblocking(False)
    if kind == socket.IPPROTO_ICMP:
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 1 - 1, 1, 1), (place[0], 0))
    else:
        datagram = struct.pack("!HHHH", 9, place[1], 14, 0) + b"forged"
        source, target = socket.inet_aton(chance.choice(sources)), socket.inet_aton(place[0])
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0, source, target)
        sock.sendto(header + datagram, (place[0], 0))
    return sock


def by_ipv6(place, sources, chance):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex((f"::ffff:{place[0]}", place[1]))
    return sock


WAYS = {
    "connect": connected, "datagram": told, "somebody": as_somebody, "datagram as somebody": told_as_somebody,
    "datagram with a source": told_with_a_source, "device": by_a_device, "source route": routed_by_the_source, "mark": marked,
    "raw": raw, "ipv6": by_ipv6,
}  # fmt: skip


# -- a siege beside other invocations of the same sandbox

_siege = {}


def begin(places, sources, seed, wait_s=0.25):
    """Attempts from now on, until `end`."""
    _siege.update(stop=threading.Event(), made=0, answered=[])

    def go_on():
        chance = random.Random(seed)
        while not _siege["stop"].is_set():
            chosen = [chance.choice(places) for _ in range(ROUND)]
            _siege["answered"] += _round(chosen, sources, chance, wait_s)
            _siege["made"] += len(chosen)

    _siege["thread"] = threading.Thread(target=go_on, daemon=True)
    _siege["thread"].start()
    return True


def end(least):
    """After `least` attempts."""
    until = time.monotonic() + 60
    while _siege["made"] < least and time.monotonic() < until:
        time.sleep(0.01)
    _siege["stop"].set()
    _siege["thread"].join(20)
    return {"made": _siege["made"], "answered": _siege["answered"]}


# -- its own network


def tamper(places, sources, address):
    """{trick: [what came of it ("" when it was done), what was answered afterwards]}. `address`: somebody else's."""
    return {name: _apart(trick, places, sources, address) for name, trick in TRICKS.items()}


def _apart(trick, places, sources, address):
    """In a child; the parent's network is the one that it tampers with all the same."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = ["", []]
        try:
            trick(address)
        except Exception as error:
            said[0] = f"{type(error).__name__}: {error}"[:200]
        try:
            said[1] = _round(places, sources, random.Random(1), 0.1)
        finally:
            os.write(writing, json.dumps(said).encode()[:60_000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told_us:
        said = told_us.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else ["it died", []]


def _call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _netlink(protocol, kind, flags, body):
    """One request; raises OSError with what the kernel says to it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(2)
        sock.bind((0, 0))
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | ACK | flags, 1, 0) + body)
        answer = sock.recv(65536)
        if struct.unpack_from("=H", answer, 4)[0] == 2:
            code = struct.unpack_from("=i", answer, 16)[0]
            if code:
                raise OSError(-code, os.strerror(-code))


def _attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _cards():
    return [index for index, name in socket.if_nameindex() if name != "lo"] or [LOOPBACK]


def another_address(address):
    body = struct.pack("=BBBBI", 2, 32, 0, 0, _cards()[0])
    body += _attribute(2, socket.inet_aton(address)) + _attribute(1, socket.inet_aton(address))
    _netlink(NETLINK_ROUTE, 20, CREATE, body)


def another_route(address):
    body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 0, 1, 0) + _attribute(4, struct.pack("=I", _cards()[0]))
    _netlink(NETLINK_ROUTE, 24, CREATE, body)


def everything_local(address):
    body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 255, 4, 254, 2, 0) + _attribute(4, struct.pack("=I", LOOPBACK))
    _netlink(NETLINK_ROUTE, 24, CREATE, body)


def another_neighbour(address):
    body = struct.pack("=BBHiHBB", 2, 0, 0, _cards()[0], 0x80, 0, 0)
    body += _attribute(1, socket.inet_aton(address)) + _attribute(2, bytes(6))
    _netlink(NETLINK_ROUTE, 28, CREATE, body)


def card_down_and_up(address):
    for flags in (0, 1):
        _netlink(NETLINK_ROUTE, 16, 0, struct.pack("=BxHiII", 0, 0, _cards()[0], flags, 1))


def card_to_the_first_process(address):
    body = struct.pack("=BxHiII", 0, 0, _cards()[0], 0, 0) + _attribute(19, struct.pack("=I", 1))
    _netlink(NETLINK_ROUTE, 16, 0, body)


def another_card(address):
    kind = _attribute(18, _attribute(1, b"dummy"))
    _netlink(NETLINK_ROUTE, 16, CREATE, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _attribute(3, b"extra\0") + kind)


def another_policy(address):
    body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)
    _netlink(NETLINK_ROUTE, 32, CREATE, body)


def no_filter(address):
    """Deletes every table of nftables, in one transaction (nfnetlink's batch)."""
    head = struct.pack("=BBH", 0, 0, socket.htons(10))
    batch = struct.pack("=IHHII", 20, 16, REQUEST, 0, 0) + head
    words = _attribute(1, b"foreglow\0")
    for family in (1, 2):
        batch += struct.pack("=IHHII", 20 + len(words), (10 << 8) | 2, REQUEST | ACK, 1, 0)
        batch += struct.pack("=BBH", family, 0, 0) + words
    batch += struct.pack("=IHHII", 20, 17, REQUEST, 2, 0) + head
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(2)
        sock.send(batch)
        answer = sock.recv(65536)
        code = struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(-code, os.strerror(-code))


def connections_of_all(address):
    _netlink(NETLINK_NETFILTER, (1 << 8) | 2, 0, struct.pack("=BBH", 2, 0, 0))


def own_namespace(address):
    _call(UNSHARE, NEWNET)


def own_user_and_namespace(address):
    _call(UNSHARE, NEWUSER | NEWNET)


def own_mounts(address):
    _call(UNSHARE, NEWUSER | NEWNS | NEWNET)
    _call(MOUNT, b"none", b"/sys", b"sysfs", 0, None)


def cloned_apart(address):
    """By the other call that makes namespaces."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(CLONE, NEWUSER | NEWNET | 17, 0, 0, 0, 0)
    if found == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if found == 0:
        os._exit(0)
    os.waitpid(found, 0)


def another_namespace(address):
    """Into that of any process, by any descriptor it can see: the node's, the router's, a neighbour's."""
    own, error = os.readlink("/proc/self/ns/net"), OSError(2, "there is no other")
    for folder in ("/run/netns", "/var/run/netns", *(f"/proc/{name}/ns" for name in os.listdir("/proc") if name.isdigit())):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                path = f"{folder}/{name}"
                if (name != "net" and "netns" not in folder) or os.readlink(path) == own:
                    continue
                try:
                    with open(path, "rb") as there:
                        _call(SETNS, there.fileno(), NEWNET)
                    return
                except OSError as refused:
                    error = refused
    for name in os.listdir("/proc/self/fd"):
        try:
            _call(SETNS, int(name), NEWNET)
            return
        except OSError as refused:
            error = refused
    raise error


def packets_of_others(address):
    socket.socket(17, socket.SOCK_RAW, socket.htons(3)).close()


def virtual_sockets(address):
    socket.socket(40, socket.SOCK_STREAM).connect((2, 1024))


def raw_socket(address):
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()


def transparent(address):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_IP, TRANSPARENT, 1)


def the_listener_of_the_node(address):
    """Where a backend may listen in the sandbox itself: stolen connections would be others' too."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 1))


def a_tap(address):
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"extra", 0x1002))


def a_program_in_the_kernel(address):
    _call(BPF, 5, ctypes.create_string_buffer(128), 128)


def by_ioctl(address):
    """Address, flags, route and neighbour the old way."""
    _, name = max((index, name) for index, name in socket.if_nameindex())
    family = struct.pack("=HH4s8x", 2, 0, socket.inet_aton(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8916, struct.pack("16s", name.encode()) + family + bytes(8))


def forwarding(address):
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as setting:
        setting.write("1")


def source_routes_accepted(address):
    with open("/proc/sys/net/ipv4/conf/all/accept_source_route", "w", encoding="ascii") as setting:
        setting.write("1")


def descriptors_of_the_first_process(address):
    """Sockets that somebody left open for it."""
    kept = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            sock = socket.socket(fileno=os.dup(int(name)))
            if sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
                kept.append(sock)
    if not kept:
        raise OSError(2, "none is open")


TRICKS = {
    trick.__name__: trick
    for trick in (
        another_address, another_route, everything_local, another_neighbour, card_down_and_up, card_to_the_first_process,
        another_card, another_policy, no_filter, connections_of_all, own_namespace, own_user_and_namespace, own_mounts,
        cloned_apart, another_namespace, packets_of_others, virtual_sockets, raw_socket, transparent, the_listener_of_the_node,
        a_tap, a_program_in_the_kernel, by_ioctl, forwarding, source_routes_accepted, descriptors_of_the_first_process,
    )
}  # fmt: skip

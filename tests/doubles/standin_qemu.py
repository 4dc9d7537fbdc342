#!/usr/bin/python3 -IS
"""Stands in for QEMU where a test needs what no real guest can be made to do: a first process, or a QEMU, taken over.

Speaks the monitor's protocol and the guest's frames as far as the driver does; runs no function, answers every invocation with
its payload. What it does wrong, and when, it reads from `behaviour` beside it: one word, for clones only, from then on.
"""

import json
import os
import re
import socket
import struct
import sys
import threading
import time

HEADER = struct.Struct("!BBHIII")
SPECIALISE, INVOKE, CALL_RESULT = 1, 2, 3
READY, RESULT, CALL = 17, 18, 20
ACTIVATE, RENEW, COUNT, HOLD = 33, 35, 36, 37
STANDING, OUTPUT, EXIT, COUNTED, ASK_CLOCK, FROZEN = 49, 50, 51, 52, 53, 54

line = " ".join(sys.argv)
clone = "-incoming" in sys.argv
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "behaviour"), encoding="ascii") as file:
    behaviour = file.read().strip() if clone else ""


def end(name):
    number = int(re.search(rf"socket,id={name},fd=(\d+)", line)[1])
    return socket.socket(fileno=number)


monitor, channel, init = end("monitor"), end("port1"), end("port2")
lock = threading.Lock()


def say(port, kind, meta, body=b"", ident=0, flags=0):
    text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    with lock:
        port.sendall(HEADER.pack(kind, flags, 0, ident, len(text), len(body)) + text + body)


def whole(port, size):
    found = b""
    while len(found) < size:
        chunk = port.recv(size - len(found))
        if not chunk:
            os._exit(0)
        found += chunk
    return found


def frames(port):
    while True:
        kind, _, _, ident, meta, body = HEADER.unpack(whole(port, HEADER.size))
        yield kind, ident, whole(port, meta), whole(port, body)


def hear_init():
    for kind, ident, _, _ in frames(init):
        if kind == RENEW:
            say(init, STANDING, {})
        elif kind == HOLD and behaviour != "does not hold":
            say(init, FROZEN, {"frozen": True})
        elif kind == COUNT:
            say(init, COUNTED, {"memory_bytes": 1 << 20, "processes": 1}, ident=ident)


def hear_channel():
    for kind, ident, meta, body in frames(channel):
        if kind == SPECIALISE:
            if behaviour == "never ready":
                continue
            if behaviour == "dies at code":
                os._exit(9)
            say(channel, READY, {"init_ms": 0.1})
            misbehave()
        elif kind == INVOKE:
            if b"exercise" in meta:
                say(channel, CALL, {"invocation": ident, "function": "exercise", "content_type": "application/json"}, body, ident)
            else:
                say(channel, RESULT, {"content_type": "application/json"}, body, ident)
        elif kind == CALL_RESULT:
            say(channel, RESULT, {"content_type": "application/json"}, body, ident)


def for_ever(work):
    def run():
        while True:
            work()

    threading.Thread(target=run, daemon=True).start()


def misbehave():
    """As soon as it is an instance."""
    if behaviour == "floods init":
        for_ever(lambda: say(init, OUTPUT, {"stream": "out"}, b"x" * 60000))
    elif behaviour == "floods small":
        small = HEADER.pack(OUTPUT, 0, 0, 0, 2, 0) + b"{}"
        for_ever(lambda: init.sendall(small * 4000))
    elif behaviour == "breaks init":
        init.sendall(b"\xff" * 64)
    elif behaviour == "lies on init":
        for meta in (b"[]", b"{", b'{"memory_bytes":"many","processes":-1}', b'{"memory_bytes":1e999}', b"null", b""):
            say(init, COUNTED, meta)
    elif behaviour == "counts without end":
        say(init, COUNTED, {"memory_bytes": 10**400, "processes": 10**400})
    elif behaviour == "asks the time":
        for_ever(lambda: say(init, ASK_CLOCK, {}))
    elif behaviour == "exits in words":
        say(init, EXIT, {"code": "zero", "signal": "none"})
    elif behaviour == "stands again":
        for _ in range(1000):
            say(init, STANDING, {})
    elif behaviour == "floods the monitor":
        for_ever(lambda: monitor.sendall(b'{"event":"X","data":{}}\n' * 2000))
    elif behaviour == "nonsense on the monitor":
        monitor.sendall(b'{"event":\n')
    elif behaviour == "a line without an end":
        for_ever(lambda: monitor.sendall(b"x" * 65536))
    elif behaviour == "hangs up on the monitor":
        monitor.shutdown(socket.SHUT_RDWR)
    elif behaviour == "floods its words":
        for_ever(lambda: os.write(1, b"x" * 65536))
    elif behaviour == "sends descriptors":
        for _ in range(50):
            socket.send_fds(monitor, [b"\n"], [0, 1, 2])
            socket.send_fds(init, [HEADER.pack(OUTPUT, 0, 0, 0, 2, 0) + b"{}"], [0, 1, 2])
    elif behaviour == "closes its ports":
        for port in (channel, init):
            port.shutdown(socket.SHUT_RDWR)


def answer(**what):
    with lock:
        monitor.sendall(json.dumps(what).encode() + b"\r\n")


def hear_monitor():
    answer(QMP={"version": {}, "capabilities": []})
    if behaviour == "says nothing":
        time.sleep(600)
    buffer, held = b"", -1
    while True:
        chunk, found, _, _ = socket.recv_fds(monitor, 65536, 4)
        if not chunk:
            os._exit(0)
        held = found[0] if found else held
        buffer += chunk
        while b"\n" in buffer:
            text, _, buffer = buffer.partition(b"\n")
            command = json.loads(text)
            name, told = command["execute"], {}
            if name == "migrate":
                os.write(held, b"state")
            elif name == "query-migrate":
                told = "completed" if behaviour == "tells its state in words" else {"status": "completed"}
            elif name == "query-cpus-fast":
                told = [{"thread-id": os.getpid()}]
            if name == "migrate-incoming" and behaviour == "refuses the state":
                answer(id=command["id"], error={"class": "GenericError", "desc": "State blob is of another machine"})
                continue
            if name == "migrate-incoming" and behaviour == "dies at the state":
                sys.stderr.write("qemu: Unknown savevm section\n")
                sys.stderr.flush()
                os._exit(1)
            answer(id=command["id"], **{"return": told})
            if name == "migrate-incoming" and behaviour != "never resumes":
                answer(event="RESUME", data={})
            if name == "query-cpus-fast" and behaviour == "dies as it runs":
                os._exit(7)


if not clone:
    threading.Timer(0.05, lambda: say(init, STANDING, {})).start()
threading.Thread(target=hear_init, daemon=True).start()
threading.Thread(target=hear_channel, daemon=True).start()
hear_monitor()

"""Both ends of the guest protocol know the same numbers and the same bytes; neither imports the other."""

import json
import socket
import struct
import threading

import pytest

from workers import framing
from workers.drivers.frames import FromGuest, FromInit, ToGuest, ToInit
from workers.guest import microvm, runtime

GOLDEN = {
    ToGuest.SPECIALISE: (1, {"version": "acme/shop:3", "handler": "app:main"}, b""),
    ToGuest.INVOKE: (2, {"invocation": "00f1", "deadline_s": 2.5}, b'{"sku":7}'),
    ToGuest.CALL_RESULT: (3, {"status": "ok"}, b"[]"),
    ToGuest.CANCEL: (4, {}, b""),
    ToGuest.PING: (5, {}, b""),
    FromGuest.READY: (17, {"init_ms": 1.25}, b""),
    FromGuest.RESULT: (18, {"content_type": "application/json"}, b"null"),
    FromGuest.ERROR: (19, {"type": "KeyError", "message": "'a'", "stack": ""}, b""),
    FromGuest.CALL: (20, {"invocation": 2, "function": "price", "asynchronous": False}, b"{}"),
    FromGuest.LOG: (21, {"stream": "out"}, b"hello\n"),
    FromGuest.PONG: (22, {}, b""),
    FromGuest.CANCEL_CALL: (23, {}, b""),
}


@pytest.mark.parametrize("kind", [*ToGuest, *FromGuest], ids=lambda kind: kind.name)
def test_every_kind_has_its_golden_bytes_on_both_ends(kind: ToGuest | FromGuest) -> None:
    number, meta, body = GOLDEN[kind]
    assert kind == number == getattr(runtime, kind.name)
    encoded = json.dumps(meta).encode()
    golden = bytes([number, 0, 0, 0]) + struct.pack(">III", 0x01020304, len(encoded), len(body)) + encoded + body
    assert framing.encode(kind, 0x01020304, encoded, body) == golden
    assert sent_by_guest(kind, 0x01020304, encoded, body) == golden


def test_a_microvms_first_process_knows_the_same_numbers() -> None:
    kinds = {kind.name: kind.value for kind in [*ToInit, *FromInit]}
    assert {name: getattr(microvm, name) for name in kinds} == kinds
    everything = [*ToGuest, *FromGuest, *ToInit, *FromInit]
    assert len({int(kind) for kind in everything}) == len(everything)


def test_the_golden_header_is_spelled_out() -> None:
    frame = framing.encode(ToGuest.INVOKE, 1, b"{}", b"xyz", framing.MORE)
    assert frame.hex() == "02010000" + "00000001" + "00000002" + "00000003" + "7b7d" + "78797a"
    assert sent_by_guest(runtime.INVOKE, 1, b"{}", b"xyz", runtime.MORE) == frame


def test_both_ends_have_the_same_limits_and_names() -> None:
    assert runtime.HEADER.format == framing.HEADER.format
    assert (runtime.MORE, runtime.MAX_META, runtime.MAX_BODY) == (framing.MORE, framing.MAX_META, framing.MAX_BODY)
    names = {kind.name for kind in [*ToGuest, *FromGuest]}
    numbers = {name: value for name, value in vars(runtime).items() if name in names}
    assert len(set(numbers.values())) == len(names)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 1 << 20])
def test_what_the_node_sends_the_guest_reads(size: int) -> None:
    node, guest = socket.socketpair()
    body = bytes(range(256)) * (size // 256 + 1)
    frames = [
        framing.encode(ToGuest.INVOKE, 7, b'{"invocation":"a"}', body[:size]),
        framing.encode(ToGuest.PING, 9),
        framing.encode(ToGuest.INVOKE, 8, b"{}", b"last"),
    ]
    with node, guest:
        sender = threading.Thread(target=node.sendall, args=(b"".join(frames),))
        sender.start()
        channel = runtime.Channel(guest)
        assert channel.wait(channel.next_invocation) == (runtime.INVOKE, 0, 7, b'{"invocation":"a"}', body[:size])
        assert channel.wait(channel.next_invocation) == (runtime.INVOKE, 0, 8, b"{}", b"last")
        sender.join()
        assert list(framing.FrameParser().feed(node.recv(64))) == [framing.Frame(FromGuest.PONG, 0, 9, b"", b"")]


def sent_by_guest(kind: int, ident: int, meta: bytes, body: bytes, flags: int = 0) -> bytes:
    node, guest = socket.socketpair()
    with node, guest:
        runtime.Channel(guest).send(kind, ident, meta, body, flags)
        return node.recv(1 << 16)

"""Peers that speak the protocol's first words by hand, for what they then do wrong."""

import asyncio

import msgspec

from workers.framing import FrameParser, encode
from workers.rpc.connection import proof
from workers.rpc.messages import Hello, Rpc, Welcome

NONCE = "0" * 32


def hello_frame(hello: Hello) -> bytes:
    """The hello of a process that has the secret."""
    shown = msgspec.structs.replace(hello, secret=proof(hello.secret, "hello", NONCE), nonce=NONCE)
    return encode(Rpc.HELLO, 0, msgspec.msgpack.encode(shown))


async def welcome_frame(reader: asyncio.StreamReader, secret: str, name: str) -> bytes:
    """Reads the hello; what a listener with the secret answers to it."""
    parser = FrameParser()
    while True:
        for frame in parser.feed(await reader.read(1 << 16)):
            hello = msgspec.msgpack.decode(frame.meta, type=Hello)
            welcome = Welcome(name, secret=proof(secret, "welcome", hello.nonce))
            return encode(Rpc.WELCOME, 0, msgspec.msgpack.encode(welcome))

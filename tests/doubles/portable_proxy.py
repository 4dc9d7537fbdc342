"""A proxy of the portable backend as a program: `FOLDER ADDRESS:PORT`. FOLDER has its certificate; each line on its input is
JSON, the Vpcs it serves from then on."""

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog
import uvloop

from workers.network.portable.proxy import PortableProxy
from workers.networks import VpcSpec
from workers.rpc.transport import Identity, Peer, parse_address

REFUSED_NODE = "n-refused"
"""A node with a good certificate that no Vpc is for."""

OWN = {"n-acme": "acme/main"}
"""Nodes that may use one Vpc only."""


def admit(peer: Peer, vpc: str) -> str:
    may = peer.name != REFUSED_NODE and OWN.get(peer.name, vpc) == vpc
    return "" if may else f"{peer.name} may not use {vpc}"


async def main(folder: Path, address: str) -> None:
    proxy = PortableProxy(admit)
    at = parse_address(address)
    assert not isinstance(at, Path)
    await proxy.start([at], Identity(folder / "node.key", folder / "node.pem", folder / "ca.pem"))
    lines = asyncio.StreamReader(1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        proxy.use(msgspec.json.decode(line, type=list[VpcSpec]))
        print("told", flush=True)
    await proxy.stop()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))

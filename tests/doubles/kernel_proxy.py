"""A proxy of the kernel backend as a program: `NAME FOLDER`. Each line on its input is JSON, what it is told; it answers with its
states once it has done so."""

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from workers.network.kernel.endpoint import NodePlace
from workers.network.kernel.proxy import KernelProxy
from workers.networks import VpcSpec


class Told(msgspec.Struct):
    """One line."""

    specs: list[VpcSpec]
    nodes: list[NodePlace]


async def main(name: str, folder: Path) -> None:
    proxy = KernelProxy(name, folder / "state")
    await proxy.start()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        told = msgspec.json.decode(line, type=Told)
        await proxy.use(told.specs, told.nodes)
        print(msgspec.json.encode(proxy.states()).decode(), flush=True)
    await proxy.stop()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))

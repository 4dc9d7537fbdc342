"""Makes one sandbox and tells how isolated it is: `python -m orchestrator.doctor.sandbox FOLDER PYTHON`, a process of its own."""

import asyncio
import sys
from pathlib import Path

import msgspec

from workers.drivers.process.isolation import enter_user_namespace


async def _probe(folder: Path, python: str) -> None:
    from workers.drivers.process.driver import ProcessDriver

    driver = ProcessDriver(folder, python, True)
    try:
        report = await driver.start()
    finally:
        await driver.stop()
    sys.stdout.buffer.write(msgspec.json.encode(report))


if __name__ == "__main__":
    enter_user_namespace()  # with one thread, as a node does
    from workers.ports import DriverError

    try:
        asyncio.run(_probe(Path(sys.argv[1]), sys.argv[2]))
    except (DriverError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)

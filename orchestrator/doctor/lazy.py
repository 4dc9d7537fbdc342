"""Whether large packages can be started lazily: `python -m orchestrator.doctor.lazy FOLDER`.

A process of its own that mounts as a node does. Prints why not, nothing when it works.
"""

import asyncio
import sys
from pathlib import Path

from workers.drivers.process.isolation import enter_user_namespace
from workers.mounts import enter_private_mounts


async def _probe(folder: Path) -> str:
    from workers.code.lazy.mounts import LazyMounts

    return await LazyMounts(folder).probe()


if __name__ == "__main__":
    if not enter_user_namespace():
        enter_private_mounts()
    print(asyncio.run(_probe(Path(sys.argv[1]))))

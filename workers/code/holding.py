"""The layers that a node holds: where each lies, for which function it came, what is in doubt, what goes.

Bounds and pins are workers.code.room's, the folder workers.code.shelf's, deleting workers.code.sweeping's.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.code.room import Bounds, Room
from workers.code.shelf import Key, Shelf
from workers.code.sweeping import Sweeper
from workers.code.tally import CodeTally


class Holding:
    """`quiet(for_s, at_most_s)` returns when nobody has waited for code for a while. All but `put` lives in one event loop."""

    def __init__(self, folder: Path, bounds: Bounds, tally: CodeTally, quiet: Callable[[float, float], None]) -> None:
        self._tally = tally
        self._shelf = Shelf(folder)
        self._room = Room(bounds, self._evicted)
        self._paths: dict[Key, Path] = {}
        self._owners: dict[Key, str] = {}  # the function that a layer came for; others may share it
        self._doubtful: set[Key] = set()  # here, and to be verified before their first use
        self._sweeper = Sweeper(self._shelf, quiet)
        for found in self._shelf.open():
            self._keep(found.key, found.path, found.size)
            if found.doubtful:
                self._doubtful.add(found.key)

    def __len__(self) -> int:
        return len(self._room)

    @property
    def bytes_held(self) -> int:
        return self._room.bytes_held

    def bytes_of(self, tenant: str) -> int:
        """What lies here, or is on its way, of one tenant."""
        return self._room.bytes_of(tenant)

    def has(self, key: Key) -> bool:
        """It is here, and not in doubt."""
        return key in self._paths and key not in self._doubtful

    def doubts(self, key: Key) -> bool:
        """It is here, and was not safely on the disk when the machine went down."""
        return key in self._doubtful

    def path(self, key: Key) -> Path | None:
        """Where it lies; None: it is not here (any more)."""
        return self._paths.get(key)

    # -- what stays

    def use(self, keys: Sequence[Key]) -> None:
        """A start wants them now."""
        for key in keys:
            if self.has(key):
                self._room.use(key)

    def pin(self, keys: Sequence[Key]) -> None:
        """Here or yet to come, they stay until as many `unpin`."""
        self._room.pin(keys)

    def unpin(self, keys: Sequence[Key]) -> None:
        self._room.unpin(keys)

    # -- what comes

    def reserved(self, key: Key, size: int, urgent: bool) -> contextlib.AbstractContextManager[None]:
        """`size` bytes count as taken while the layer is on its way; others go for it. Raises NoRoom."""
        return self._room.reserved(key, size, urgent)

    def put(self, key: Key, write: Callable[[Path], None]) -> Path:
        """Has `write` fill a folder, which is the layer's when it returns. Blocking, called from threads. Raises what that
        raises; nothing is left then."""
        temporary = self._shelf.begin(key)
        try:
            write(temporary)
            return self._shelf.keep(temporary, key)
        except BaseException:
            self._shelf.sweep(temporary)
            raise

    def keep(self, key: Key, path: Path, size: int, function: str) -> None:
        """It is here now, `size` bytes of the disk, for this function."""
        self._keep(key, path, size)
        self._owners[key] = function

    def trust(self, key: Key, path: Path) -> None:
        """It was verified: no doubt is left."""
        self._paths[key] = self._shelf.trust(path, key)
        self._doubtful.discard(key)

    def _keep(self, key: Key, path: Path, size: int) -> None:
        self._paths[key] = path
        self._room.keep(key, size)

    # -- what goes

    def drop(self, key: Key) -> None:
        """For another reason than room."""
        self._room.drop(key)
        self._sweep(key)

    def free(self, size: int) -> int:
        """The disk is full: as much as possible of `size` goes. Returns how much; see `deleted`."""
        return self._room.free(size)

    async def deleted(self) -> None:
        """Until what went is off the disk, after a bound at most."""
        await self._sweeper.wait()

    async def forget(self, tenant: str) -> None:
        """Every layer of the tenant goes, pinned or not, and its folder."""
        for key in self._room.keys_of(tenant):
            self.drop(key)
        await self._sweeper.forget(tenant)

    def close(self) -> None:
        """What went is deleted."""
        self._sweeper.close()

    def _evicted(self, key: Key, size: int, why: str) -> None:
        self._tally.evicted(self._owners.get(key, ""), why, size)
        self._sweep(key)

    def _sweep(self, key: Key) -> None:
        self._doubtful.discard(key)
        self._owners.pop(key, None)
        self._sweeper.sweep(self._paths.pop(key))

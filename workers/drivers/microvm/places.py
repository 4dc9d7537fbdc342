"""What machines take up on the host: users nobody else is, control groups, network namespaces."""

import asyncio
import os
from pathlib import Path

from workers.drivers.limits import Cgroups, detect, name_of, sweep
from workers.drivers.microvm.confinement import Confinement
from workers.drivers.microvm.machine import Place
from workers.drivers.microvm.taps import NoTap, TapPool
from workers.ports import DriverError

STOP_TIMEOUT_S = 10.0


class Places:
    """Methods run on the event loop; what blocks runs in threads."""

    def __init__(self, folder: Path, confinement: Confinement) -> None:
        self._folder = folder
        self.cgroups: Cgroups | None = None
        self._confinement = confinement
        self._taps: TapPool | None = None
        self._background: set[asyncio.Future[bool]] = set()

    @property
    def network(self) -> bool:
        return self._taps is not None

    @property
    def privileged(self) -> bool:
        return self._confinement.privileged

    def yielding_doors(self) -> list[str]:
        """Of a group that weighs less than the node's, where there is one: for what it starts beside machines."""
        return self.cgroups.shared_doors if self.cgroups is not None else []

    async def open(self, network: bool) -> list[str]:
        """Sweeps what a dead predecessor left; what was refused, one line each. `network`: guests are to have a card. Raises
        OSError, DriverError."""
        loop = asyncio.get_running_loop()
        refused = await loop.run_in_executor(None, self._open_cgroups)
        refused += await loop.run_in_executor(None, self._confinement.open)
        if not network:
            return refused
        taps = TapPool()
        try:
            await taps.start()
            self._taps = taps
        except (NoTap, TimeoutError) as error:
            refused.append(f"network: none, the guests have no network card ({error or 'timed out'})")
        return refused

    def _open_cgroups(self) -> list[str]:
        layout = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        name = name_of(self._folder, os.getpid())
        sweep(layout, name)
        self.cgroups = Cgroups(layout, name)
        refused = self.cgroups.open()
        self.cgroups.own_weight()
        return refused

    async def take(self, limit_mb: int) -> Place:
        """Raises DriverError, with nothing taken."""
        place = Place(self._confinement, self._confinement.take_user())
        try:
            if self.cgroups is not None and self.cgroups.usable:
                place.cell = self.cgroups.take(limit_mb, 0)
            if self._taps is not None:
                place.tap = await self._taps.take()
        except (OSError, NoTap, TimeoutError) as error:
            self.give_back(place)
            raise DriverError(f"a place for a microVM: {error or 'no network namespace in time'}") from error
        except BaseException:
            self.give_back(place)
            raise
        return place

    def give_back(self, place: Place) -> None:
        """Its machine has gone."""
        self._confinement.give_back_user(place.user)
        if place.tap is not None:
            place.tap.close()
        if place.cell is not None and self.cgroups is not None:
            future = asyncio.get_running_loop().run_in_executor(None, self.cgroups.give_back, place.cell)
            self._background.add(future)
            future.add_done_callback(self._background.discard)

    async def close(self) -> None:
        while self._background:
            done, _ = await asyncio.wait(self._background, timeout=STOP_TIMEOUT_S)
            if not done:
                break
        if self._taps is not None:
            await self._taps.close()
            self._taps = None
        if self.cgroups is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.cgroups.close)
        self._confinement.close()

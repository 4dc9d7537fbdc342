"""Recorded load: calls a minute of 250 functions over 8 hours of a working day, as Azure counted them."""

import csv
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

FOLDER = "load-azure2019-250x8h"
SOURCE = (
    "Azure Functions 2019 (github.com/Azure/AzurePublicDataset), the sample of 250 functions and minutes 480 to 959 published in "
    "github.com/eth-easl/dirigent at 143f50a349db, scripts/invitro_traces/samples/250"
)
SHA256 = {
    "invocations.csv": "c55b87e0fa7f7e43dfd71d351544641264da7b4929afd68b20163e4490c9bd0c",
    "durations.csv": "eb111cf27ea1ae725cffe20c68a762619315d3d5f321807ede629cf53da3e3dd",
}
MINUTE_S = 60.0


class LoadMissing(Exception):
    """The recorded load is not here, or not the one that is meant; the message says what to get."""


@dataclass(frozen=True)
class Loaded:
    """One function: who owns it, its calls in each minute, and how long one takes on average."""

    owner: str
    minutes: tuple[int, ...]
    duration_s: float

    @property
    def calls(self) -> int:
        return sum(self.minutes)


def read() -> list[Loaded]:
    """From the folder that FOREGLOW_DATA names. Raises LoadMissing."""
    told = os.environ.get("FOREGLOW_DATA", "")
    if not told:
        raise LoadMissing(f"FOREGLOW_DATA names no folder that holds {FOLDER}/: {SOURCE}")
    return read_from(Path(told) / FOLDER)


def read_from(folder: Path, checksums: dict[str, str] = SHA256) -> list[Loaded]:
    """Raises LoadMissing."""
    for name, wanted in checksums.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise LoadMissing(f"{folder / name}: {error.strerror}; it is {SOURCE}") from error
        if found != wanted:
            raise LoadMissing(f"{folder / name} has the SHA-256 {found[:16]}, not {wanted[:16]}: {SOURCE}")
    with (folder / "durations.csv").open(newline="") as file:
        ms = {row["HashFunction"]: float(row["Average"]) for row in csv.DictReader(file)}
    with (folder / "invocations.csv").open(newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return [Loaded(row[0], tuple(int(one or 0) for one in row[4:]), ms.get(row[2], 0.0) / 1000) for row in rows]

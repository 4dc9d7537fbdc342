"""Were the probabilities right? Each prediction beside what came, before anything was learned from it (prequential). Pure.

Reliability in 10 bins of equal mass; the error is the mean distance of predicted and observed, weighed by mass (ECE), the score
Brier's: the mean of (p - outcome)**2.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

BINS = 10
KEPT = 4096
"""Predictions remembered; older ones make room."""

_PAIR = np.dtype([("predicted", "<f4"), ("came", "u1")])


class Bin(msgspec.Struct, frozen=True):
    """A tenth of the predictions, those nearest to each other: their mean, how often it came, how many, lowest and highest."""

    predicted: float
    observed: float
    count: int
    low: float
    high: float


class Calibration(msgspec.Struct, array_like=True):
    """A ring of the latest predictions with their outcomes, as packed bytes: it travels in snapshots as it is."""

    packed: bytearray = msgspec.field(default_factory=bytearray)
    written: int = 0

    def add(self, predicted: float, came: bool) -> None:
        """One function of one run: the reach predicted at its start (Evidence.reach, Skipped.reach), and whether it was called.

        Raises ValueError for a probability outside 0 to 1.
        """
        if not 0.0 <= predicted <= 1.0:
            raise ValueError(f"predicted: {predicted!r} is not between 0 and 1")
        pair = np.array([(predicted, came)], _PAIR).tobytes()
        at = self.written % KEPT * len(pair)
        self.packed[at : at + len(pair)] = pair
        self.written += 1

    def bins(self, count: int = BINS) -> list[Bin]:
        """By rising prediction. Equal predictions are never split: a bin ends with the last of them, so there may be fewer."""
        held = np.sort(np.frombuffer(bytes(self.packed), _PAIR), order=["predicted", "came"])
        if not len(held):
            return []
        predicted, came = held["predicted"].astype(np.float64), held["came"].astype(np.float64)
        ends = np.searchsorted(predicted, predicted[_cuts(len(held), count) - 1], side="right")
        found, start = [], 0
        for end in dict.fromkeys(ends.tolist()):
            part = slice(start, end)
            low, high = float(predicted[start]), float(predicted[end - 1])
            found.append(Bin(float(predicted[part].mean()), float(came[part].mean()), end - start, low, high))
            start = end
        return found

    def error(self) -> float | None:
        """The expected calibration error; None without predictions."""
        found = self.bins()
        total = sum(one.count for one in found)
        return sum(one.count * abs(one.predicted - one.observed) for one in found) / total if total else None

    def brier(self) -> float | None:
        """None without predictions."""
        held = np.frombuffer(bytes(self.packed), _PAIR)
        return float(((held["predicted"].astype(np.float64) - held["came"]) ** 2).mean()) if len(held) else None


def merged(parts: Sequence[Calibration]) -> Calibration:
    """All of them as one, for a tenant or the platform; the last KEPT of each together, for reading only."""
    return Calibration(bytearray(b"".join(bytes(one.packed) for one in parts)), sum(one.written for one in parts))


def _cuts(held: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.maximum(np.round(np.arange(1, count + 1) * held / count).astype(np.intp), 1)

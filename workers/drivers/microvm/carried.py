"""A function's code as a guest takes it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Carried:
    """`files`, `body` and `disks` as ACTIVATE has them; `paths`: where the layers are in the guest. `descriptors` of the
    disks' images, in order; its owner closes it."""

    files: Sequence[tuple[str, int, int]] = ()
    body: bytes = b""
    paths: Sequence[str] = ()
    disks: Sequence[tuple[str, str]] = ()
    descriptors: Sequence[int] = ()

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

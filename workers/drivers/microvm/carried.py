"""A function's code as a guest takes it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Carried:
    """`files`, `body` and `disks` as ACTIVATE has them; `paths`: where the layers are in the guest. `images`: (number of a disk,
    descriptor of what is to be in it), to be inserted before the guest is activated, and, since it goes on reading, before a
    clone of a function template runs. They are the holder's: `close` when done."""

    files: Sequence[tuple[str, int, int]] = ()
    body: bytes = b""
    paths: Sequence[str] = ()
    disks: Sequence[tuple[str, str]] = ()
    images: Sequence[tuple[int, int]] = ()

    def close(self) -> None:
        for _, descriptor in self.images:
            os.close(descriptor)

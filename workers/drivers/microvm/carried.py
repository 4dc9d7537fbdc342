"""A function's code as a guest takes it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Carried:
    """`files`, `body` and `disks` as ACTIVATE has them; `paths`: where the layers are in the guest."""

    files: Sequence[tuple[str, int, int]] = ()
    body: bytes = b""
    paths: Sequence[str] = ()
    disks: Sequence[tuple[str, str]] = ()

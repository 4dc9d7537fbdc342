"""The guest image: a kernel and an initramfs, made from Debian packages by an ordinary user, the same bytes from the same packages."""

from collections.abc import Callable
from pathlib import Path

import msgspec

OVERHEAD_MB = 128
"""What a machine needs beside its function's memory: kernel, initramfs, the first process."""


class ImageError(Exception):
    """No image could be made; the message says which step failed and the way out."""


class GuestImage(msgspec.Struct, frozen=True):
    """`kernel`: an ELF file with a PVH entry. `digest` covers both files. `python`: version of the guest's interpreter, "3.11"."""

    kernel: Path
    initramfs: Path
    digest: str
    python: str


def build(folder: Path, progress: Callable[[str], None], fresh: bool = False) -> GuestImage:
    """The image in `folder`, made when it is not there. `fresh`: asks for the newest packages; else those it was last made of
    are good. One at a time per folder, others wait. Raises ImageError."""
    raise NotImplementedError


def find(folder: Path) -> GuestImage | None:
    """The image `build` made in `folder`, when it is whole and of this version of Foreglow. Asks nobody, takes microseconds."""
    raise NotImplementedError

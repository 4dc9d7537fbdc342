"""A package of real wheels: what this environment's lock installed of DISTRIBUTIONS, file by file, as a user's dependencies would
be; without their bytecode, which publishing compiles anew."""

import shutil
from importlib.metadata import distribution
from pathlib import Path

DISTRIBUTIONS = ("numpy",)
"""numpy's shared libraries are what makes packages large: half of its 60 MB are in two files."""


def write(folder: Path, number: int) -> int:
    """The files below `folder`, which must not be there, and one that makes each `number` another package; the bytes written."""
    written = 0
    for name in DISTRIBUTIONS:
        for file in distribution(name).files or ():
            source = Path(str(file.locate()))
            if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written += target.stat().st_size
    (folder / "entry.py").write_text(f"import numpy\n\nNUMBER = {number}\n")
    return written

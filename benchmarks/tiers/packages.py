"""Packages that look like real ones to a compressor and to a disk, made from a seed: modules, and data beside them.

Modules are functions of words drawn by a Zipf law from a vocabulary, with docstrings and arithmetic: with zstd they come to about
a quarter of their size, as the standard library's do. Data stand for shared libraries and models: blocks drawn from a pool, three
of ten new, of bytes that are not equally likely; they come to 0.3, as numpy's libraries do. Every module can be imported.
"""

import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

MODULE_BYTES = 12 << 10
DATA_BYTES = 2 << 20
BLOCK = 256
POOL = 512
NEW_SHARE = 0.3
NEAR = 40.0
"""How unequal the blocks of the pool are: the mean number drawn."""

SKEWED = bytes(round(255 * (value / 255) ** 3) for value in range(256))
SOURCES = 0.57
"""Of a module and its bytecode, what the source takes."""

FOLDERS = 40
ENTRY = "entry"


@dataclass(frozen=True)
class Shape:
    """`size` is that of the layer: what the user sends, and bytecode. `modules`: the part of it that is Python and its
    bytecode, about half and half. `touched`: the part of the layer that a start imports or reads."""

    name: str
    size: int
    modules: float
    touched: float = 1.0


SHAPES = (
    Shape("10 KB", 10 << 10, 1.0),
    Shape("1 MB", 1 << 20, 1.0),
    Shape("20 MB", 20 << 20, 0.25),
    Shape("200 MB", 200 << 20, 0.02, touched=0.05),
)
WHEELS = Shape("numpy", 60 << 20, 0.3)
"""Not made here: see benchmarks.tiers.wheels."""


class Words:
    """One vocabulary for all packages of a run."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        parts = ["ab", "re", "con", "tra", "ser", "ial", "ize", "node", "path", "val", "get", "set", "col", "ump", "in", "dex"]
        self.words = sorted({"".join(source.choices(parts, k=source.randint(2, 4))) for _ in range(3000)})
        self.weights = list(accumulate(1 / (rank + 4) for rank in range(len(self.words))))

    def draw(self, source: random.Random, count: int) -> list[str]:
        return source.choices(self.words, cum_weights=self.weights, k=count)


def write(folder: Path, shape: Shape, seed: int, words: Words) -> int:
    """The package's files below `folder`, which must not be there; the bytes written. With bytecode they come to about the
    shape's size.

    `entry.py` has a handler; importing it imports modules and reads data up to the shape's touched part.
    """
    source = random.Random(f"{shape.name} {seed}")
    folder.mkdir(parents=True)
    touched = round(shape.size * shape.touched)
    modules: list[str] = []
    data: list[str] = []
    written = 0
    wanted = round(shape.size * shape.modules * SOURCES)
    while written < wanted:
        number = len(modules)
        name = f"package{number % FOLDERS}/module{number}.py" if wanted > MODULE_BYTES else f"module{number}.py"
        written += _put(folder / name, _module(source, words, min(MODULE_BYTES, wanted - written)).encode())
        modules.append(name)
    imported = round(len(modules) * min(1.0, shape.touched / shape.modules)) if wanted else 0
    total = wanted + round(shape.size * (1 - shape.modules))
    read = max(0, touched - round(shape.size * shape.modules)) if shape.touched < 1 else total
    pool = [_block(source) for _ in range(POOL)]
    while written < total:
        name = f"data/part{len(data)}.bin"
        written += _put(folder / name, _data(source, pool, min(DATA_BYTES, total - written)))
        data.append(name)
    names = [name.removesuffix(".py").replace("/", ".") for name in source.sample(modules, imported)]
    _put(folder / f"{ENTRY}.py", _entry(names, source.sample(data, min(len(data), -(-read // DATA_BYTES)))).encode())
    return written


def _put(path: Path, content: bytes) -> int:
    path.parent.mkdir(exist_ok=True, parents=True)
    return path.write_bytes(content)


def _module(source: random.Random, words: Words, size: int) -> str:
    lines = [f'"""{" ".join(words.draw(source, 9)).capitalize()}."""\n\n']
    length = 0
    while length < size - 200:
        a, b, c = words.draw(source, 3)
        d = f"{c}_{source.choice('abcdefgh')}"
        text = (
            f"def {a}_{b}({c}, {d}=None):\n"
            f'    """{" ".join(words.draw(source, source.randint(6, 18)))}."""\n'
            f"    # {' '.join(words.draw(source, 12))}:\n    # {' '.join(words.draw(source, 11))}.\n"
            f"    if {d} is None:\n"
            f"        {d} = {{{c!r}: {source.randrange(10_000)}, {a!r}: {source.random():.4f}}}\n"
            f"    {b} = {c} * len({d}) + {source.randrange(100)}  # {' '.join(words.draw(source, 6))}\n"
            f"    return {b}, {d}.get({words.draw(source, 1)[0]!r}, {c})\n\n\n"
        )
        lines.append(text)
        length += len(text)
    return "".join(lines)


def _data(source: random.Random, pool: list[bytes], size: int) -> bytes:
    blocks = []
    for _ in range(-(-size // BLOCK)):
        new = source.random() < NEW_SHARE
        blocks.append(_block(source) if new else pool[min(POOL - 1, int(source.expovariate(1 / NEAR)))])
    return b"".join(blocks)[:size]


def _block(source: random.Random) -> bytes:
    return source.randbytes(BLOCK).translate(SKEWED)


def _entry(modules: list[str], data: list[str]) -> str:
    imports = "".join(f"import {name}\n" for name in modules)
    return (
        f"from pathlib import Path\n\n{imports}\n"
        f"HERE = Path(__file__).parent\nREAD = sum(len((HERE / name).read_bytes()) for name in {data!r})\n\n\n"
        'def handler(event, context):\n    return {"read": READ}\n'
    )

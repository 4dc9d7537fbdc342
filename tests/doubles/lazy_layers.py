"""Layers for tests of lazy starts, and a source of their chunks that a test holds back, breaks and counts."""

import asyncio
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from workers.code.chunks import chunk_name
from workers.code.layers import Source, lay_out, read_chunks
from workers.code.manifest import Chunk, Manifest

KEY = b"k" * 32


class Layer:
    """`files`: path -> content. `read` is what LazyMounts asks for chunks."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        sources = [Source(path, path.endswith(".sh"), len(content), _opener(content)) for path, content in files.items()]
        ordered, laid, cuts = lay_out(sources)
        self.plain = {chunk_name(KEY, plain): plain for plain in read_chunks(ordered, cuts)}
        names = [chunk_name(KEY, plain) for plain in read_chunks(ordered, cuts)]
        self.manifest = Manifest(laid, tuple(Chunk(name, len(self.plain[name])) for name in names))
        self.asked: Counter[str] = Counter()
        self.broken: dict[str, Exception] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.passed: set[str] = set()  # come although the gate is closed

    def chunks_of(self, path: str) -> list[str]:
        """Names of the chunks that hold a file."""
        (file,) = (file for file in self.manifest.files if file.path == path)
        return [self.manifest.chunks[span.index].name for span in self.manifest.spans(file.offset, file.size)]

    async def read(self, chunk: Chunk) -> bytes:
        self.asked[chunk.name] += 1
        if chunk.name not in self.passed:
            await self.open.wait()
        if chunk.name in self.broken:
            raise self.broken[chunk.name]
        return self.plain[chunk.name]


def _opener(content: bytes):  # type: ignore[no-untyped-def]
    return lambda: io.BytesIO(content)


def mounted_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]

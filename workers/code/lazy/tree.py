"""A layer's tree as a file system answers for it: numbered nodes, and which chunks hold which bytes. Standard library only."""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from workers.code.lazy import fuse

ROOT = 1


class Node:
    """`start`: of a file's bytes in the layer's content. `names`: of a folder, in order; None: a file."""

    __slots__ = ("attributes", "names", "size", "start")

    def __init__(self, size: int, start: int, names: dict[bytes, int] | None) -> None:
        self.size = size
        self.start = start
        self.names = names
        self.attributes = b""


class Tree:
    """`files`: (path, mode, size, offset in the layer's content); folders follow from the paths. `owner`: user and group."""

    def __init__(self, files: Iterable[tuple[str, int, int, int]], owner: tuple[int, int]) -> None:
        self._owner = owner
        self._nodes: list[Node] = []
        self.size = 0
        self._folder()
        folders: dict[str, Node] = {"": self.node(ROOT)}
        for path, mode, size, offset in files:
            parent, _, name = path.rpartition("/")
            folder = folders.get(parent) or self._folders(folders, parent)
            _enter(folder, name, self._add(Node(size, offset, None), mode), path)
            self.size += size
        for node in self._nodes:
            if node.names:
                node.names = dict(sorted(node.names.items()))

    def node(self, number: int) -> Node:
        """Raises IndexError for a number the kernel was never told."""
        if number < ROOT:
            raise IndexError(number)
        return self._nodes[number - ROOT]

    def find(self, parent: int, name: bytes) -> int:
        """0: no such name."""
        names = self.node(parent).names
        return names.get(name, 0) if names is not None else 0

    def __len__(self) -> int:
        return len(self._nodes)

    def listing(self, number: int, offset: int, room: int, plus: bool) -> bytes:
        """What fits into `room` bytes of a folder's names from the `offset`-th on; `plus`: with the attributes of each."""
        node = self.node(number)
        assert node.names is not None
        lines: list[bytes] = []
        entries = itertools.chain(((b".", number), (b"..", number)), node.names.items())
        for at, (name, found) in enumerate(itertools.islice(entries, offset, None), offset + 1):
            line = fuse.listed(found, name, at, self.node(found).names is not None)
            if plus:  # "." and ".." are not looked up: node 0
                line = (fuse.entry(found, self.node(found).attributes) if at > 2 else fuse.NO_SUCH_ENTRY) + line
            room -= len(line)
            if room < 0:
                break
            lines.append(line)
        return b"".join(lines)

    def _folders(self, folders: dict[str, Node], path: str) -> Node:
        parent, _, name = path.rpartition("/")
        above = folders.get(parent) or self._folders(folders, parent)
        number = self._folder()
        _enter(above, name, number, path)
        folders[path] = self.node(number)
        return folders[path]

    def _folder(self) -> int:
        return self._add(Node(0, 0, {}), 0o755)

    def _add(self, node: Node, mode: int) -> int:
        self._nodes.append(node)
        number = len(self._nodes) - 1 + ROOT
        node.attributes = fuse.attributes(number, mode, node.size, self._owner, node.names is not None)
        return number


def _enter(folder: Node, name: str, number: int, path: str) -> None:
    assert folder.names is not None
    if folder.names.setdefault(name.encode(), number) != number:
        raise ValueError(f"{path!r}: a file and a folder of one name")


class Cuts:
    """Where the chunks of a layer begin, from their sizes in order."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.starts = list(itertools.accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, offset: int, size: int) -> range:
        """The chunks that hold the `size` bytes at `offset`."""
        end = min(offset + size, self.starts[-1])
        if size <= 0 or offset >= end:
            return range(0)
        return range(bisect_right(self.starts, offset) - 1, bisect_right(self.starts, end - 1))

"""Debian's kernel as QEMU's microvm machine starts it: the ELF file inside the bzImage, and the modules a guest needs.

Layout of a bzImage: Documentation/arch/x86/boot.rst in the kernel's sources (setup_sects at 0x1f1, magic at 0x202,
payload_offset and payload_length at 0x248 and 0x24c, both since protocol 2.08).
"""

import ctypes
import ctypes.util
import gzip
import lzma
import re
import struct
from collections.abc import Mapping

import zstandard

MODULES = ("virtio_mmio", "virtio_console", "virtio-rng", "virtio_blk", "virtio_net", "erofs", "crc32c_generic")
"""What is loaded in every guest, with what these depend on. crc32c_generic: erofs asks for it by the name of what it does."""

_LZ4_MAGIC, _LZ4_BLOCK = 0x184C2102, 8 << 20
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
MAX_KERNEL = 256 << 20


class KernelError(Exception):
    """The kernel package is not what it should be; the message says how."""


def vmlinux(image: bytes) -> bytes:
    """The ELF file inside the bzImage. Raises KernelError."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS" or int.from_bytes(image[0x206:0x208], "little") < 0x208:
        raise KernelError("the kernel is no bzImage of boot protocol 2.08 or later")
    setup = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) != length:
        raise KernelError("the kernel is cut short")
    kernel = _decompressed(payload)
    if kernel[:4] != b"\x7fELF":
        raise KernelError("what the kernel holds is no ELF file")
    if b"Xen\0" not in kernel:
        raise KernelError("the kernel has no PVH entry (CONFIG_PVH): QEMU's microvm machine cannot start it")
    return kernel


def _decompressed(payload: bytes) -> bytes:
    magic = payload[:4]
    try:
        if magic == _LZ4_MAGIC.to_bytes(4, "little"):
            return _lz4(payload)
        if magic == b"\x28\xb5\x2f\xfd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
        if magic[:2] == b"\x1f\x8b":
            return gzip.decompress(payload[:-4])
        if magic == b"\xfd7zX":
            return lzma.LZMADecompressor().decompress(payload, MAX_KERNEL)
    except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError, ValueError) as error:
        raise KernelError(f"the kernel cannot be decompressed: {error}") from error
    raise KernelError(f"the kernel is compressed in a way not known here (it begins with {magic.hex()})")


def _lz4(payload: bytes) -> bytes:
    """The legacy LZ4 frame: blocks of 8 MiB, each after its compressed length; the kernel's build adds the size at the end.
    The library is there wherever apt is, which is linked to it."""
    name = ctypes.util.find_library("lz4") or "liblz4.so.1"
    decompress = ctypes.CDLL(name).LZ4_decompress_safe
    decompress.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    room = ctypes.create_string_buffer(_LZ4_BLOCK)
    parts: list[bytes] = []
    at, end = 4, len(payload) - 4
    while at + 4 <= end:
        length = int.from_bytes(payload[at : at + 4], "little")
        if length == _LZ4_MAGIC:  # frames may follow one another
            at += 4
            continue
        block = payload[at + 4 : at + 4 + length]
        size = decompress(block, room, len(block), _LZ4_BLOCK)
        if size < 0 or len(block) != length:
            raise ValueError("damaged LZ4 block")
        parts.append(room.raw[:size])
        at += 4 + length
    return b"".join(parts)


def in_order(modules: Mapping[str, bytes], wanted: tuple[str, ...] = MODULES) -> list[str]:
    """Names of the modules to load, each after what it depends on (its own `depends=`). `modules`: by name, every file the
    package has. Those built into the kernel are in no file: left out. Raises KernelError when a dependency is missing."""
    order: list[str] = []

    def visit(name: str) -> None:
        key = name.replace("-", "_")
        if key in order:
            return
        found = _DEPENDS.search(modules[key])
        for needed in found[1].decode().split(",") if found and found[1] else ():
            if needed.replace("-", "_") not in modules:
                raise KernelError(f"module {name} needs {needed}, which the kernel package lacks")
            visit(needed)
        order.append(key)

    for name in wanted:
        if name.replace("-", "_") in modules:
            visit(name)
    return order

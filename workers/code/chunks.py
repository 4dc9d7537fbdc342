"""A chunk: up to CHUNK_BYTES of a layer's content, named by an HMAC under its tenant's key, stored as checksum and zstd frame.

The name tells nobody without the key what the chunk holds, so that nobody can ask an origin or a zone whether a tenant has
some known content. Who has the key checks a chunk by its name; who only stores it checks it by its checksum.
"""

import hashlib
import hmac
import threading

import zstandard

from workers.code.manifest import CHUNK_BYTES, LayerError

__all__ = ["CHUNK_BYTES", "chunk_key", "chunk_name", "intact", "pack", "unpack"]

CHECKSUM_BYTES = 32
MAX_STORED_BYTES = CHECKSUM_BYTES + CHUNK_BYTES + (8 << 10)
"""What no chunk is larger than, stored; a frame of content that does not compress is a little larger than the content."""

COMPRESSION_LEVEL = 3
_of_thread = threading.local()


def chunk_key(cluster_key: bytes, tenant: str) -> bytes:
    """The key of one tenant's chunk names, 32 bytes; it tells nothing of the cluster's key or of another tenant's."""
    return hmac.digest(cluster_key, b"foreglow chunks " + tenant.encode(), "sha256")


def chunk_name(key: bytes, plain: bytes) -> str:
    """64 hex digits; equal content of one tenant has one name."""
    return hmac.digest(key, plain, "sha256").hex()


def pack(plain: bytes) -> bytes:
    """The chunk as it is stored: SHA-256 of the frame, then the frame. At most MAX_STORED_BYTES."""
    frame = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(plain)
    return hashlib.sha256(frame).digest() + frame


def intact(stored: bytes) -> bool:
    """True when nothing has changed in it since it was packed: what a holder without the key can know."""
    view = memoryview(stored)
    return CHECKSUM_BYTES < len(stored) <= MAX_STORED_BYTES and hmac.compare_digest(
        hashlib.sha256(view[CHECKSUM_BYTES:]).digest(), view[:CHECKSUM_BYTES]
    )


def unpack(key: bytes, name: str, stored: bytes) -> bytes:
    """The content. Raises LayerError unless it is what the name says. Never makes more than CHUNK_BYTES of it.

    The name tells more than the checksum does, which is looked at only to say what is wrong: it took a tenth of the time.
    """
    try:
        if not CHECKSUM_BYTES < len(stored) <= MAX_STORED_BYTES:
            raise LayerError(f"{len(stored)} bytes")
        frame = memoryview(stored)[CHECKSUM_BYTES:]
        # asked first: the decompressor would reserve whatever a frame claims to hold
        if not 0 <= zstandard.frame_content_size(frame) <= CHUNK_BYTES:
            raise LayerError(f"a frame of unknown size or over {CHUNK_BYTES} bytes")
        plain = _decompressor().decompress(frame, allow_extra_data=False)
        if not hmac.compare_digest(chunk_name(key, plain), name):
            raise LayerError("its content is another one's")
    except (LayerError, zstandard.ZstdError) as error:
        why = error if intact(stored) else "its checksum does not match, it was damaged on its way or where it lies"
        raise LayerError(f"chunk {name[:12]}: {why}") from error
    return plain


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's: making one took as long as a fifth of a chunk."""
    found: zstandard.ZstdDecompressor | None = getattr(_of_thread, "decompressor", None)
    if found is None:
        found = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return found

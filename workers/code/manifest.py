"""The identity of a layer: which paths it may hold, and the digest over what it does hold.

The digest is `sha256:` + hex over the sorted manifest, one `mode digest path` a file.
"""

import hashlib

import msgspec

MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255


class LayerError(ValueError):
    """The tree or the archive breaks a rule of layers; the message names the path and the rule."""


class LayerFile(msgspec.Struct, frozen=True, array_like=True):
    """`mode` is 0o644 or 0o755, `digest` the hex SHA-256 of the content."""

    path: str
    mode: int
    digest: str


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a layer holds, sorted by path; `size` is the sum of the files' bytes."""

    files: tuple[LayerFile, ...]
    size: int

    @property
    def digest(self) -> str:
        lines = b"".join(f"{file.mode:o} {file.digest} {file.path}\0".encode() for file in self.files)
        return "sha256:" + hashlib.sha256(lines).hexdigest()

    def holds_module(self, module: str) -> bool:
        """True when `module` (dotted) could be imported from this layer: source, package or extension."""
        stem = module.replace(".", "/")
        return any(
            file.path in (f"{stem}.py", f"{stem}/__init__.py") or (file.path.startswith(f"{stem}.") and file.path.endswith(".so"))
            for file in self.files
        )


encode_manifest = msgspec.json.Encoder().encode
decode_manifest = msgspec.json.Decoder(Manifest).decode


def hex_of(digest: str) -> str:
    """The hex part of `sha256:...`. Raises LayerError: what is not a digest never becomes a path."""
    kind, _, hexadecimal = digest.partition(":")
    if kind != "sha256" or len(hexadecimal) != 64 or not set(hexadecimal) <= set("0123456789abcdef"):
        raise LayerError(f"not a layer digest: {digest[:80]!r}")
    return hexadecimal


def check_path(path: str) -> str:
    """`path` when it is a relative path in its shortest form; raises LayerError naming what is wrong with it."""
    shown = repr(path[:120])
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise LayerError(f"{shown}: the name is not UTF-8") from None
    if not path or len(encoded) > MAX_PATH_BYTES:
        raise LayerError(f"{shown}: a path has 1 to {MAX_PATH_BYTES} bytes")
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        raise LayerError(f"{shown}: control characters in the name")
    if "\\" in path or path.startswith("/") or path[1:2] == ":":
        raise LayerError(f"{shown}: the path must be relative, with forward slashes")
    for component in path.split("/"):
        if component in ("", ".", ".."):
            raise LayerError(f"{shown}: empty, '.' or '..' component in the path")
        if len(component.encode()) > MAX_COMPONENT_BYTES:
            raise LayerError(f"{shown}: a component is over {MAX_COMPONENT_BYTES} bytes")
    return path

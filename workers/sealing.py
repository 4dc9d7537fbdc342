"""Environment values at rest and in flight: sealed with the installation's key, opened only where an instance starts."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet, InvalidToken


class SealError(ValueError):
    """The sealed bytes were not made with this key."""


class Sealer:
    """AES-128-CBC with HMAC-SHA256 (Fernet). `key` is 32 url-safe base64-encoded bytes."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)

    def seal(self, environment: Mapping[str, str]) -> bytes:
        """Empty stays empty, so that a spec without environment needs no key."""
        return self._fernet.encrypt(msgspec.json.encode(environment)) if environment else b""

    def open(self, sealed: bytes) -> dict[str, str]:
        """Raises SealError; the message never holds a value."""
        if not sealed:
            return {}
        try:
            return msgspec.json.decode(self._fernet.decrypt(sealed), type=dict[str, str])
        except InvalidToken as error:
            raise SealError("the environment was sealed with another key") from error


def load_key(path: Path) -> bytes:
    """The key in `path` (0600), made at first use, whole or not at all, whoever else makes it then. Raises OSError."""
    if not path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
        try:
            os.link(aside, path)  # fails when another process was first: its key counts
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    return path.read_bytes().strip()

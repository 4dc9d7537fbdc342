"""What an earlier run left and this one stands on: whole, or the start ends with a line that says which file, and what to do.

Starting anyway would replace what somebody still has a copy of, or lose it without a word.
"""

import re
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.fernet import Fernet

from orchestrator.preflight import NotPossible
from orchestrator.settings import Settings

BUSY_S = 5.0
TOKEN = re.compile(rb"[!-~]{20,256}\s*")
"""What may be the admin key: one word, long enough not to be guessed."""


def check_keys(settings: Settings) -> None:
    """The sealing key and the admin key, where they are there. Raises NotPossible."""
    sealing, admin = _read(settings.key_file), _read(settings.admin_key_file)
    if sealing is not None:
        try:
            Fernet(sealing.strip())
        except ValueError:
            raise NotPossible(
                f"{settings.key_file} is not a sealing key: put your copy of it back; without it the environments of all "
                "functions are lost, and only then remove it: a new one is made"
            ) from None
    if admin is not None and admin.strip() and not TOKEN.fullmatch(admin):
        raise NotPossible(f"{settings.admin_key_file} is not a key: put your copy of it back, or remove it: a new one is made")


def check_database(settings: Settings) -> None:
    """SQLite's own check of the file, where it is one and there. Raises NotPossible."""
    url = settings.effective_database_url
    path = Path(urlsplit(url).path.removeprefix("/"))
    if not url.startswith("sqlite:///") or not path.is_file() or not path.stat().st_size:
        return
    way_out = "put your copy of it back, or move it aside, with what begins with its name, to begin with an empty one"
    try:
        connection = sqlite3.connect(path, timeout=BUSY_S)
        try:
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            return  # somebody works with it
        raise NotPossible(f"{path} cannot be used ({error}): {way_out}") from error
    except sqlite3.DatabaseError as error:
        raise NotPossible(f"{path} is damaged ({error}): {way_out}") from error
    if found != ["ok"]:
        raise NotPossible(f"{path} is damaged ({' '.join(' '.join(found).split())[:200]}): {way_out}")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotPossible(f"cannot read {path}: {error.strerror}") from error

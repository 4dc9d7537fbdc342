"""Locks: requirements resolved to one version and the hashes of its files each, for the runtime's interpreter and platform."""

import re
from collections.abc import Mapping, Sequence

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from workers.code.requirements import REQUIREMENTS_FILE

MAX_LOCK = 1 << 20
_PINNED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9.!+_-]+)\Z")
_HASH = re.compile(r"--hash=(sha(?:256|384|512):[0-9a-f]+)\Z")


class LockError(ValueError):
    """It is no lock, or does not hold what was asked for; the message says why."""


class Pin(msgspec.Struct, frozen=True):
    """`name` is canonical; `hashes`: `algorithm:hex` of every file that may be installed; `why`: who asked for it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    why: str = ""


def read_lock(text: str) -> list[Pin]:
    """What `uv pip compile --generate-hashes` wrote. Raises LockError for anything that is not pinned and hashed."""
    pins: list[Pin] = []
    why: list[str] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        words = line.split()
        if line.lstrip().startswith("#"):
            if pins:
                why += [word for word in words if word not in ("#", "via")]
                told = " ".join(why).replace("-c pins.txt", "").replace("-r ", "").split()  # how it was asked is no reason
                pins[-1] = msgspec.structs.replace(pins[-1], why=" ".join(told))
            continue
        if not words:
            continue
        why = []
        pinned = _PINNED.match(words[0])
        hashes = [found[1] for word in words[1:] if (found := _HASH.match(word))]
        if pinned is None or not hashes or len(hashes) != len(words) - 1:
            raise LockError(f"not a pinned version with hashes: {line[:100]!r}")
        pins.append(Pin(canonicalize_name(pinned[1]), pinned[2], tuple(hashes)))
    return pins


def write_lock(pins: Sequence[Pin], remarks: Sequence[str] = ()) -> str:
    """As a requirements file that installs with --require-hashes."""
    lines = [f"# {remark}" for remark in remarks]
    for pin in pins:
        lines.append(" \\\n".join([f"{pin.name}=={pin.version}", *(f"    --hash={value}" for value in pin.hashes)]))
        if pin.why:
            lines.append(f"    # via {pin.why}")
    return "\n".join(lines) + "\n"


def held_to(pins: Sequence[Pin], requirements: Sequence[str], built: Mapping[str, str]) -> list[Pin]:
    """The pins with only the hashes that requirements.txt allows, where it names some (the resolver does not look at them).

    `built`: canonical name -> `sha256:hex` of the source of what was built here: the hash of that is what the user can know.
    Raises LockError when nothing is left.
    """
    wanted: dict[str, set[str]] = {}
    for line in requirements:
        plain, *hashes = line.split(" --hash=")
        try:
            name = canonicalize_name(Requirement(plain).name)
        except InvalidRequirement as error:
            raise LockError(f"{plain[:80]!r}: {str(error).splitlines()[0]}") from error
        if hashes:
            wanted.setdefault(name, set()).update(value.strip() for value in hashes)
    held: list[Pin] = []
    for pin in pins:
        asked = wanted.get(pin.name)
        if asked is None or built.get(pin.name) in asked:
            held.append(pin)
            continue
        left = tuple(value for value in pin.hashes if value in asked)
        if not left or pin.name in built:
            raise LockError(f"{pin.name}=={pin.version}: none of its files has a hash that {REQUIREMENTS_FILE} names")
        held.append(msgspec.structs.replace(pin, hashes=left))
    return held


def read_pins(text: str) -> list[str]:
    """Lines `name==version`, for constraints; from inside a sandbox, so anything else is refused. Raises LockError."""
    lines = text.split("\n")[:-1]
    for line in lines:
        if not _PINNED.match(line):
            raise LockError(f"not a pinned version: {line[:100]!r}")
    return lines

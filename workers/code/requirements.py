"""What requirements.txt may say: names, versions, markers, hashes.

No option, file, folder, URL or version control address: those would let a tenant read files of the platform's machine or
send requests from it while resolving.
"""

import hashlib
import re
from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement

REQUIREMENTS_FILE = "requirements.txt"
MAX_REQUIREMENTS = 500
_HASH = re.compile(r"\s--hash=(sha(?:256|384|512):[0-9a-f]+)")


class RequirementsError(ValueError):
    """A line was refused; the message names the line and what is accepted."""


def parse_requirements(content: bytes) -> tuple[str, ...]:
    """The lines that ask for something, in their order, comments gone, continued lines joined. Raises RequirementsError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequirementsError(f"{REQUIREMENTS_FILE} is not UTF-8") from error
    accepted: list[str] = []
    for number, line in enumerate(re.sub(r"\\\r?\n", " ", text).splitlines(), 1):
        wanted = re.sub(r"(^|\s)#.*$", "", line).strip()
        if wanted:
            accepted.append(_accept(wanted, number))
    if len(accepted) > MAX_REQUIREMENTS:
        raise RequirementsError(f"{REQUIREMENTS_FILE} has {len(accepted)} requirements, the limit is {MAX_REQUIREMENTS}")
    return tuple(accepted)


def _accept(wanted: str, number: int) -> str:
    hashes = _HASH.findall(wanted)
    plain = _HASH.sub("", wanted).strip()
    shown = f"{REQUIREMENTS_FILE} line {number}, {plain[:80]!r}"
    if plain.startswith("-"):
        raise RequirementsError(f"{shown}: options are not accepted, only names with versions")
    try:
        requirement = Requirement(plain)
    except RecursionError:
        raise RequirementsError(f"{shown}: nested too deeply") from None
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise RequirementsError(f"{shown}: {reason}; only names with versions are accepted, no files or addresses") from None
    if requirement.url:
        raise RequirementsError(f"{shown}: files and addresses are not accepted, only names with versions")
    return " ".join([str(requirement), *(f"--hash={value}" for value in hashes)])


def requirements_digest(requirements: Sequence[str]) -> str:
    """Hex SHA-256 of the accepted lines: comments and spacing do not make another layer."""
    return hashlib.sha256("\n".join(requirements).encode()).hexdigest()

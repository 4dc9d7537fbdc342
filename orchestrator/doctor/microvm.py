"""What the microVM driver needs on this machine. Looked at only where it is the driver."""

import re
import shutil
import subprocess
from collections.abc import Iterator

from orchestrator.doctor.findings import Finding, fail, ok, warn
from orchestrator.settings import Settings

QEMU = "qemu-system-x86_64"
MIN_QEMU = (7, 0)
"""A disk's file can be replaced in a machine that runs (blockdev-reopen of `file`)."""
VERSION_TIMEOUT_S = 10.0


def look(settings: Settings) -> Iterator[Finding]:
    if settings.driver != "microvm":
        return
    from workers.drivers.microvm import image
    from workers.drivers.microvm.disk import PROGRAM

    yield qemu(_version(QEMU))
    found, record = image.find(settings.image_folder), image.record_of(settings.image_folder)
    yield guest_image("" if found is None else found.digest, record is not None)
    yield disks(PROGRAM, shutil.which(PROGRAM) is not None)


def qemu(version: tuple[int, int] | None) -> Finding:
    """`version` of the program on the path; None: there is none that runs."""
    if version is None:
        return fail("qemu", f"{QEMU} is not there", "Debian: apt-get install qemu-system-x86; or use the process driver")
    said = f"{QEMU} {version[0]}.{version[1]}"
    if version < MIN_QEMU:
        return fail("qemu", f"{said} is too old", f"install {MIN_QEMU[0]}.{MIN_QEMU[1]} or later")
    return ok("qemu", said)


def guest_image(digest: str, other: bool) -> Finding:
    """`digest` of the image that is good; `other`: one is there that is of another version, or damaged."""
    if digest:
        return ok("guest image", digest[:12])
    state = "is of another version, or damaged" if other else "is not made yet"
    return warn("guest image", state, "foreglow image build; else the node's next start makes it, which takes longer then")


def disks(program: str, there: bool) -> Finding:
    if there:
        return ok("code disks", "large packages are attached as disks")
    return warn("code disks", f"{program} is not there: packages above 7 MiB are refused", "Debian: apt-get install erofs-utils")


def _version(program: str) -> tuple[int, int] | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else None

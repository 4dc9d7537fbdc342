"""What the microVM driver needs on this host before a node starts: QEMU, and the guest image, made at the first start."""

import shutil
import time
from collections.abc import Callable

from orchestrator import preflight
from orchestrator.settings import Settings


def ensure(settings: Settings, say: Callable[[str], None]) -> None:
    """Does nothing with another driver, or when all is there. Raises NotPossible. Starts no thread."""
    if settings.driver != "microvm":
        return
    from workers.drivers.microvm import image
    from workers.drivers.microvm.qemu import BINARY

    if shutil.which(BINARY) is None:
        raise preflight.NotPossible(
            f"driver microvm: {BINARY} is not installed (Debian: apt-get install qemu-system-x86 erofs-utils); "
            "or use --driver process"
        )
    if image.find(settings.image_folder) is not None:
        return
    preflight.make_state_folder(settings.state)
    began = time.monotonic()
    say("making the guest image of the microVM driver, once: about ten seconds, and a download of 40 MB")
    try:
        image.build(settings.image_folder, lambda step: say(f"  {step}"))
    except image.ImageError as error:
        raise preflight.NotPossible(str(error)) from error
    say(f"guest image made in {time.monotonic() - began:.1f} s: {settings.image_folder}")

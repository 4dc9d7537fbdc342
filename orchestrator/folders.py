"""Where an installation keeps its state when nobody says. Apart from the settings: commands start without their library."""

import os
from pathlib import Path


def default_state() -> Path:
    """FOREGLOW_HOME, else the XDG state folder, for root the system's."""
    home = os.environ.get("FOREGLOW_HOME")
    if home:
        return Path(home)
    if os.geteuid() == 0:
        return Path("/var/lib/foreglow")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "foreglow"

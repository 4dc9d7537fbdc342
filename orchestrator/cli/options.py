"""Options that many commands share, and where they lead: the state folder and the settings."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failure import Failure

if TYPE_CHECKING:
    from orchestrator.settings import Settings

State = Annotated[
    Path | None, typer.Option("--state", help="State folder of the platform (else FOREGLOW_STATE, FOREGLOW_HOME, the user's).")
]
MAX_REASON = 240  # of what a setting is told that is wrong

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def state_folder(state: Path | None) -> Path:
    """The folder a client command reads addresses and key from."""
    if state is None:
        from orchestrator.folders import default_state

        named = os.environ.get("FOREGLOW_STATE")
        state = Path(named) if named else default_state()
    return state.expanduser().absolute()


def settings_with(**chosen: Any) -> "Settings":
    """Settings from the environment, under what was chosen on the command line (None: not chosen). Raises Failure."""
    from pydantic import ValidationError

    from orchestrator.settings import Settings

    try:
        return Settings(**{name: value for name, value in chosen.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "settings"
        places = f"option --{field.replace('_', '-')}, FOREGLOW_{field.upper()}"
        if field == "state":
            places += ", FOREGLOW_HOME or XDG_STATE_HOME"
        raise Failure(f"{field}: {first['msg'][:MAX_REASON]} ({places})") from error

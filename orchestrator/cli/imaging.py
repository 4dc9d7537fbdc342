"""The guest image of the microVM driver: made here, shown here."""

import time
from typing import Annotated

import typer

from orchestrator.cli.failure import Failure
from orchestrator.cli.options import Json, State, settings_with

image = typer.Typer(help="The guest image of the microVM driver.", no_args_is_help=True, rich_markup_mode=None)


@image.command("build")
def build(
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask Debian for newer packages, even when there is an image.")] = False,
    state: State = None,
    json: Json = False,
) -> None:
    """Make it of Debian packages, as any user; seconds, and a download of 40 MB the first time. The driver does it at need."""
    from orchestrator import preflight
    from orchestrator.cli import show
    from workers.drivers.microvm import image as guest

    settings = settings_with(state=state)
    console, began = show.progress_console(), time.monotonic()

    def say(step: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {show.plain(step)}", soft_wrap=True)

    try:
        preflight.make_state_folder(settings.state)
        made = guest.build(settings.image_folder, say, fresh)
    except (guest.ImageError, preflight.NotPossible) as error:
        raise Failure(str(error)) from error
    took_s = time.monotonic() - began
    if json:
        show.as_json(_document(made) | {"took_s": round(took_s, 1)})
        return
    print(f"guest image {made.digest[:12]} (Python {made.python}) in {made.kernel.parent}, {took_s:.1f} s")


@image.command("show")
def show_image(state: State = None, json: Json = False) -> None:
    """Say which image there is, where, and of which packages."""
    from orchestrator.cli import show
    from workers.drivers.microvm import image as guest

    settings = settings_with(state=state)
    found, record = guest.find(settings.image_folder), guest.record_of(settings.image_folder)
    if found is None or record is None:
        old = "is of another version of Foreglow, or damaged" if record is not None else "is not made yet"
        raise Failure(f"the guest image {old}: foreglow image build (or the first start with --driver microvm)")
    packages = {package.name: package.file.split("_")[1] for package in record.packages}
    if json:
        show.as_json(_document(found) | {"packages": packages})
        return
    console = show.console()
    print(f"digest     {found.digest}")
    print(f"python     {found.python}")
    print(f"kernel     {found.kernel} ({record.sizes[0] / 1e6:.0f} MB)")
    print(f"initramfs  {found.initramfs} ({record.sizes[1] / 1e6:.0f} MB)")
    console.print(show.table("", ("package", "version"), [(show.plain(name), show.plain(packages[name])) for name in packages]))


def _document(made: object) -> dict[str, str]:
    from workers.drivers.microvm.image import GuestImage

    assert isinstance(made, GuestImage)
    return {"digest": made.digest, "python": made.python, "kernel": str(made.kernel), "initramfs": str(made.initramfs)}

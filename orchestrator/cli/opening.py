"""The way into the live page."""

from orchestrator.cli.options import Json, State, state_folder


def open_page(state: State = None, json: Json = False) -> None:
    """Print a link that opens the live page in a browser: it works once, for a minute."""
    from orchestrator.cli import show
    from orchestrator.cli.client import Client

    with Client(state_folder(state)) as client:
        made = client.post("/v1/page/links")
        link = client.link(made["path"])
    if json:
        show.as_json({"link": link, "expires_s": made["expires_s"]})
        return
    print(link, flush=True)
    show.progress_console().print(f"works once, for {made['expires_s']:.0f} seconds", style="dim")

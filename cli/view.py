"""``maediff view``."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Thread

import click

from ._options import Command, cut_options, examples, reference_option, talk


@click.command(
    cls=Command,
    epilog=examples(
        "maediff view out", "maediff view out -r cases.csv --reader anna", "maediff view out --no-browser --port 8765"
    ),
)
@click.argument("out", type=click.Path(path_type=Path))
@reference_option(required=False)
@click.option("--reader", default="", help="Your name for rating findings; the page asks for it if it is empty.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option("--browser/--no-browser", default=True, help="Open the page in the default browser.")
@cut_options
@talk
def command(
    *, out: Path, reference: Path | None, reader: str, port: int, browser: bool, cut: dict[str, float | None]
) -> None:
    """Look at the maps of an output folder in the browser.

    OUT is the output folder of infer. The page overlays scan and anomaly map in three planes and in 3-D, with a movable
    threshold and keys to go from scan to scan and from finding to finding. Findings can be rated real, artefact or
    unsure: ratings are stored in OUT/ratings.tsv, and `maediff evaluate --ratings` summarises them. The page is served
    to this machine only, at an address with a random token, and loads nothing from the network. Ctrl-C ends it.

    With --threshold, --rate or --min-size, masks and findings follow that choice; the files in OUT are not changed.
    """
    from maediff.evaluation import Choice
    from maediff.viewer import open_viewer

    from ._console import say

    with open_viewer(out, port, reference=reference, reader=reader, choice=Choice(**cut)) as server:
        click.echo(server.url)
        say("open this address; it is served to this machine only, and Ctrl-C ends it")
        if browser:  # in a thread: a browser in a terminal would block the server
            Thread(target=webbrowser.open, args=(server.launch_url(),), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("viewer closed")

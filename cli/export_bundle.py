"""``maediff export-bundle``."""

from __future__ import annotations

from pathlib import Path

import click

from ._completion import complete_model
from ._options import Command, examples, output_option, talk


@click.command(cls=Command, epilog=examples("maediff export-bundle phantom -o bundle"))
@click.argument("model", shell_complete=complete_model)
@output_option("Folder to make; it must not exist or be empty.")
@talk
def command(*, model: str, out: Path) -> None:
    """Write a model as a MONAI Bundle.

    MODEL is a model folder, a training run, or the name of a packaged model. MONAI's own bundle command verifies and
    runs the bundle; its maps are those of `maediff infer`.
    """
    from maediff import export_bundle

    from ._console import say

    say(f"bundle: {export_bundle(model, out)}")
    say(f"next: python -m monai.bundle run --config_file {out}/configs/inference.json --bundle_root {out} ...")

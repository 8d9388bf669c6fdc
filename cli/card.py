"""``maediff card``."""

from __future__ import annotations

from pathlib import Path

import click

from ._completion import complete_model
from ._options import Command, examples, talk


@click.command(
    cls=Command,
    epilog=examples(
        'maediff card runs/first/model --metrics metrics --data "20 test patients of our site"',
        "maediff card runs/first/model --license cc-by-4.0",
    ),
)
@click.argument("model", shell_complete=complete_model)
@click.option("--metrics", type=click.Path(path_type=Path), help="What evaluate wrote: its folder or metrics.json.")
@click.option("--data", help="What was measured on, such as the name of a data set; needed with --metrics.")
@click.option("--license", "licence", help="Of the weights: an SPDX identifier in small letters, such as cc-by-4.0.")
@talk
def command(*, model: str, metrics: Path | None, data: str | None, licence: str | None) -> None:
    """Put measured results or a licence into a model's card.

    MODEL is a model folder or a training run. The results must be those of this very model. The card is README.md of
    the model folder and covered by the model's hash, which changes: infer into an earlier folder computes again.
    """
    from maediff import document_model

    from ._console import say

    say(f"card written; model hash: {document_model(model, metrics=metrics, data=data, licence=licence)}")

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
        'maediff card runs/first/model --finds "large tumours on FLAIR" --misses "lesions below 1 ml"',
    ),
)
@click.argument("model", shell_complete=complete_model)
@click.option("--metrics", type=click.Path(path_type=Path), help="What evaluate wrote: its folder or metrics.json.")
@click.option("--data", help="What was measured on, such as the name of a data set; needed with --metrics.")
@click.option("--license", "licence", help="Of the weights: an SPDX identifier in small letters, such as cc-by-4.0.")
@click.option("--trained-on", help="What the model learned from, in words; reports and sidecars repeat it.")
@click.option("--finds", help="What it has been shown to find, in words; else its measured results.")
@click.option("--misses", help="What it is known to miss or was not tried on, in words.")
@talk
def command(*, model: str, metrics: Path | None, data: str | None, licence: str | None, **scope: str | None) -> None:
    """Put results, a licence, or what a model is for into its card.

    MODEL is a model folder or a training run. The results must be those of this very model. The card is README.md of
    the model folder and covered by the model's hash, which changes: infer into an earlier folder computes again.
    """
    from maediff import document_model

    from ._console import say

    say(f"card written; model hash: {document_model(model, metrics=metrics, data=data, licence=licence, **scope)}")

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
@click.option("--metrics", type=click.Path(path_type=Path), help="Results of evaluate: its folder or metrics.json.")
@click.option("--data", help="Data of the measurement, such as the name of a data set; needed with --metrics.")
@click.option("--license", "licence", help="Of the weights: an SPDX identifier in lower case, such as cc-by-4.0.")
@click.option("--trained-on", help="Training data, in words; reports and sidecars repeat it.")
@click.option("--finds", help="What the model has been shown to find, in words; by default its measured results.")
@click.option("--misses", help="What the model is known to miss or was not tested on, in words.")
@talk
def command(*, model: str, metrics: Path | None, data: str | None, licence: str | None, **scope: str | None) -> None:
    """Add measured results, a licence or a description of its use to a model's card.

    MODEL is a model folder or a training run. The results must be those of this model. The card is README.md of the
    model folder and part of the model's hash, which changes: infer into an earlier folder recomputes its scans.
    """
    from maediff import document_model

    from ._console import say

    say(f"card written; model hash: {document_model(model, metrics=metrics, data=data, licence=licence, **scope)}")

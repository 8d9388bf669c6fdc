"""``maediff demo``: the whole pipeline on a synthetic cohort."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ._options import Command, examples, output_option, seed_option, talk


@click.command(cls=Command, epilog=examples("maediff demo -o demo", "maediff demo -o /tmp/demo --quick"))
@output_option("Folder for data, model, maps, metrics and report.", default="demo")
@click.option("--quick", is_flag=True, help="Check in seconds that every part runs; the maps mean nothing.")
@seed_option
@talk
def command(*, out: Path, quick: bool, seed: int) -> None:
    """Run the whole pipeline on a synthetic cohort, offline.

    Synthesises brain scans with and without lesions, trains the tiny preset from scratch, calibrates it, infers with it
    and with the packaged model, evaluates both beside two plain baselines, and writes DIR/report.html.
    """
    from maediff.demo import run_demo

    from ._console import say

    summary = run_demo(out, quick=quick, seed=seed, on_message=say)
    _show(summary["methods"])
    say(f"report: {out / 'report.html'}; to look at the maps: maediff view {out / 'out'}")


def _show(methods: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    from ._console import table

    keys = ("auroc", "auprc", "dice", "dice_oracle", "lesion_share")
    rows = [
        (method, kind, *(metrics.get(key) for key in keys))
        for method, kinds in methods.items()
        for kind, metrics in kinds.items()
    ]
    title = "Synthetic test scans, mean over scans; AUPRC by chance is lesion_share"
    table(title, ("method", "lesion", *keys), rows)

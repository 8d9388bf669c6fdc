"""``maediff evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from . import EXIT_SOME_FAILED
from ._options import Command, examples, json_option, output_option, reference_option, seed_option, talk

_SHOWN = ("voxel.auroc", "voxel.auprc", "voxel.dice", "case.auroc")  # of each stratum; metrics.json holds all


@click.command(
    cls=Command,
    epilog=examples(
        "maediff evaluate -i out -r cases.csv -o metrics",
        "maediff evaluate -i out -r bids/ -o metrics --strata sex --strata age:40,60",
        "maediff evaluate -i out -o metrics --ratings",
    ),
)
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), required=True, help="What infer wrote.")
@reference_option(required=False)
@output_option("Folder for metrics.json and metrics_per_case.csv, or ratings.json.")
@click.option("--bootstrap", type=click.IntRange(min=1), default=1000, help="Resamples of patients for the intervals.")
@click.option(
    "--strata",
    multiple=True,
    metavar="COLUMN[:EDGE,…]",
    help="Repeat the metrics by a column of the reference or of participants.tsv, such as sex or age:40,60.",
)
@click.option("--ratings", is_flag=True, help="Summarise readers' ratings from `maediff view`, also or only.")
@seed_option
@json_option
@talk
def command(
    *,
    source: Path,
    reference: Path | None,
    out: Path,
    bootstrap: int,
    strata: tuple[str, ...],
    ratings: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Score anomaly maps against lesion masks, or summarise the ratings of readers.

    Computes, inside the brain mask, per scan and pooled: AUROC, AUPRC, Dice at the calibrated threshold, and the best
    Dice of any threshold (dice_oracle, which needs the truth); and the scan-level AUROC if there are healthy scans. All
    come with 95 % bootstrap intervals over patients.

    With --ratings: each reader's precision (the share of real findings among those rated real or artefact), that of the
    majority, and the agreement of each two readers (Cohen's kappa), from ratings.tsv beside the maps.

    Scans that cannot be scored are listed with the reason, and the exit code is 3.
    """
    if reference is None and not ratings:
        raise click.UsageError("give --reference with the lesion masks, or --ratings to summarise what readers rated")
    printed: dict[str, Any] = {}
    if reference is not None:
        printed |= _evaluated(source, reference, out, bootstrap=bootstrap, seed=seed, strata=strata)
    if ratings:
        printed |= _rated(source, out, bootstrap, seed)
    if as_json:
        click.echo(json.dumps(printed, indent=2))
    if printed.get("cases", {}).get("not_scored"):
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _evaluated(source: Path, reference: Path, out: Path, **options: Any) -> dict[str, Any]:
    from maediff import evaluate

    from ._console import say

    metrics = evaluate(source, reference, out, **options)
    _show(metrics)
    say(f"metrics: {out / 'metrics.json'}")
    return dict(metrics)


def _rated(source: Path, out: Path, bootstrap: int, seed: int) -> dict[str, Any]:
    from maediff.evaluation.ratings import write_summary

    from ._console import say, table

    summary = write_summary(source, out, bootstrap=bootstrap, seed=seed)
    rows = [
        (name, found["rated"], found["real"], found["artefact"], found["unsure"], found["precision"]["mean"])
        for name, found in summary["readers"].items()
    ]
    most = summary["majority"]["precision"]
    table("Ratings", ("reader", "findings", "real", "artefact", "unsure", "precision"), rows)
    say(f"precision by majority: {_share(most['mean'])} ({_interval(most) or 'no interval'}) of {most['n']} findings")
    pairs = [(" and ".join(p["readers"]), p["findings"], p["agreement"], p["kappa"]) for p in summary["pairs"]]
    if pairs:
        table("Agreement", ("readers", "rated by both", "agreement", "Cohen's kappa"), pairs)
    say(f"ratings: {out / 'ratings.json'}")
    return {"ratings": summary}


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _show(metrics: Mapping[str, Any]) -> None:
    from maediff.evaluation.metrics import chance_level

    from ._console import print_failed, table

    rows = [
        (key, item["mean"], _interval(item), chance_level(metrics, key), item["n"])
        for key, item in metrics.items()
        if isinstance(item, Mapping) and "ci_low" in item
    ]
    table("Metrics", ("metric", "mean", "95 % interval", "chance", "scans"), rows)
    for column, groups in metrics.get("by_stratum", {}).items():
        means = [(group, found["scans"], *(found[key]["mean"] for key in _SHOWN)) for group, found in groups.items()]
        table(f"By {column}", (column, "scans", *_SHOWN), means)
    for item in metrics.get("cases", {}).get("not_scored", []):
        print_failed(f"{item['case']} is not scored ({item['status']}): {item['message']}")


def _interval(item: Mapping[str, Any]) -> str | None:
    low, high = item["ci_low"], item["ci_high"]
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"

"""``maediff report``."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import Command, cut_options, examples, output_option, reference_option, talk


@click.command(
    cls=Command,
    epilog=examples(
        "maediff report -i out -r cases.csv -o report.html",
        "maediff report -i out -o strict.html --rate 0.001 --min-size 50",
    ),
)
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), required=True, help="What infer wrote.")
@reference_option(required=False)
@click.option("--metrics", type=click.Path(path_type=Path), help="Results of evaluate: its folder or metrics.json.")
@output_option("The HTML file.", default="report.html")
@click.option("--title", default="MAEDiff report", help="Heading of the page.")
@click.option(
    "--cards",
    type=click.IntRange(min=0),
    default=24,
    help="Scans with pictures, the highest scores first; 0 shows all.",
)
@click.option("--run", "training", type=click.Path(path_type=Path), help="Training to show: the folder train wrote.")
@cut_options
@talk
def command(
    *,
    source: Path,
    reference: Path | None,
    metrics: Path | None,
    out: Path,
    title: str,
    cards: int,
    training: Path | None,
    cut: dict[str, float | None],
) -> None:
    """Write one self-contained HTML page about an output folder.

    The page shows scan, healthy reconstruction and anomaly map in three planes through the largest finding, with
    outlines of the anomaly mask and, if a reference is given, of the truth; it lists all findings, metrics, settings,
    versions, and the failed scans with the reason. It loads nothing from the network. The overlaps with the reference
    are added to each scan's <stem>_components.tsv.

    --run adds the loss of the model's training, and how its reconstructions grew.

    With --threshold, --rate or --min-size the page shows other masks than those that infer wrote, and says so; the
    output folder is not changed.
    """
    from maediff.evaluation import Choice
    from maediff.report import write_report

    from ._console import say

    path = write_report(
        source,
        out,
        reference=reference,
        metrics=metrics,
        title=title,
        max_pictures=cards or None,
        choice=Choice(**cut),
        training=training,
    )
    say(f"report: {path}")

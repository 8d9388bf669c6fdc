"""``maediff report``."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import Command, examples, output_option, reference_option, talk


@click.command(cls=Command, epilog=examples("maediff report -i out -r cases.csv -o report.html"))
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), required=True, help="What infer wrote.")
@reference_option(required=False)
@click.option("--metrics", type=click.Path(path_type=Path), help="What evaluate wrote: its folder or metrics.json.")
@output_option("The HTML file.", default="report.html")
@click.option("--title", default="MAEDiff report", help="Heading of the page.")
@talk
def command(*, source: Path, reference: Path | None, metrics: Path | None, out: Path, title: str) -> None:
    """Write one self-contained HTML page about an output folder.

    Pictures of scan, healthy reconstruction, anomaly map and mask at the most anomalous slice, beside the truth where a
    reference is given; metrics, settings, versions, and the scans that failed with the reason. The page loads nothing
    from the network.
    """
    from maediff.report import write_report

    from ._console import say

    say(f"report: {write_report(source, out, reference=reference, metrics=metrics, title=title)}")

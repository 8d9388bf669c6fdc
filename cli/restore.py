"""``maediff restore``."""

from __future__ import annotations

from pathlib import Path

import click

from . import EXIT_SOME_FAILED
from ._options import Command, examples, input_option, output_option, talk


@click.command(cls=Command, epilog=examples("maediff restore -i out -p prepared -o out_raw"))
@input_option("Output folder of `maediff infer` on prepared scans.")
@click.option("-p", "--prepared", type=click.Path(path_type=Path), required=True, help="Folder of `maediff prepare`.")
@output_option("Folder for the maps on the raw scans' voxels.")
@talk
def command(*, source: Path, prepared: Path, out: Path) -> None:
    """Bring maps of prepared scans back to the raw scans.

    The result is an output folder like that of `maediff infer`: report, evaluate and export-dicom work on it.
    """
    from maediff import restore_cohort

    from ._console import print_failed, say

    failed: list[str] = []

    def tell(case: str, reason: str) -> None:
        failed.append(case)
        print_failed(f"{case}: failed: {reason}")

    written = restore_cohort(source, prepared, out, on_failed=tell)
    say(f"{len(written)} maps on the raw scans' voxels: {out}")
    if failed:
        click.get_current_context().exit(EXIT_SOME_FAILED)

"""``maediff export-dicom``."""

from __future__ import annotations

from pathlib import Path

import click

from . import EXIT_ERROR, EXIT_SOME_FAILED
from ._options import Command, examples, input_option, output_option, series_option, talk


@click.command(
    cls=Command,
    epilog=examples(
        "maediff export-dicom -i out_raw --dicom dicom/ -o out_dicom",
        "maediff export-dicom -i out_raw --dicom dicom/ --series 4 -o out_dicom",
    ),
)
@input_option("Maps on the voxels of the series, such as `maediff restore` writes.")
@click.option("--dicom", type=click.Path(path_type=Path), required=True, help="The DICOM folder that was prepared.")
@output_option("Folder for the DICOM files.")
@series_option
@click.option(
    "--trust-names",
    is_flag=True,
    help="Write maps whose scan is missing without a check: only names decide which patient gets them.",
)
@talk
def command(*, source: Path, dicom: Path, out: Path, series: int | None, trust_names: bool) -> None:
    """Write maps as DICOM SEG and Parametric Map.

    Each file belongs to the patient, the study and the frame of reference of its input series, and overlays it.
    Research use only, as each file says.
    """
    from maediff import export_dicom

    from ._console import say

    found = export_dicom(source, dicom, out, series, trust_names=trust_names)
    for item in found:
        if item.status != "done":
            say(f"{item.case}: {item.status}{': ' if item.message else ''}{item.message}")
        elif item.notes:
            say(f"{item.case}: {'; '.join(item.notes)}")
    done, failed = (sum(item.status == status for item in found) for status in ("done", "failed"))
    say(f"{sum(len(item.files) for item in found)} DICOM files of {done} series: {out}")
    if failed:
        click.get_current_context().exit(EXIT_SOME_FAILED if done else EXIT_ERROR)

"""``maediff prepare``."""

from __future__ import annotations

from pathlib import Path

import click

from . import EXIT_ERROR, EXIT_SOME_FAILED
from ._options import (
    Command,
    channel_option,
    examples,
    input_option,
    output_option,
    pattern_option,
    series_option,
    talk,
)

METHODS = ("auto", "given", "stripped", "extraction", "hd-bet", "synthstrip", "template")


@click.command(
    cls=Command,
    epilog=examples(
        "maediff prepare -i raw/ -o prepared",
        "maediff prepare -i cases.csv -o prepared --register affine --spacing 2",
        "maediff prepare -i head.nii.gz --mask brain.nii.gz -o prepared",
    ),
)
@input_option("Raw scans: a NIfTI file, a folder of them or of DICOM series, a CSV/TSV table or a BIDS data set.")
@output_option("Folder for the prepared scans, cases.csv, prepare.tsv and run.json.")
@click.option("--bias", type=click.Choice(["n4", "none"]), default="n4", help="Bias field correction.")
@click.option(
    "--register",
    type=click.Choice(["none", "rigid", "affine"]),
    default="none",
    help="Registration to the bundled ICBM template, if a model needs it.",
)
@click.option("--align/--no-align", default=True, help="Register further channels to the first, rigidly.")
@click.option("--spacing", type=float, help="Voxel size, mm; by default 2 on the template's grid, else the scan's own.")
@click.option("--mask-from", type=click.Choice(METHODS), default="auto", help="Where the brain mask comes from.")
@click.option("--mask", type=click.Path(path_type=Path), help="Brain mask of a single scan.")
@click.option("--scale/--no-scale", default=True, help="Map the in-mask percentiles 1 and 99 to 0 and 1000.")
@channel_option
@pattern_option
@series_option
@click.option("--overwrite", is_flag=True, help="Prepare finished scans again.")
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    source: Path,
    out: Path,
    bias: str,
    register: str,
    align: bool,
    spacing: float | None,
    mask_from: str,
    mask: Path | None,
    scale: bool,
    channel: str | None,
    pattern: str | None,
    series: int | None,
    overwrite: bool,
) -> None:
    """Turn raw head scans into model-ready ones.

    Finds the brain, corrects the bias field, resamples and scales intensities. A sidecar records each step, and
    `maediff restore` brings maps back to the raw voxels. The brain mask is the given one, or all but the background of
    a stripped scan, or that of the packaged brain extraction, which takes any contrast. Other sources of masks and
    registration to the bundled template are options.
    """
    from maediff import PrepareSettings, prepare_cohort

    from ._console import prepare_progress, say

    percentiles = (1.0, 99.0) if scale else None
    settings = PrepareSettings(bias, register, spacing, mask_from, percentiles, align)  # type: ignore[arg-type]
    with prepare_progress() as progress:
        summary = prepare_cohort(
            source,
            out,
            settings,
            mask=mask,
            channel=channel,
            pattern=pattern,
            series=series,
            overwrite=overwrite,
            on_start=progress.start,
            on_case=progress.case,
        )
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    say(f"{done} done, {skipped} skipped, {failed} failed; next: maediff infer -m MODEL -i {out / 'cases.csv'} -o OUT")
    if failed:
        click.get_current_context().exit(EXIT_SOME_FAILED if done + skipped else EXIT_ERROR)

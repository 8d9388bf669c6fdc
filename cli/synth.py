"""``maediff synth``."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import examples, output_option, seed_option, talk

KINDS = ("ms", "tumour", "dark")


def _kinds(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Split a comma-separated list of lesion kinds."""
    kinds = tuple(part.strip() for part in value.split(",") if part.strip())
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise click.BadParameter(f"{', '.join(wrong) or value!r} is no kind of lesion; choose from {', '.join(KINDS)}")
    return kinds


@click.command(epilog=examples("maediff synth -o cohort --subjects 24 --lesions ms,tumour --modality flair --seed 1"))
@output_option("Folder of the BIDS-like data set.")
@click.option("--subjects", type=click.IntRange(min=4), default=24, help="Subjects over all splits.")
@click.option(
    "--lesions",
    callback=_kinds,
    metavar="KIND,…",
    default=",".join(KINDS),
    help=f"Kinds of lesions, of {', '.join(KINDS)}.",
)
@click.option("--modality", type=click.Choice(["t1", "t2", "flair"]), default="t2", help="Contrast.")
@click.option("--spacing", "spacing_mm", type=click.FloatRange(min=1, max=8), default=2.0, help="Voxel size, mm.")
@seed_option
@talk
def command(*, out: Path, subjects: int, lesions: tuple[str, ...], modality: str, spacing_mm: float, seed: int) -> None:
    """Write a synthetic brain MRI cohort with exact lesion masks.

    Skull-stripped scans of subjects that differ in shape, tissue intensities, texture, bias field and noise, made from
    the bundled ICBM-152 maps: healthy ones for training, healthy ones and lesions for validation and test. The table
    cases.csv lists scan, brain mask, lesion mask, subject, split and lesion.
    """
    from maediff.data.cohort import synthesise

    from ._console import say

    folder = synthesise(out, subjects=subjects, modality=modality, lesions=lesions, seed=seed, spacing_mm=spacing_mm)
    say(f"cohort: {folder}")
    say(f"next: maediff train -c tiny -i {folder / 'cases.csv'} --split train -o RUN")

"""``maediff synth``."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import Command, examples, output_option, seed_option, talk

KINDS = ("ms", "tumour", "dark")


def _kinds(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Split a comma-separated list of lesion kinds."""
    kinds = tuple(part.strip() for part in value.split(",") if part.strip())
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise click.BadParameter(f"{', '.join(wrong) or value!r} is no kind of lesion; choose from {', '.join(KINDS)}")
    return kinds


@click.command(
    cls=Command, epilog=examples("maediff synth -o cohort --subjects 24 --lesions ms,tumour --modality flair --seed 1")
)
@output_option("Folder of the BIDS-like data set.")
@click.option("--subjects", type=click.IntRange(min=2), default=24, help="Subjects over all splits.")
@click.option(
    "--lesions",
    callback=_kinds,
    metavar="KIND,…",
    default=",".join(KINDS),
    help=f"Kinds of lesions, of {', '.join(KINDS)}.",
)
@click.option("--modality", type=click.Choice(["t1", "t2", "flair", "random", "mixed"]), default="t2", help="Contrast.")
@click.option("--healthy-only", is_flag=True, help="Training and validation subjects only.")
@click.option("--spacing", "spacing_mm", type=click.IntRange(min=1, max=8), default=2, help="Voxel size, mm.")
@seed_option
@talk
def command(
    *,
    out: Path,
    subjects: int,
    lesions: tuple[str, ...],
    modality: str,
    healthy_only: bool,
    spacing_mm: int,
    seed: int,
) -> None:
    """Write a synthetic brain MRI cohort with exact lesion masks.

    Skull-stripped scans of subjects that differ in shape, tissue intensities, texture, bias field and noise, made from
    the bundled ICBM-152 maps: healthy ones for training, healthy ones and lesions for validation and test. The table
    cases.csv lists scan, brain mask, lesion mask, subject, split and lesion.
    """
    from maediff.data.synthesis import synthesise

    from ._console import say

    table = synthesise(
        out,
        subjects=subjects,
        modality=modality,
        lesions=lesions,
        seed=seed,
        spacing_mm=spacing_mm,
        healthy_only=healthy_only,
        on_subject=say,
    )
    say(f"cohort: {table}")
    say(f"next: maediff train -c tiny -i {table} -o RUN")

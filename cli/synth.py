"""``maediff synth``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from ._options import Command, F, examples, output_option, seed_option, talk

KINDS = ("ms", "tumour", "dark")
HEAD_KINDS = ("tumour", "ms", "stroke")


def _parts(value: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _contrasts(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Split a comma-separated list of contrasts, in upper or lower case as for --contrast."""
    return _parts((value or "").lower())


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Split a comma-separated list of lesion kinds; empty: all kinds."""
    if value is None:
        return ()
    kinds = _parts(value)
    known = KINDS if context.params.get("heads") is None else HEAD_KINDS
    wrong = [kind for kind in kinds if kind not in known]
    if wrong or not kinds:
        raise click.BadParameter(
            f"{', '.join(wrong) or value!r} is no kind of lesion; choose from {', '.join(known)}", context, parameter
        )
    return kinds


def _masks(name: str, parameter: str, kind: str) -> Callable[[F], F]:
    """Build the option for a folder of lesion masks, which give lesions of a kind their shapes."""
    text = f"With --heads: folder of lesion masks in MNI space for the shapes of {kind} lesions."
    return click.option(name, parameter, type=click.Path(path_type=Path), metavar="FOLDER", help=text)


@click.command(
    cls=Command,
    epilog=examples(
        "maediff synth -o cohort --subjects 24 --lesions ms,tumour --modality flair --seed 1",
        "maediff synth -o cohort --heads label_maps/ --contrast flair --ms-masks ms_masks/",
        "maediff synth -o pairs --heads label_maps/ --contrast flair --also t1 --healthy-only",
    ),
)
@output_option("Folder of the BIDS-like data set.")
@click.option(
    "--heads",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    is_eager=True,
    help="Draw the scans from the label maps of whole heads in this folder instead of the bundled template.",
)
@_masks("--ms-masks", "ms_masks", "ms")
@_masks("--stroke-masks", "stroke_masks", "stroke")
@click.option("--subjects", type=click.IntRange(min=2), default=24, help="Subjects over all splits.")
@click.option(
    "--lesions",
    callback=_kinds,
    metavar="KIND,…",
    help=f"Kinds of lesions, of {', '.join(KINDS)}; with --heads of {', '.join(HEAD_KINDS)}, the last two with masks. "
    "All by default.",
)
@click.option(
    "--modality",
    "--contrast",
    "modality",
    type=click.Choice(["t1", "t2", "flair", "random", "mixed"], case_sensitive=False),
    default="t2",
    help="Contrast.",
)
@click.option(
    "--also",
    callback=_contrasts,
    metavar="CONTRAST,…",
    help="With --heads: further contrasts of each subject, on the same grid; the table has a column for each.",
)
@click.option("--healthy-only", is_flag=True, help="Training and validation subjects only.")
@click.option("--spacing", "spacing_mm", type=click.IntRange(min=1, max=8), default=2, help="Voxel size, mm.")
@seed_option
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    out: Path,
    heads: Path | None,
    ms_masks: Path | None,
    stroke_masks: Path | None,
    subjects: int,
    lesions: tuple[str, ...],
    modality: str,
    also: tuple[str, ...],
    healthy_only: bool,
    spacing_mm: int,
    seed: int,
) -> None:
    """Write a synthetic brain MRI cohort with exact lesion masks.

    Writes skull-stripped scans of subjects that differ in shape, tissue intensities, texture, bias field and noise.
    They are made from the bundled ICBM-152 maps or, with --heads, from label maps of real heads. Training subjects are
    healthy; validation and test subjects are healthy or have lesions. The table cases.csv lists scan, brain mask,
    lesion mask, subject, split and lesion.
    """
    from maediff.data.head_cohort import synthesise_heads
    from maediff.data.synthesis import synthesise

    from ._console import say

    if heads is None and (ms_masks or stroke_masks or also):
        raise click.UsageError("--ms-masks, --stroke-masks and --also go with --heads FOLDER, a folder of label maps")
    draw: Callable[..., Path] = partial(synthesise, lesions=lesions or KINDS)
    if heads is not None:
        draw = partial(
            synthesise_heads,
            heads=heads,
            lesions=lesions,
            also=also,
            white_matter_masks=ms_masks,
            lesion_masks=stroke_masks,
        )
    table = draw(
        out,
        subjects=subjects,
        modality=modality,
        seed=seed,
        spacing_mm=spacing_mm,
        healthy_only=healthy_only,
        on_subject=lambda name: say(f"drawn: {name}"),
    )
    say(f"cohort: {table}")
    channel = f" --channel {modality}" if also else ""
    say(f"next: maediff train -c tiny -i {table}{channel} -o RUN")

"""A synthetic cohort drawn from label maps of whole heads, with exact lesion masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from maediff.config import HeadsConfig
from maediff.data.phantom import Phantom
from maediff.data.synthesis import MadeFrom, Plan, plan_cohort, write_cohort
from maediff.diffusion.noise import generator
from maediff.errors import ConfigError, InputError
from maediff.heads.contrast import Kind
from maediff.heads.headset import HeadSet, read_head_set, split_heads
from maediff.heads.labels import BrainLabels
from maediff.heads.scan import HeadScan, draw_scan

HEAD_LESIONS = ("tumour", "ms", "stroke")
_HELD_OUT = 0.4
"""Share of the heads that validation and test subjects are drawn from; training subjects come from the others."""
_TRIES = 8
_LICENCE = "Drawn from label maps of whole heads; the terms of these label maps and lesion masks apply."


def synthesise_heads(  # noqa: PLR0913  as synthesise, and where heads and lesion masks are
    folder: str | Path,
    heads: str | Path,
    *,
    white_matter_masks: str | Path | None = None,
    lesion_masks: str | Path | None = None,
    subjects: int = 24,
    lesions: Sequence[str] = (),
    modality: str = "t2",
    also: Sequence[str] = (),
    seed: int = 0,
    spacing_mm: float = 2.0,
    healthy_only: bool = False,
    on_subject: Callable[[str], None] | None = None,
) -> Path:
    """Write a cohort of skull-stripped scans drawn from label maps, see :func:`maediff.data.synthesis.synthesise`.

    Each subject has its own pose, contrast, scanner and lesions. With two heads or more, training subjects share no
    head with validation and test subjects.

    Args:
        folder: Where to write; the subjects of an earlier synthetic cohort there are removed first.
        heads: Folder of label maps, see :func:`maediff.heads.labels.read_head`.
        white_matter_masks: Folder of lesion masks in MNI space that "ms" takes its shapes from.
        lesion_masks: Folder of other lesion masks in MNI space, for "stroke".
        subjects: How many, at least 8 (2 with `healthy_only`).
        lesions: Kinds of lesion, of "tumour", "ms" and "stroke"; empty: all that there are masks for.
        modality: "t1", "t2", "flair", "random", or "mixed", which draws one of the four for each subject.
        also: Further contrasts of each subject on the same grid; the table then has a column ``image_<contrast>`` each.
        seed: Seed; subject k depends on it, on k, on the heads and on its role alone.
        spacing_mm: Voxel size, isotropic.
        healthy_only: Make training and validation subjects only.
        on_subject: Called with the name of each subject.

    Returns:
        The table `cases.csv` in `folder`.

    Raises:
        ConfigError: Unknown kind or modality, a kind without masks, or too few subjects.
        InputError: A label map or a lesion mask cannot be used.
        OutputError: The folder cannot be written, or holds subjects that were not made here.
    """
    kinds = head_lesions(lesions, ms=white_matter_masks is not None, stroke=lesion_masks is not None)
    plans = plan_cohort(subjects, kinds, modality, seed, also=also, healthy_only=healthy_only, known=HEAD_LESIONS)
    masks = HeadsConfig(
        white_matter_masks=None if white_matter_masks is None else str(white_matter_masks),
        lesion_masks=None if lesion_masks is None else str(lesion_masks),
    )
    paths = dict(zip(("train", "test"), split_heads(heads, _HELD_OUT), strict=True))
    sources = {split: read_head_set(part, masks) for split, part in paths.items()}

    def draw(plan: Plan) -> Phantom:
        scan = _draw(sources["train" if plan.split == "train" else "test"], plan, seed, spacing_mm)
        return Phantom(scan.image, scan.brain, scan.lesion, scan.affine, scan.others)

    facts = {"seed": seed, "modality": modality, "lesions": list(kinds), "spacing_mm": spacing_mm}
    facts |= {"also": list(also)} if also else {}
    facts |= {"heads": {split: list(source.subjects) for split, source in sources.items()}}
    return write_cohort(Path(folder), plans, draw, MadeFrom(facts, _LICENCE, "scanner"), on_subject)


def head_lesions(wanted: Sequence[str], *, ms: bool, stroke: bool) -> tuple[str, ...]:
    """Choose kinds of lesion that can be drawn.

    Args:
        wanted: Kinds asked for; empty: all that can be drawn.
        ms: Whether there are masks of white matter lesions.
        stroke: Whether there are other lesion masks.

    Raises:
        ConfigError: A kind is unknown, or there are no masks for it.

    Example:
        >>> head_lesions((), ms=True, stroke=False)
        ('tumour', 'ms')
    """
    able = {"tumour": True, "ms": ms, "stroke": stroke}
    if not wanted:
        return tuple(kind for kind in HEAD_LESIONS if able[kind])
    unknown = [kind for kind in wanted if kind not in able]
    if unknown:
        raise ConfigError(f"lesion kinds {', '.join(unknown)} are unknown for heads; use {', '.join(HEAD_LESIONS)}")
    for kind, option in (("ms", "--ms-masks"), ("stroke", "--stroke-masks")):
        if kind in wanted and not able[kind]:
            raise ConfigError(
                f"lesions of kind {kind!r} take their shapes from masks in MNI space, and none are given; add "
                f"{option} FOLDER, or ask for tumour alone"
            )
    return tuple(wanted)


def _draw(source: HeadSet, plan: Plan, seed: int, spacing_mm: float) -> HeadScan:
    """Draw a subject; lesions that fall outside the brain are drawn again.

    Raises:
        InputError: They do so time after time.
    """
    head: BrainLabels = source.heads[plan.number % len(source.heads)]
    for attempt in range(_TRIES):
        rng = generator("head cohort", seed, plan.number, attempt)
        kind, also = cast(Kind, plan.modality), cast(tuple[Kind, ...], plan.also)
        spacing = (spacing_mm, spacing_mm)
        scan = draw_scan(head, source.masks, rng, kind=kind, also=also, lesion=plan.lesion, spacing_mm=spacing)
        if plan.lesion is None or scan.lesion.any():
            return scan
    raise InputError(
        f"{head.name}: none of {_TRIES} lesions of kind {plan.lesion!r} lies in its brain; check label map and masks"
    )

"""A synthetic cohort on disk: a BIDS-like data set with masks, labels and splits, and a table of it all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maediff.data.bids import describe_data_set
from maediff.data.lesions import KINDS
from maediff.data.phantom import MIXED, MODALITIES, Phantom, atlas, subject
from maediff.errors import ConfigError, OutputError
from maediff.files import cannot_write, remove_leftovers, write_json
from maediff.system import usable_cores
from maediff.tables import write_table
from maediff.volume import Volume, new_header, write_like

_SUFFIXES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR"}
_MOST_THREADS = 4  # each holds a subject in memory
_MADE, _TABLE = "synth.json", "cases.csv"
_COLUMNS = ("mask", "label", "subject", "split", "lesion", "modality")

LICENCE = (
    "Derived from the ICBM-152 2009a template, as bundled with nilearn. Copyright (C) 1993-2009 Louis Collins, "
    "McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University. Keep this notice with copies."
)


@dataclass(frozen=True)
class MadeFrom:
    """Source of a cohort, with its consequences for the files.

    Attributes:
        facts: Seed and settings, for the record.
        licence: Terms of what it was made from.
        space: Its space: ``mni`` or ``scanner``.
    """

    facts: dict[str, Any]
    licence: str
    space: str


@dataclass(frozen=True)
class Plan:
    """One subject of a cohort, before it is made.

    Attributes:
        name: Participant, such as ``sub-003``.
        number: Its number, which with the seed decides how it looks.
        split: "train", "val" or "test".
        lesion: Kind of lesion, or None.
        modality: Contrast.
        also: Further contrasts, each in a file of its own.
    """

    name: str
    number: int
    split: str
    lesion: str | None
    modality: str
    also: tuple[str, ...] = ()

    def columns(self) -> tuple[str, ...]:
        """Columns of the table: `image`, or with further contrasts one for each of them."""
        images = tuple(f"image_{name}" for name in (self.modality, *self.also)) if self.also else ("image",)
        return (*images, *_COLUMNS)


def synthesise(
    folder: str | Path,
    *,
    subjects: int = 24,
    lesions: Sequence[str] = KINDS,
    modality: str = "t2",
    seed: int = 0,
    spacing_mm: float = 2.0,
    healthy_only: bool = False,
    on_subject: Callable[[str], None] | None = None,
) -> Path:
    """Write a synthetic cohort.

    Half of the subjects are healthy and to train on, an eighth healthy for validation; of the rest, one in four is a
    healthy test subject and the others carry lesions, kind after kind, for the test.

    Args:
        folder: Where to write; the subjects of an earlier synthetic cohort there are removed first.
        subjects: How many, at least 8 (2 with `healthy_only`).
        lesions: Kinds of lesion.
        modality: "t1", "t2", "flair", "random", or "mixed", which draws one of the four per subject.
        seed: Seed; subject k depends on it and on k alone.
        spacing_mm: Voxel size, whole mm.
        healthy_only: Make training and validation subjects only.
        on_subject: Called with the name of each subject.

    Returns:
        The table `cases.csv` in `folder`.

    Raises:
        ConfigError: Unknown kind or modality, too few subjects, or a spacing that is not whole.
        OutputError: The folder cannot be written, or holds subjects that were not made here.
    """
    plans = plan_cohort(subjects, lesions, modality, seed, healthy_only=healthy_only)
    atlas(spacing_mm)  # refuse an impossible spacing before anything is written
    facts = {"seed": seed, "modality": modality, "lesions": list(lesions), "spacing_mm": spacing_mm}

    def draw(plan: Plan) -> Phantom:
        return subject((seed, plan.number), plan.modality, plan.lesion, spacing_mm)

    return write_cohort(Path(folder), plans, draw, MadeFrom(facts, LICENCE, "mni"), on_subject)


def write_cohort(
    folder: Path,
    plans: Sequence[Plan],
    draw: Callable[[Plan], Phantom],
    made: MadeFrom,
    on_subject: Callable[[str], None] | None = None,
) -> Path:
    """Draw subjects and write them as a data set, see :func:`synthesise`.

    Raises:
        OutputError: The folder cannot be written, or holds subjects that were not made here.
    """
    _clear(folder)
    write_json(folder / _MADE, made.facts)  # first, so that a cohort that was cut off is known as ours
    rows = []
    with ThreadPoolExecutor(min(usable_cores(), _MOST_THREADS)) as pool:
        for row in pool.map(lambda plan: _write_subject(folder, plan, draw(plan), made.space), plans):
            rows.append(row)
            if on_subject:
                on_subject(row["subject"])
    name, terms = "MAEDiff synthetic cohort", made.licence
    describe_data_set(folder, name, "raw", (_TABLE, _MADE), f"# {name}\n\n{terms}\n", License=terms)
    describe_data_set(folder / "derivatives" / "masks", f"{name}: masks", "derivative", License=terms)
    people = [{"participant_id": p.name, "split": p.split, "lesion": p.lesion or "n/a"} for p in plans]
    write_table(folder / "participants.tsv", people, ("participant_id", "split", "lesion"))
    table = folder / _TABLE
    write_table(table, rows, plans[0].columns())
    return table


def _clear(folder: Path) -> None:
    """Remove an earlier cohort, so that none of its subjects is taken for one of the new.

    Raises:
        OutputError: There are subjects, but no sign that they were made here; or they cannot be removed.
    """
    older = [*folder.glob("sub-*"), *folder.glob("derivatives/masks/sub-*")]
    if older and not (folder / _MADE).is_file():
        raise OutputError(
            f"{folder} holds subjects that are no synthetic cohort ({older[0].name}); choose another folder"
        )
    try:
        for name in (_MADE, _TABLE, "participants.tsv", "dataset_description.json"):
            remove_leftovers(folder / name)
        (folder / _TABLE).unlink(missing_ok=True)
        for path in older:
            shutil.rmtree(path)
    except OSError as error:
        raise cannot_write(folder, error) from error


def plan_cohort(
    subjects: int,
    lesions: Sequence[str],
    modality: str,
    seed: int,
    *,
    also: Sequence[str] = (),
    healthy_only: bool = False,
    known: Sequence[str] = KINDS,
) -> list[Plan]:
    """Decide who is healthy, who is ill and which split each belongs to.

    Raises:
        ConfigError: Unknown kind or modality, further contrasts that cannot be told from the first, or too few
            subjects.
    """
    unknown = [kind for kind in lesions if kind not in known]
    if unknown or not lesions:
        raise ConfigError(f"lesion kinds {', '.join(unknown) or '(none)'} are unknown; use {', '.join(known)}")
    if modality not in (*MODALITIES, "mixed"):
        raise ConfigError(f"modality {modality!r} is unknown; use {', '.join(MODALITIES)} or mixed")
    files = [_suffix(name) for name in (modality, *also)]
    if also and (modality == "mixed" or not set(also) <= set(MODALITIES) or len(set(files)) < len(files)):
        raise ConfigError(
            f"further contrasts {', '.join(also)} beside {modality!r} cannot be made: each subject needs contrasts "
            f"that differ, of {', '.join(MODALITIES)} (random is filed as t2)"
        )
    least = 2 if healthy_only else 8
    if subjects < least:
        raise ConfigError(f"{subjects} subjects are too few for all splits; ask for at least {least}")
    return [
        Plan(f"sub-{number:04d}", number, split, lesion, _modality(modality, seed, number), tuple(also))
        for number, (split, lesion) in enumerate(_roles(subjects, lesions, healthy_only), start=1)
    ]


def _roles(subjects: int, lesions: Sequence[str], healthy_only: bool) -> Iterator[tuple[str, str | None]]:
    validation = max(1, subjects // 8)
    training = subjects - validation if healthy_only else subjects // 2
    yield from [("train", None)] * training
    yield from [("val", None)] * validation
    kinds: list[str | None] = [*lesions, None]
    for index in range(subjects - training - validation):
        yield "test", kinds[index % len(kinds)]


def _modality(modality: str, seed: int, number: int) -> str:
    if modality != "mixed":
        return modality
    names, shares = [name for name, _ in MIXED], [share for _, share in MIXED]
    return str(np.random.default_rng([seed, number, 4]).choice(names, p=shares))


def _write_subject(folder: Path, plan: Plan, phantom: Phantom, space: str) -> dict[str, str]:
    """Write scans, brain mask and, for the ill, label; return the row of the table."""
    like = as_volume(phantom, space)
    masks = Path("derivatives/masks") / plan.name / "anat"
    brain, label = masks / f"{plan.name}_desc-brain_mask.nii.gz", masks / f"{plan.name}_label-lesion_mask.nii.gz"
    scans = []
    for contrast, image in zip((plan.modality, *plan.also), (phantom.image, *phantom.others), strict=True):
        scan = Path(plan.name) / "anat" / f"{plan.name}_{_suffix(contrast)}.nii.gz"
        write_like(folder / scan, np.round(image), like, np.int16)
        facts = {"SyntheticContrast": contrast, "SyntheticLesion": plan.lesion}
        write_json((folder / scan).with_name(scan.name.replace(".nii.gz", ".json")), facts)
        scans.append(str(scan))
    write_like(folder / brain, phantom.brain, like, np.uint8)
    if plan.lesion:
        write_like(folder / label, phantom.label, like, np.uint8)
    named = (*scans, str(brain), str(label) if plan.lesion else "")
    return dict(zip(plan.columns(), (*named, plan.name, plan.split, plan.lesion or "", plan.modality), strict=True))


def _suffix(modality: str) -> str:
    """BIDS suffix; scans of random contrast are filed under T2w."""
    return _SUFFIXES.get(modality, "T2w")


def as_volume(phantom: Phantom, space: str = "mni") -> Volume:
    """Give a synthetic scan the header that it has on disk; `space` is ``mni`` or ``scanner``."""
    header = new_header(phantom.affine, phantom.image.shape, space)
    return Volume(phantom.image, phantom.affine, header)

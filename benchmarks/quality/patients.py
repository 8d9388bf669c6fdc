"""Scans of patients: what is read of each, and tables that split them into training, validation and test."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT
from maediff.data.cases import Case
from maediff.files import write_text
from maediff.volume import Volume, read_mask, read_nifti
from maediff.working.brainmask import WHOLE_HEAD

CONFIG = ROOT / "benchmarks" / "quality" / "lgg_flair.yaml"
"""What all methods share on real FLAIR."""
MASKS_AS_GIVEN = (WHOLE_HEAD,)
"""Input checks that benchmarks accept: methods are compared with the brain masks that a data set has, rough or not."""
HELD_OUT = 12
SPLIT_SEED = 0
COLUMNS = ("image", "mask", "label", "subject", "split", "lesion")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Patient:
    """A labelled scan, read when it is first asked for."""

    case: Case

    @cached_property
    def volume(self) -> Volume:
        """The scan."""
        return read_nifti(self.case.image)

    @cached_property
    def brain(self) -> Mask:
        """Brain mask; the non-zero voxels if the table names none."""
        found: Mask = read_mask(self.case.mask, self.volume, "brain mask") if self.case.mask else self.volume.data != 0
        return found

    @cached_property
    def label(self) -> Mask:
        """Lesion mask; empty for a healthy scan, which has no label."""
        if self.case.label is None:
            return np.zeros(self.volume.data.shape, dtype=bool)
        found: Mask = read_mask(self.case.label, self.volume, "label")
        return found

    @property
    def pseudo_healthy(self) -> Mask:
        """Brain of the slices (third axis) that hold none of the lesion: healthy-looking, of a diseased brain."""
        return self.brain & ~self.label.any((0, 1))


def split_rows(cases: Sequence[Case], held_out: int = HELD_OUT, limit: int | None = None) -> list[dict[str, str]]:
    """Make the table of this benchmark: absolute paths, and some training patients moved to the split ``val``.

    Args:
        cases: The data set; its splits are ``train`` and ``test``.
        held_out: Training patients to move, drawn with a fixed seed.
        limit: Keep only this many patients per split: a smoke test, no benchmark.
    """
    subjects = sorted({case.subject for case in cases if case.split == "train"})
    order = np.random.default_rng(SPLIT_SEED).permutation(len(subjects))
    moved = {subjects[index] for index in order[:held_out]}
    rows: list[dict[str, str]] = []
    for case in sorted(cases, key=lambda case: case.subject):
        rows.append(row(case, "val" if case.subject in moved else str(case.split)))
    if limit is None:
        return rows
    return [kept for name in ("train", "val", "test") for kept in [r for r in rows if r["split"] == name][:limit]]


def row(case: Case, split: str, lesion: str = "") -> dict[str, str]:
    """Make a row of a table of cases: absolute paths, the given split and kind of lesion."""
    paths = (str(path.resolve()) if path else "" for path in (case.image, case.mask, case.label))
    return dict(zip(COLUMNS, (*paths, case.subject, split, lesion), strict=True))


def write_cases(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())

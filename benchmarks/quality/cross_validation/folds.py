"""The protocol: which patients train, choose and test in a fold, which rows compete, what makes cells comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.common import AbsentError, data_folder
from benchmarks.quality.patients import row as case_row
from benchmarks.quality.table.rows import (
    CHOSEN,
    DATA_SETS,
    GATE,
    MASKED,
    MIRROR,
    ROWS,
    SEE_ALL,
    Cases,
    DataSet,
    Row,
    cell_path,
)
from maediff.data.cases import Case, find_cases
from maediff.files import file_sha256

FOLDS, VALIDATION = 5, 10
KEY = 16
"""Seed of the shuffle of patients."""
NO_NOISE = ("diffusion.noise=none", "diffusion.train_timesteps=[30, 60]")
FADED, HIDDEN = (30,), (30, 1000)
MANY = ("partition.window=16", "partition.stride=8", "train.windows=8", "infer.together=8", MASKED)
MEDIANS_MM, HALF_DEPTHS_MM, SUPPORTS_MM = (0.0, 9.0, 15.0), (0.0, 4.0), (0.0, 20.0)
"""Post-processing that validation chooses from, every combination."""
SIDE = "data.scaling=contralateral"
DISTANCE, SEVERAL = "score.mahalanobis=0.1", (30, 60)
_TABLE = {row.name: row for row in ROWS}
_MAEDIFF = replace(_TABLE["maediff-window"], name="maediff", title="MAEDiff")


def _varied(base: Row, name: str, said: str, *overrides: str, timesteps: tuple[int, ...] = ()) -> Row:
    """Put settings on top of a row, and say so in its title."""
    return replace(
        base,
        name=name,
        title=f"{base.title}, {said}",
        overrides=(*base.overrides, *overrides),
        timesteps=timesteps or base.timesteps,
    )


def _tested(base: Row, said: str, draws: int, *overrides: str) -> Row:
    """Test the trainings of a row with several draws of noise, at the timesteps that validation chose most often."""
    return replace(
        base,
        name=f"{base.name}-{'distance' if overrides else 'draws'}",
        title=f"{base.title}, {said}",
        timesteps=SEVERAL,
        trained_as=base.name,
        at_test=(f"infer.draws={draws}", *overrides),
    )


_MIRROR = _varied(_MAEDIFF, "maediff-mirror", "the loss sees everything, gate, other hemisphere", *CHOSEN)
_DDPM, _PDDPM = _TABLE["ddpm-lesions"], _TABLE["pddpm-lesions"]
_WINDOWS = _varied(
    _MAEDIFF, "maediff-windows", "many small windows, no noise", SEE_ALL, *NO_NOISE, *MANY, timesteps=FADED
)
_HIDDEN = replace(
    _WINDOWS,
    name="maediff-hidden",
    title=f"{_MAEDIFF.title}, many small windows, hidden or faded",
    overrides=(*_WINDOWS.overrides, "diffusion.hidden_share=0.5"),
    timesteps=HIDDEN,
)
COMPARED = (
    *(_TABLE[name] for name in ("intensity", "disyre")),
    _DDPM,
    _PDDPM,
    _varied(_DDPM, "ddpm-gate", "gate", GATE),
    _varied(_PDDPM, "pddpm-gate", "gate", GATE),
    _MAEDIFF,
    _varied(_MAEDIFF, "maediff-all", "the loss sees everything", SEE_ALL),
    _varied(_MAEDIFF, "maediff-gate", "gate", GATE),
    _varied(_MAEDIFF, "maediff-all-gate", "the loss sees everything, gate", SEE_ALL, GATE),
    _MIRROR,
    _TABLE["ddpm-mirror"],
    _varied(_PDDPM, "pddpm-mirror", "gate, other hemisphere", GATE, MIRROR),
    _tested(_MIRROR, "mean of 5 draws", 5),
    _tested(_MIRROR, "distance, 5 draws", 5, DISTANCE),
    _tested(_TABLE["ddpm-mirror"], "mean of 6 draws", 6),
    _tested(_TABLE["ddpm-mirror"], "distance, 6 draws", 6, DISTANCE),
    _varied(_MIRROR, "maediff-neighbours", "two slices on each side", "data.neighbours=2"),
    _varied(_MIRROR, "maediff-side", "scaled by one side", SIDE),
    _varied(_TABLE["ddpm-mirror"], "ddpm-side", "scaled by one side", SIDE),
    _varied(_DDPM, "ddpm-no-noise", "no noise", *NO_NOISE, timesteps=FADED),
    _varied(_DDPM, "ddpm-restore", "gate, no noise", GATE, *NO_NOISE, timesteps=FADED),
    _varied(_DDPM, "ddpm-no-noise-mirror", "no noise, other hemisphere", *NO_NOISE, MIRROR, timesteps=FADED),
    _varied(
        _MAEDIFF,
        "maediff-restore",
        "the loss sees everything, gate, no noise",
        SEE_ALL,
        GATE,
        *NO_NOISE,
        timesteps=FADED,
    ),
    _WINDOWS,
    _HIDDEN,
    _varied(_HIDDEN, "maediff-hidden-mirror", "other hemisphere", MIRROR),
)
"""Rows of the table as they are, and each hypothesis as few settings on top of one of them."""


@dataclass(frozen=True)
class Protocol:
    """What all cells that are compared must share besides the code.

    Attributes:
        budget_tflop: Training operations that every method may spend in a fold.
        masks: First digits of the SHA-256 of all brain masks.
    """

    budget_tflop: float
    masks: str

    @property
    def name(self) -> str:
        """Name of the folder of its trainings."""
        return f"{self.budget_tflop:g}tflop-{self.masks}"


def patients(data: Path, masks: Path | None) -> list[Case]:
    """List all patients, by name, with the brain masks of another folder if one is given.

    Args:
        data: Folder of real scans.
        masks: Folder with a mask for each patient, of the same file name as the old one.

    Raises:
        AbsentError: The scans are not there, or some masks are not.
    """
    cases = sorted(find_cases(data_folder("lgg_flair", data) / "cases.csv"), key=lambda case: case.subject)
    if masks is None:
        return cases
    cases = [replace(case, mask=masks / Path(str(case.mask)).name) for case in cases]
    absent = [str(case.mask) for case in cases if not Path(str(case.mask)).is_file()]
    if absent:
        raise AbsentError(
            f"{len(absent)} of {len(cases)} brain masks are missing, the first is {absent[0]}; make them: "
            f"python -m benchmarks.quality.new_masks --out {masks}"
        )
    return cases


def fingerprint(cases: Sequence[Case]) -> str:
    """Hash the brain masks: eight hexadecimal digits that change if any of them does."""
    together = hashlib.sha256()
    for case in cases:
        together.update(file_sha256(str(case.mask)).encode())
    return together.hexdigest()[:8]


def split(cases: Sequence[Case], fold: int) -> Cases:
    """Make the table of a fold: a fifth is tested, :data:`VALIDATION` of the others validate, and the rest train.

    The patients are shuffled once; a fold tests its own stretch of them, and the next ones validate.

    Args:
        cases: All patients, one scan each; their own splits are not looked at.
        fold: From 0 to :data:`FOLDS` - 1.
    """
    ordered = sorted(cases, key=lambda case: case.subject)
    order = np.random.default_rng(KEY).permutation(len(ordered))
    first, last = (number * len(ordered) // FOLDS for number in (fold, fold + 1))
    turned = np.roll(order, -first)
    names = ["test"] * (last - first) + ["val"] * VALIDATION
    names += ["train"] * (len(ordered) - len(names))
    return [case_row(ordered[index], name) for index, name in zip(turned, names, strict=True)]


def data_set(cases: Sequence[Case], fold: int, budget_tflop: float) -> DataSet:
    """Make a column of the table of a fold: ``lgg_flair`` with post-processing that validation chooses."""
    base = DATA_SETS["lgg_flair"]
    lengths = product(MEDIANS_MM, HALF_DEPTHS_MM, SUPPORTS_MM)
    names = ("median_mm", "half_depth_mm", "support_mm")
    settings = (dict(zip(names, values, strict=True)) for values in lengths)
    return replace(
        base,
        name=f"fold{fold}",
        title=f"real FLAIR, fold {fold}",
        cases=lambda _folder, _data: split(cases, fold),
        others=tuple(base.score.model_copy(update=setting) for setting in settings),
        budget_tflop=budget_tflop,
        choose=VALIDATION,
    )


def path_of(results: Path, row: str, fold: int, seed: int = 0) -> Path:
    """Name the stored cell of a row, a fold and a seed of the training."""
    return cell_path(results, row, f"fold{fold}", seed)

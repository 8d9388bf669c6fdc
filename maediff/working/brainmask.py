"""Brain masks: a given mask, or all that is not background in a skull-stripped scan."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.errors import GeometryError, InputError
from maediff.notes import Information
from maediff.typing import BoolArray
from maediff.volume import Volume
from maediff.working.components import largest_component
from maediff.working.foreground import Background, Surroundings

PLAUSIBLE_ML = (300.0, 2500.0)
WHOLE_HEAD = "whole-head"
"""Code that a caller accepts to take all voxels that are not background as the brain, skull included."""


def brain_mask(
    volume: Volume,
    mask: npt.NDArray[Any] | None,
    accept: Collection[str] = (),
    surroundings: Surroundings | None = None,
) -> tuple[BoolArray, tuple[str, ...]]:
    """Choose the brain of a scan.

    A given mask is used unchanged. Without one, the scan must be skull-stripped: the brain is the largest
    face-connected component of what is not background, with holes filled.

    Args:
        volume: The scan.
        mask: Brain (X, Y, Z), or None.
        accept: Contains "whole-head" if a scan of a whole head is accepted without brain extraction.
        surroundings: Of the scan, if they were looked at before.

    Returns:
        The mask, boolean (X, Y, Z), and notes for the user (derived mask, implausible volume).

    Raises:
        InputError: The mask is empty, or none is given and the scan shows a whole head.
        GeometryError: The mask has another shape than the scan.
    """
    notes: list[str] = []
    if mask is None:
        surroundings = surroundings or Surroundings(volume)
        if WHOLE_HEAD not in accept and surroundings.whole_head:
            raise InputError(_not_stripped(volume, surroundings.background))
        brain, said = _not_background(volume, surroundings.background)
        notes.append(said)
    else:
        brain = np.asarray(mask, dtype=bool)
        if brain.shape != volume.data.shape:
            raise GeometryError(f"brain mask has shape {brain.shape}, but {volume.name} has {volume.data.shape}")
    if not brain.any():
        raise InputError(f"the brain mask of {volume.name} is empty; give a mask that marks the brain")
    volume_ml = float(np.count_nonzero(brain)) * volume.voxel_mm3 / 1000
    low, high = PLAUSIBLE_ML
    if not low <= volume_ml <= high:
        notes.append(
            f"the brain mask holds {volume_ml:.0f} ml; {low:g} to {high:g} ml is usual: "
            "check the mask and the voxel spacing in the header"
        )
    return brain, tuple(notes)


def _not_stripped(volume: Volume, background: Background | None) -> str:
    if background is None:
        why = "its background is not one value, as in a raw scan with noisy air"
    else:
        why = "it shows a whole head with skull, or more than a brain"
    return (
        f"{volume.name} is not skull-stripped: {why}; give a brain mask, or extract the brain with `maediff prepare` "
        f"(--accept {WHOLE_HEAD} takes all of it as the brain, and then skull is mapped as anomalous)"
    )


def _not_background(volume: Volume, background: Background | None) -> tuple[BoolArray, str]:
    """Take all that is not background as the brain, and describe the background."""
    if background is None:
        return np.ones(volume.data.shape, bool), "the scan has no background: every voxel is taken as the brain"
    brain = largest_component(background.outside(volume.data))
    if background == Background(0.0):
        return brain, Information("no brain mask was given: the non-zero voxels are taken as the brain")
    level = f"{background.level:.4g}"
    what = f"within {background.tolerance:.3g} of {level}" if background.tolerance else f"constant at {level}"
    said = f"no brain mask was given and the background is {what}, not zero: all else is taken as the brain"
    return brain, Information(said)

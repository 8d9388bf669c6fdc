"""Brain masks: a given mask, or all that is not background in a skull-stripped scan."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from maediff.errors import GeometryError, InputError
from maediff.notes import Information
from maediff.typing import BoolArray
from maediff.volume import Volume
from maediff.working.foreground import Background, find_background, is_whole_head

PLAUSIBLE_ML = (300.0, 2500.0)
WHOLE_HEAD = "whole-head"
"""Code that a caller accepts to take all voxels that are not background as the brain, skull included."""


def brain_mask(
    volume: Volume, mask: npt.NDArray[Any] | None, accept: Collection[str] = ()
) -> tuple[BoolArray, tuple[str, ...]]:
    """Choose the brain of a scan.

    A given mask is used unchanged. Without one, the scan must be skull-stripped: the brain is the largest
    face-connected component of what is not background, with holes filled.

    Args:
        volume: The scan.
        mask: Brain (X, Y, Z), or None.
        accept: Contains "whole-head" if a scan of a whole head is accepted without brain extraction.

    Returns:
        The mask, boolean (X, Y, Z), and notes for the user (derived mask, implausible volume).

    Raises:
        InputError: The mask is empty, or none is given and the scan shows a whole head.
        GeometryError: The mask has another shape than the scan.
    """
    notes: list[str] = []
    if mask is None:
        background = find_background(volume.data)
        if WHOLE_HEAD not in accept and is_whole_head(volume):
            raise InputError(_not_stripped(volume, background))
        brain, said = _not_background(volume, background)
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


def largest_component(mask: BoolArray) -> BoolArray:
    """Keep the largest face-connected component and fill its holes.

    Args:
        mask: Boolean (X, Y, Z).

    Returns:
        Boolean (X, Y, Z); all False if ``mask`` is.
    """
    result = np.zeros_like(mask)
    box = bounding_box(mask)
    if box is None:
        return result
    labels, count = ndimage.label(mask[box])
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        component = labels == sizes.argmax()
    else:
        component = labels > 0
    # A hole is background that does not reach the border; labelling is much faster than iterated dilation.
    outside, _ = ndimage.label(np.pad(~component, 1, constant_values=True))
    result[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return result


def bounding_box(mask: BoolArray) -> tuple[slice, slice, slice] | None:
    """Find the smallest box that holds every True voxel, or None if there is none."""
    ranges = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        ranges.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]

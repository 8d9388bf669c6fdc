"""Where the brain is: a mask that was given, or the non-zero voxels of a skull-stripped scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from maediff.errors import GeometryError, InputError
from maediff.volume import Volume

PLAUSIBLE_ML = (300.0, 2500.0)
_MIN_BACKGROUND = 0.02

BoolArray = npt.NDArray[np.bool_]


def brain_mask(volume: Volume, mask: npt.NDArray[Any] | None) -> tuple[BoolArray, tuple[str, ...]]:
    """Choose the brain of a scan.

    A given mask is taken as it is. Without one, the scan counts as skull-stripped: the brain is the largest
    face-connected component of its non-zero voxels, with holes filled.

    Args:
        volume: The scan.
        mask: Brain (X, Y, Z), or None.

    Returns:
        The mask, boolean (X, Y, Z), and notes for the user (derived mask, implausible volume).

    Raises:
        InputError: The mask is empty.
        GeometryError: The mask has another shape than the scan.
    """
    notes: list[str] = []
    if mask is None:
        brain = largest_component(volume.data != 0)
        notes.append("no brain mask was given: the non-zero voxels are taken as the brain")
        if brain.mean() > 1 - _MIN_BACKGROUND:
            notes.append("the background is not zero: the scan is not skull-stripped; give a brain mask")
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


def largest_component(mask: BoolArray) -> BoolArray:
    """Keep the largest face-connected component and fill its holes.

    Args:
        mask: Boolean (X, Y, Z).

    Returns:
        Boolean (X, Y, Z); all False where ``mask`` is.
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
    """Find the smallest box that holds every True voxel, or None where there is none."""
    ranges = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        ranges.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]

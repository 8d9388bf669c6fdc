"""Connected components of masks, and their bounding boxes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from maediff.typing import BoolArray


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
    component = without_specks(mask[box])
    # A hole is background that does not reach the border; labelling is much faster than iterated dilation.
    outside, _ = ndimage.label(np.pad(~component, 1, constant_values=True))
    result[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return result


def without_specks(mask: BoolArray) -> BoolArray:
    """Keep the largest face-connected component of a mask (X, Y, Z) with its holes; the mask itself if it has one."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


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

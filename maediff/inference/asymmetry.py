"""Residuals count more where the scan itself departs from its other hemisphere in the same way. [ours]

A healthy structure that the network does not restore, such as a bright cortex or a choroid plexus, is there on both
sides; most lesions are not. The weight never falls below 1, so that lesions on both sides count as much as before.
What differs between the sides over several centimetres is shading, and does not count. Nor does fluid that has the
look of a lesion, bright on T2 and dark on T1: fissures and ventricles are wider on one side in many healthy brains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maediff.scoring import Sign, blurred
from maediff.typing import BoolArray, FloatMap
from maediff.working import WorkingScan
from maediff.working.hemispheres import axial_axes, midplane, mirrored

GAIN, LIMIT, SHADING = 3.0, 0.4, 5.0
"""The weight is 1 + GAIN x the departure, in working units, up to LIMIT; shading is what is left of it under a Gaussian
that is SHADING times as wide."""
_FLUID: dict[str, float] = {"t2": 0.3, "t1": -0.6}
"""Working units above which (T2) or below which (T1) a healthy voxel is taken for fluid."""
_LEAST_SHARE = 0.1  # a voxel with less brain of known departure around it counts less


def fluid_of(healthy: FloatMap, contrast: str) -> BoolArray | None:
    """Find the fluid that looks like lesions in a healthy reconstruction, of its shape; None on other contrasts.

    Args:
        healthy: Reconstruction, working units.
        contrast: Kind of contrast, as it was read from the scan.
    """
    if contrast not in _FLUID:
        return None
    limit = _FLUID[contrast]
    found: BoolArray = healthy > limit if contrast == "t2" else healthy < limit
    return found


def asymmetry_weight(scan: WorkingScan, sign: Sign, reach_mm: float, left_out: BoolArray | None = None) -> FloatMap:
    """Weigh voxels by how far the scan departs from its mirror image, smoothed, in the direction of the sign.

    Args:
        scan: The scan on its working grid, in any orientation.
        sign: What counts: brighter, darker or different (abs) than the other side.
        reach_mm: Standard deviation of the Gaussian that smooths the departure; 0 weighs all alike. Shading, the same
            under a wider one, is subtracted.
        left_out: Voxels that are not compared, of the shape of the mask (S, H, W); see :func:`fluid_of`.

    Returns:
        Weights from 1 to 1 + GAIN x LIMIT, of the shape of the mask (S, H, W).
    """
    if reach_mm <= 0:
        return np.ones(scan.mask.shape, dtype=np.float32)
    slices = scan.slices.mean(1) if scan.slices.ndim == 4 else scan.slices
    own = axial_axes(scan.grid.affine)  # among rows, columns and slices
    axes = [(axis + 1) % 3 for axis in own]  # of the stack, as axial slices (z, x, y)
    spacing = [scan.grid.spacing_mm[axis] for axis in own]
    compared = scan.mask if left_out is None else scan.mask & ~left_out
    values, brain, known = (np.ascontiguousarray(np.transpose(each, axes)) for each in (slices, scan.mask, compared))
    plane = midplane(values, brain, spacing)
    above = np.where(known, values + 1, 0).astype(np.float32)
    other, share = _mirrored(above, plane), _mirrored(known.astype(np.float32), plane)
    both = known & (share > 0.5)
    departure: FloatMap = np.where(both, above - other / np.maximum(share, 0.5), 0).astype(np.float32)
    near, far = (
        _smoothed(departure, both, [width / step for step in spacing]) for width in (reach_mm, SHADING * reach_mm)
    )
    signed = {"bright": near - far, "dark": far - near, "abs": np.abs(near - far)}[sign]
    weight = 1 + GAIN * np.clip(signed, 0, LIMIT)
    return np.ascontiguousarray(np.transpose(weight, np.argsort(axes)), dtype=np.float32)


def _smoothed(values: FloatMap, known: BoolArray, widths: Sequence[float]) -> FloatMap:
    """Smooth values that are 0 where nothing is known, by the share of what is."""
    share, total = (blurred(each.astype(np.float32), widths) for each in (known, values))
    found: FloatMap = total / np.maximum(share, np.float32(_LEAST_SHARE))
    return found


def _mirrored(values: FloatMap, plane: torch.Tensor) -> FloatMap:
    """Mirror what is 0 outside the brain (z, x, y)."""
    found: FloatMap = mirrored(torch.from_numpy(values[:, None]) - 1, plane).add(1).squeeze(1).numpy()
    return found

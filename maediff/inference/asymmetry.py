"""Residuals count more where the scan itself departs from its other hemisphere in the same way. [ours]

A healthy structure that the network does not restore, such as a bright cortex or a choroid plexus, is there on both
sides; most lesions are not. The weight never falls below 1, so that lesions on both sides count as much as before.
"""

from __future__ import annotations

import numpy as np
import torch
from nibabel.orientations import io_orientation
from scipy import ndimage, stats

from maediff.scoring import Sign
from maediff.typing import BoolArray, FloatMap
from maediff.working import WorkingScan
from maediff.working.hemispheres import midlines, mirrored

GAIN, LIMIT = 3.0, 0.4
"""The weight is 1 + GAIN x the departure, in working units, up to LIMIT."""
_LARGE = 0.4  # slices with this share of the largest slice's brain show where the midline is
_SQUARE = 0.05  # pixels whose sides differ by less than this share are taken as square


def asymmetry_weight(scan: WorkingScan, sign: Sign, reach_mm: float) -> FloatMap:
    """Weigh voxels by how far the scan departs from its mirror image, smoothed, in the direction of the sign.

    Args:
        scan: The scan on its working grid, in any orientation.
        sign: What counts: brighter, darker or different (abs) than the other side.
        reach_mm: Standard deviation of the Gaussian that smooths the departure; 0 weighs all alike.

    Returns:
        Weights from 1 to 1 + GAIN x LIMIT, of the shape of the mask (S, H, W).
    """
    if reach_mm <= 0:
        return np.ones(scan.mask.shape, dtype=np.float32)
    slices = scan.slices.mean(1) if scan.slices.ndim == 4 else scan.slices
    worlds = [int(axis) for axis in io_orientation(scan.grid.affine)[:, 0]]  # of rows, columns and slices
    axes = [(worlds.index(world) + 1) % 3 for world in (2, 0, 1)]  # of the stack, as axial slices (z, x, y)
    spacing = [scan.grid.spacing_mm[worlds.index(world)] for world in (2, 0, 1)]
    values, brain = (np.ascontiguousarray(np.transpose(each, axes)) for each in (slices, scan.mask))
    plane = _midplane(values, brain, square=abs(spacing[1] / spacing[2] - 1) < _SQUARE)
    above = np.where(brain, values + 1, 0).astype(np.float32)
    other, share = _mirrored(above, plane), _mirrored(brain.astype(np.float32), plane)
    both = brain & (share > 0.5)
    departure = np.where(both, above - other / np.maximum(share, 0.5), 0)
    departure = {"bright": departure, "dark": -departure, "abs": np.abs(departure)}[sign]
    widths = [reach_mm / step for step in spacing]
    known = ndimage.gaussian_filter(both.astype(np.float32), widths)
    smooth = ndimage.gaussian_filter(departure.astype(np.float32), widths) / np.maximum(known, 0.2)
    weight = 1 + GAIN * np.clip(smooth, 0, LIMIT)
    return np.ascontiguousarray(np.transpose(weight, np.argsort(axes)), dtype=np.float32)


def _midplane(values: FloatMap, brain: BoolArray, *, square: bool) -> torch.Tensor:
    """Find the midline of each axial slice (z, x, y), on one plane through all of them.

    Slices with little brain are often not symmetric, so that the plane goes through those with much of it: their median
    tilt, and the line through their places that is robust to outliers (Theil and Sen).
    """
    area = brain.sum((1, 2))
    large = np.flatnonzero((area > 0) & (area >= _LARGE * area.max()))
    found = midlines(torch.from_numpy(values[large, None])).numpy()
    tilt = float(np.median(found[:, 0])) if square else 0.0
    slope, intercept = (0.0, float(np.median(found[:, 1])))
    if len(large) > 2:
        slope, intercept = stats.theilslopes(found[:, 1], large)[:2]
    places = np.arange(len(values))
    return torch.from_numpy(np.stack([np.full(len(places), tilt), intercept + slope * places], 1)).float()


def _mirrored(values: FloatMap, plane: torch.Tensor) -> FloatMap:
    """Mirror what is 0 outside the brain (z, x, y)."""
    found: FloatMap = mirrored(torch.from_numpy(values[:, None]) - 1, plane).add(1).squeeze(1).numpy()
    return found

"""From scan and healthy reconstruction to anomaly map, mask and scan-level score.

Pure functions on arrays. Working slices are ``(S, H, W)``: slice, working x, working y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from scipy import ndimage
from skimage import measure

from maediff.config import ScoreConfig
from maediff.errors import ConfigError, InputError
from maediff.typing import BoolArray, FloatArray, FloatMap

Sign: TypeAlias = Literal["abs", "bright", "dark"]

CASE_SCORE_SHARE = 0.01
"""Share of the most anomalous brain voxels whose mean is the scan-level score. [ours]"""

_SUPPORT = 3.0
"""Weight of the mean residual around a voxel beside its own. [ours]"""
_SUPPORT_FROM = 0.1
"""Residuals support each other by what they have above this, in the units of the map. [ours]"""
_MOST_AROUND = 0.05
"""Most that a residual is supported by, in the units of the map. [ours]"""

_TOLERANCE = 1e-6  # relative; keeps 5 x 1 mm a five-pixel filter in floating point


def residual(x: FloatArray, x_hat: FloatArray, sign: Sign = "abs") -> FloatMap:
    """Compare a scan with its healthy reconstruction, voxel by voxel.

    ``abs`` is |x - x^| [paper]; ``bright`` is max(x - x^, 0), only what is brighter than healthy; ``dark`` is
    max(x^ - x, 0) [ours]. So abs = bright + dark.

    Args:
        x: Scan in working units, any shape.
        x_hat: Healthy reconstruction, same shape and units.
        sign: Which differences count.

    Returns:
        Residual, float32, never negative, same shape.

    Raises:
        ConfigError: Unknown sign.

    Example:
        >>> residual(np.array([1.0, 0.0]), np.array([0.25, 0.5]), "bright").tolist()
        [0.75, 0.0]
    """
    difference: FloatMap = np.subtract(x, x_hat, dtype=np.float32)
    if sign == "abs":
        return np.abs(difference, out=difference)
    if sign == "dark":
        difference = -difference
    if sign in {"bright", "dark"}:
        return np.maximum(difference, 0, out=difference)
    raise ConfigError(f"sign {sign!r} is unknown; use abs, bright or dark (score.sign)")


def anomaly_map(
    x: FloatArray, x_hat: FloatArray, mask: BoolArray, spacing_mm: tuple[float, float, float], config: ScoreConfig
) -> FloatMap:
    """Turn scan and reconstruction into the anomaly map of the working slices.

    Compute the residual, average it over channels if there are several [ours], then apply :func:`postprocess`.

    Args:
        x: Working slices (S, H, W) or (S, C, H, W).
        x_hat: Healthy reconstruction, same shape.
        mask: Brain (S, H, W).
        spacing_mm: Spacing of the working grid along x (H), y (W) and slice (S).
        config: Sign, filter width and erosion depth.

    Returns:
        Map (S, H, W), float32, in residual units, zero outside the eroded brain.
    """
    return postprocess(channel_residual(x, x_hat, fixed_sign(config)), mask, spacing_mm, config)


def fixed_sign(config: ScoreConfig) -> Sign:
    """Return the sign of the configuration.

    Raises:
        ConfigError: It is ``auto``, which is read from a scan, not from its slices.
    """
    if config.sign == "auto":
        raise ConfigError("score.sign auto is read from a scan; set abs, bright or dark for slices on their own")
    return config.sign


def channel_residual(x: FloatArray, x_hat: FloatArray, sign: Sign = "abs") -> FloatMap:
    """Compare working slices with their reconstruction: the residual, averaged over channels if there are several.

    Args:
        x: Working slices (S, H, W) or (S, C, H, W).
        x_hat: Healthy reconstruction, same shape.
        sign: As for :func:`residual`.

    Returns:
        Residual (S, H, W), float32.
    """
    values = residual(x, x_hat, sign)
    return values.mean(1) if values.ndim == 4 else values


def agreement(deviation: FloatArray, least: float) -> FloatMap:
    """Weigh residuals by how far the healthy reconstructions of several passes agree.

    ``|x - m| / sqrt(v + e^2)`` is the Mahalanobis distance of a voxel x from reconstructions of mean m and variance v,
    regularised by e (after Behrendt et al., MICCAI 2024, arXiv 2407.12474). Times e, it stays in working units, and is
    the residual where all passes agree: the residual times ``1 / sqrt(1 + v / e^2)``. [ours]

    Args:
        deviation: Standard deviation over passes, working units, any shape.
        least: e, working units; 0 turns the weight off.

    Returns:
        Weights from 0 to 1, float32, same shape.

    Example:
        >>> [round(float(weight), 3) for weight in agreement(np.array([0.0, 0.1, 0.3]), 0.1)]
        [1.0, 0.707, 0.316]
    """
    if not least:
        return np.ones_like(deviation, dtype=np.float32)
    weights: FloatMap = (1 / np.sqrt(1 + np.square(deviation, dtype=np.float32) / least**2)).astype(np.float32)
    return weights


def postprocess(
    values: FloatArray, mask: BoolArray, spacing_mm: tuple[float, float, float], config: ScoreConfig
) -> FloatMap:
    """Filter any voxelwise score like the anomaly map, so that methods can be compared fairly.

    Values outside the brain become zero, each slice is median-filtered (``config.median_mm``), values outside the
    eroded brain (``config.erode_mm``) become zero, values near the brain's surface count less
    (``config.half_depth_mm``), and values amid others count more (``config.support_mm``). All but the last two steps
    work within slices.

    Args:
        values: Scores (S, H, W).
        mask: Brain (S, H, W).
        spacing_mm: Spacing along x (H), y (W) and slice (S).
        config: Filter width, erosion depth, half depth and reach of support, mm.

    Returns:
        Filtered scores (S, H, W), float32.
    """
    filtered = np.where(mask, values, 0).astype(np.float32)
    size = tuple(filter_pixels(config.median_mm, step) for step in spacing_mm[:2])
    if max(size) > 1:
        filtered = ndimage.median_filter(filtered, size=(1, *size), mode="constant", cval=0.0)
    inside = eroded(mask, spacing_mm, config.erode_mm)
    filtered[~inside] = 0.0
    filtered *= depth_weight(mask, spacing_mm, config.half_depth_mm)
    return supported(filtered, inside, spacing_mm, config.support_mm)


def filter_pixels(width_mm: float, step_mm: float) -> int:
    """Return the largest odd number of pixels that a filter of the given width covers.

    Example:
        >>> filter_pixels(5.0, 1.0), filter_pixels(5.0, 2.0), filter_pixels(0.0, 2.0)
        (5, 3, 1)
    """
    return 2 * math.floor(width_mm / (2 * step_mm) * (1 + _TOLERANCE)) + 1


def eroded(mask: BoolArray, spacing_mm: tuple[float, float, float], erode_mm: float) -> BoolArray:
    """Erode a brain mask within its slices, never across them.

    A voxel is kept if its in-plane Euclidean distance to the nearest voxel outside the mask, centre to centre, is
    greater than ``erode_mm``. The area beyond the picture counts as outside.

    Args:
        mask: Brain (S, H, W).
        spacing_mm: Spacing along x (H), y (W) and slice (S).
        erode_mm: Depth; 0 returns the mask unchanged.

    Returns:
        Eroded mask (S, H, W).
    """
    if erode_mm <= 0:
        return np.asarray(mask, dtype=bool)
    across = 10.0 * ((mask.shape[1] + 2) * spacing_mm[0] + (mask.shape[2] + 2) * spacing_mm[1])  # no slice is nearest
    kept: BoolArray = _depth_mm(mask, (*spacing_mm[:2], across)) > erode_mm * (1 + _TOLERANCE)
    return kept


def depth_weight(mask: BoolArray, spacing_mm: tuple[float, float, float], half_depth_mm: float) -> FloatMap:
    """Weigh voxels by their depth d below the brain's surface: d / (d + half_depth_mm). [ours]

    At the surface brain masks err, and voxels hold a part of what lies outside; so healthy residuals are largest there,
    and in the first and last slices of a scan. The depth is the distance to the nearest voxel outside the mask, centre
    to centre, in three dimensions; the area beyond the scan counts as outside.

    Args:
        mask: Brain (S, H, W).
        spacing_mm: Spacing along x (H), y (W) and slice (S).
        half_depth_mm: Depth that counts half; 0 counts all alike.

    Returns:
        Weights from 0 (outside the brain) to below 1 (S, H, W), float32; ones if `half_depth_mm` is 0.

    Example:
        >>> line = np.ones((9, 9, 9), dtype=bool)
        >>> depth_weight(line, (1.0, 1.0, 1.0), 5.0)[4, 4, [0, 4]].tolist()  # depths of 1 and 5 mm
        [0.1666666716337204, 0.5]
    """
    if half_depth_mm <= 0:
        return np.ones(mask.shape, dtype=np.float32)
    depth = _depth_mm(mask, spacing_mm)
    weight: FloatMap = (depth / (depth + half_depth_mm)).astype(np.float32)
    return weight


def supported(values: FloatMap, mask: BoolArray, spacing_mm: tuple[float, float, float], support_mm: float) -> FloatMap:
    """Add to each voxel what lies around it: values + 3 x the mean of max(values - 0.1, 0) under a Gaussian. [ours]

    No more than 3 x 0.05 is added, so that a strong lesion does not lift healthy tissue beside it above a threshold.

    A voxel of a large lesion has others around it, a false alarm in a sulcus has not. As in threshold-free cluster
    enhancement (Smith & Nichols 2009), a voxel keeps its own value besides, so that edges stay sharp and small lesions
    stay.

    Args:
        values: Scores (S, H, W), 0 outside the brain.
        mask: Brain (S, H, W); the mean is over voxels within it.
        spacing_mm: Spacing along x (H), y (W) and slice (S).
        support_mm: Standard deviation of the Gaussian, which ends at three of them; 0 returns the values unchanged.

    Returns:
        Scores (S, H, W), float32, 0 outside the brain.

    Example:
        >>> brain = np.ones((9, 9, 9), dtype=bool); lone = np.zeros((9, 9, 9), dtype=np.float32); lone[4, 4, 4] = 0.5
        >>> [round(float(supported(x, brain, (1.0, 1.0, 1.0), 1.0)[4, 4, 4]), 2) for x in (lone, 0.5 + 0 * lone)]
        [0.58, 0.65]
    """
    if support_mm <= 0:
        return values
    widths = [support_mm / step for step in (spacing_mm[2], *spacing_mm[:2])]

    share = blurred(mask.astype(np.float32), widths)
    total = blurred(np.maximum(values - _SUPPORT_FROM, 0), widths)
    around = np.divide(total, share, out=np.zeros_like(total), where=mask & (share > 0))
    found: FloatMap = (values + _SUPPORT * np.minimum(around, _MOST_AROUND)).astype(np.float32)
    return found


def blurred(values: FloatMap, widths: Sequence[float]) -> FloatMap:
    """Blur a volume with a Gaussian that ends at three standard deviations (voxels along each axis); 0 lies beyond it.

    `scipy.ndimage.gaussian_filter`, one matrix along each axis: for wide Gaussians many times as fast.
    """
    for axis, width in enumerate(widths):
        line = np.eye(values.shape[axis], dtype=np.float32)
        along = ndimage.gaussian_filter1d(line, width, axis=0, mode="constant", truncate=3.0)
        values = np.moveaxis(np.tensordot(along, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def _depth_mm(mask: BoolArray, spacing_mm: tuple[float, float, float]) -> FloatArray:
    """Measure how far each voxel lies from the nearest one outside the mask or beyond the scan (S, H, W), mm."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    depth: FloatArray = ndimage.distance_transform_edt(padded, sampling=(spacing_mm[2], *spacing_mm[:2]))
    return depth[1:-1, 1:-1, 1:-1]


def anomaly_mask(
    values: FloatArray, threshold: float, spacing_mm: tuple[float, float, float], min_size_mm3: float = 0.0
) -> BoolArray:
    """Threshold a map and drop components that are too small.

    Args:
        values: Anomaly map (X, Y, Z), native grid.
        threshold: Voxels strictly above it are anomalous.
        spacing_mm: Voxel size of that grid.
        min_size_mm3: 26-connected components of a smaller volume are removed.

    Returns:
        Anomaly mask (X, Y, Z).

    Example:
        >>> spots = np.zeros((4, 4, 4)); spots[0, 0, 0] = spots[2:, 2:, 2:] = 1.0
        >>> int(anomaly_mask(spots, 0.5, (1.0, 1.0, 1.0), min_size_mm3=2.0).sum())
        8
    """
    above: BoolArray = np.asarray(values > threshold)
    voxel_mm3 = float(np.prod(spacing_mm))
    if min_size_mm3 <= voxel_mm3 or not above.any():
        return above
    components = measure.label(above, connectivity=3)
    large = np.bincount(components.ravel()) * voxel_mm3 >= min_size_mm3 * (1 - _TOLERANCE)
    large[0] = False
    kept: BoolArray = large[components]
    return kept


def case_score(values: FloatArray, mask: BoolArray) -> float:
    """Summarise a map in one number: the mean of the highest 1 % of its brain voxels (at least one). [ours]

    Args:
        values: Anomaly map, any shape.
        mask: Brain, same shape.

    Returns:
        Scan-level anomaly score, in the units of the map.

    Raises:
        InputError: The mask is empty.

    Example:
        >>> case_score(np.arange(200.0), np.ones(200, dtype=bool))
        198.5
    """
    inside = values[mask]
    if inside.size == 0:
        raise InputError("the brain mask is empty, so the scan has no score; check the mask")
    count = math.ceil(CASE_SCORE_SHARE * inside.size)
    highest = np.partition(inside, inside.size - count)[-count:]
    return float(highest.mean(dtype=np.float64))


def filter_map(
    values: FloatArray,
    mask: BoolArray,
    spacing_mm: tuple[float, float, float],
    config: ScoreConfig,
    axes: Sequence[int] = (2, 0, 1),
) -> FloatMap:
    """Filter a map on a scan's own voxels as a model's map is filtered, see :func:`postprocess`.

    Args:
        values: Scores (X, Y, Z).
        mask: Brain (X, Y, Z).
        spacing_mm: Voxel size along the array's axes.
        config: Filter width, erosion depth, half depth and reach of support, mm.
        axes: Array axes along z (across slices), x and y, see :func:`maediff.working.hemispheres.axial_axes`; by
            default those of a scan that is stored (x, y, z).

    Returns:
        Filtered scores (X, Y, Z), float32.
    """
    across, x, y = (spacing_mm[axis] for axis in axes)
    slices = postprocess(np.transpose(values, axes), np.transpose(mask, axes), (x, y, across), config)
    return np.ascontiguousarray(np.transpose(slices, np.argsort(axes)))

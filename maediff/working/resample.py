"""Anti-aliased resampling between two voxel grids that are related by an affine map.

Two ways give the same numbers: if the axes of both grids are parallel (after a permutation and flips), every
axis is resampled separately with a small matrix; otherwise the volume is filtered and then sampled in 3-D.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from maediff.typing import Array, BoolArray, FloatMap

Shape = tuple[int, int, int]

# Standard deviation of a Gaussian whose full width at half maximum is 1.
_FWHM_TO_SIGMA = 1 / (2 * np.sqrt(2 * np.log(2)))
# Affines from float32 headers are off by less than this; indices this close to whole numbers are rounded.
_SNAP = 1e-5


def index_map(source_affine: Array, target_affine: Array) -> Array:
    """Compute the map (4, 4) from target voxel index to source voxel index.

    Values that are whole up to rounding errors are rounded, so that grids that coincide give exact copies.
    """
    matrix = np.linalg.solve(source_affine, target_affine)
    whole = np.round(matrix)
    snapped: Array = np.where(np.abs(matrix - whole) < _SNAP, whole, matrix)
    return snapped


def prefilter_sigmas(matrix: Array) -> tuple[float, ...]:
    """Compute the anti-aliasing blur for each source axis, in source voxels.

    A target voxel that is k source voxels wide along an axis needs a Gaussian of full width sqrt(k^2 - 1) there, so
    that the point spread of the source (width 1) becomes that of the target (Cardoso et al., MICCAI 2015).

    Args:
        matrix: Target index to source index (4, 4), see :func:`index_map`.
    """
    factors = np.linalg.norm(matrix[:3, :3], axis=1)
    return tuple(float(s) for s in np.sqrt(np.clip(factors**2 - 1, 0, None)) * _FWHM_TO_SIGMA)


def resample(data: Array, matrix: Array, shape: Shape, order: int = 1, fill: float = 0.0) -> FloatMap:
    """Sample a volume on another grid.

    Args:
        data: Source values, three axes.
        matrix: Target index to source index (4, 4).
        shape: Shape of the target grid.
        order: 1 is linear after an anti-aliasing blur along axes that get coarser; 0 is the nearest voxel.
        fill: Value of target voxels whose centre lies outside the source's field of view.

    Returns:
        Values (``shape``), float32. Between the outermost voxel centres and the edge of the field of view the
        outermost voxel counts.
    """
    if order not in (0, 1):
        raise ValueError(f"order {order} is not supported; choose 0 (nearest) or 1 (linear)")
    data = np.asarray(data, np.float32)
    linear = matrix[:3, :3]
    if ((linear != 0).sum(axis=0) == 1).all() and ((linear != 0).sum(axis=1) == 1).all():
        return _resample_axes(data, matrix, shape, order, fill)
    return _resample_oblique(data, matrix, shape, order, fill)


def _resample_axes(data: Array, matrix: Array, shape: Shape, order: int, fill: float) -> Array:
    partners = [int(np.flatnonzero(matrix[axis, :3])[0]) for axis in range(3)]
    coords = [
        matrix[axis, partner] * np.arange(shape[partner]) + matrix[axis, 3] for axis, partner in enumerate(partners)
    ]
    outside = [~_within(c, n) for c, n in zip(coords, data.shape, strict=True)]
    sigmas = prefilter_sigmas(matrix) if order == 1 else (0.0, 0.0, 0.0)
    # Axes that shrink most go first, so that later ones have less data.
    for axis in sorted(range(3), key=lambda a: len(coords[a]) / data.shape[a]):
        data = _resample_axis(data, axis, coords[axis], sigmas[axis], order)
    result = np.array(np.transpose(data, np.argsort(partners)), np.float32, order="C")
    for axis, partner in enumerate(partners):
        result[(slice(None),) * partner + (outside[axis],)] = fill
    return result


def _resample_axis(data: Array, axis: int, coords: Array, sigma: float, order: int) -> Array:
    length = data.shape[axis]
    clamped = np.clip(coords, 0, length - 1)
    if order == 0 or (sigma == 0 and (clamped == np.round(clamped)).all()):
        index = np.floor(clamped + 0.5).astype(int).clip(0, length - 1)
        return data if np.array_equal(index, np.arange(length)) else np.take(data, index, axis=axis)
    weights = _interpolation_weights(clamped, length)
    if sigma > 0:
        weights = weights @ ndimage.gaussian_filter1d(np.eye(length), sigma, axis=0, mode="nearest")
    return np.moveaxis(np.tensordot(weights.astype(np.float32), data, axes=(1, axis)), 0, axis)


def _interpolation_weights(coords: Array, length: int) -> Array:
    """Build the linear interpolation matrix (len(coords), length) for coordinates within [0, length - 1]."""
    low = np.floor(coords).astype(int).clip(0, max(length - 2, 0))
    share = coords - low
    weights = np.zeros((len(coords), length))
    rows = np.arange(len(coords))
    weights[rows, low] += 1 - share
    weights[rows, np.minimum(low + 1, length - 1)] += share
    return weights


def _resample_oblique(data: Array, matrix: Array, shape: Shape, order: int, fill: float) -> Array:
    if order == 1:
        for axis, sigma in enumerate(prefilter_sigmas(matrix)):
            if sigma > 0:
                data = ndimage.gaussian_filter1d(data, sigma, axis=axis, mode="nearest")
    result = np.empty(shape, np.float32)
    ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, output=result, order=order, mode="nearest"
    )
    i, j, k = (index.astype(np.float32) for index in np.ogrid[: shape[0], : shape[1], : shape[2]])
    for row, length in zip(matrix[:3].astype(np.float32), data.shape, strict=True):
        coords = (row[0] * i + (row[1] * j + row[3])) + row[2] * k
        result[~_within(coords, length)] = fill
    return result


def _within(coords: Array, length: int) -> BoolArray:
    inside: BoolArray = (coords >= -0.5 - 1e-4) & (coords <= length - 0.5 + 1e-4)
    return inside

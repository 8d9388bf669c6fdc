"""Voxelwise z-scores against healthy scans in a template's space, a baseline (Saase et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maediff.config import ScoreConfig
from maediff.errors import InputError
from maediff.methods.base import ScanBaseline
from maediff.methods.intensity import relative_intensity
from maediff.scoring import Sign, filter_map, fixed_sign
from maediff.typing import Array, BoolArray, DoubleArray, FloatArray, FloatMap
from maediff.volume import Volume, check_common_space
from maediff.working.hemispheres import axial_axes
from maediff.working.resample import Shape, index_map, resample

MIN_SCANS = 3
"""Voxels that fewer healthy brains cover have no z-score."""

_STD_FLOOR_PERCENTILE = 5.0
_PARTS = ("mean", "std", "count", "affine")


class ZScore(ScanBaseline):
    """Measure how far each voxel lies from the mean of healthy scans, in their standard deviations.

    Args:
        statistics: ``mean``, ``std`` and ``count`` (X, Y, Z) and ``affine`` (4, 4), as stored in a model folder; empty
            before :meth:`fit`.
    """

    def __init__(self, statistics: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in _PARTS:
            self.register_buffer(name, statistics.get(name, torch.zeros(0)).clone().float())

    def fit(self, scans: Iterable[tuple[Volume, BoolArray]]) -> None:
        """Collect the voxelwise mean and standard deviation of healthy scans.

        Raises:
            GeometryError: A scan does not say that it lies in a template's space.
            InputError: Fewer than three scans.
        """
        found = fit_zscore(_in_common_space(scans))
        for name in _PARTS:
            self.register_buffer(name, torch.from_numpy(getattr(found, name)).float())

    def scan_maps(self, volume: Volume, brain: BoolArray, score: ScoreConfig) -> tuple[FloatMap, FloatMap]:
        """Return the z-scores, and the mean of the healthy scans in this scan's units, where it is known.

        Raises:
            GeometryError: The scan does not say that it lies in a template's space.
            InputError: The brain has no contrast.
        """
        check_common_space(volume, "method zscore")
        low, middle = np.percentile(volume.data[brain], [1.0, 50.0])
        parts = {name: value.cpu().numpy() for name, value in self.named_buffers()}
        statistics = HealthyStatistics(**{**parts, "affine": parts["affine"].astype(np.float64)})
        values = zscore_map(volume, brain, statistics, fixed_sign(score))
        there = statistics.on(volume)
        healthy = np.where(brain & there.known, low + (middle - low) * there.mean, volume.data).astype(np.float32)
        return filter_map(values, brain, volume.spacing_mm, score, axial_axes(volume.affine)), healthy


@dataclass(frozen=True)
class HealthyStatistics:
    """Voxelwise mean and standard deviation of healthy scans on a common grid.

    Attributes:
        mean: Mean relative intensity (X, Y, Z).
        std: Standard deviation (X, Y, Z), with a floor so that quiet voxels do not explode.
        count: Healthy brains that cover each voxel (X, Y, Z).
        affine: Voxel to RAS mm of that grid (4, 4).
    """

    mean: FloatMap
    std: FloatMap
    count: FloatMap
    affine: DoubleArray

    @property
    def known(self) -> BoolArray:
        """Voxels that enough healthy brains cover (X, Y, Z)."""
        return (self.count >= MIN_SCANS - 0.5) & (self.std > 0)

    def on(self, volume: Volume) -> HealthyStatistics:
        """Resample to the voxels of a scan; mean and deviation are averages over known voxels."""
        matrix, shape = index_map(self.affine, volume.affine), volume.data.shape
        mean, std = (_resampled(part, self.known, matrix, shape)[0] for part in (self.mean, self.std))
        return HealthyStatistics(mean, std, resample(self.count, matrix, shape), volume.affine)


def fit_zscore(scans: Iterable[tuple[Volume, BoolArray]]) -> HealthyStatistics:
    """Average healthy scans voxel by voxel, on the grid of the first.

    Scans on another grid are resampled linearly to it by their affines; they must already lie in one space (a
    template's), since nothing is registered here.

    Args:
        scans: Healthy scans, each with its brain mask.

    Raises:
        InputError: Fewer than three scans.
    """
    total = squares = count = np.zeros((0, 0, 0))
    affine = np.eye(4)
    n = 0
    for n, (volume, mask) in enumerate(scans, start=1):
        relative = relative_intensity(volume.data, mask)
        if n == 1:
            affine = volume.affine
            total, squares, count = np.zeros((3, *volume.data.shape))
        relative, share = _resampled(relative, mask, index_map(volume.affine, affine), total.shape)
        inside = share >= 0.5
        total += np.where(inside, relative, 0)
        squares += np.where(inside, np.square(relative, dtype=np.float64), 0)
        count += inside
    if n < MIN_SCANS:
        raise InputError(f"{n} healthy scans are too few for voxelwise z-scores; give at least {MIN_SCANS}")
    return _statistics(total, squares, count, affine)


def zscore_map(volume: Volume, mask: BoolArray, healthy: HealthyStatistics, sign: Sign = "abs") -> FloatMap:
    """Measure how many standard deviations each voxel lies from the healthy mean (Saase et al. 2020).

    Args:
        volume: Scan in the space of the healthy ones.
        mask: Its brain.
        healthy: From :func:`fit_zscore`.
        sign: ``abs``: |z|; ``bright``: max(z, 0); ``dark``: max(-z, 0).

    Returns:
        Map (X, Y, Z) on the scan's own grid, float32; zero outside the brain and where too few healthy brains reach.
    """
    there = healthy.on(volume)
    known = mask & there.known
    difference = relative_intensity(volume.data, mask) - there.mean
    z = np.divide(difference, there.std, out=np.zeros(mask.shape, np.float32), where=known)
    signed: FloatMap = np.abs(z) if sign == "abs" else np.maximum(z if sign == "bright" else -z, 0)
    return signed


def _in_common_space(scans: Iterable[tuple[Volume, BoolArray]]) -> Iterable[tuple[Volume, BoolArray]]:
    for volume, brain in scans:
        check_common_space(volume, "method zscore")
        yield volume, brain


def _statistics(total: FloatArray, squares: FloatArray, count: FloatArray, affine: DoubleArray) -> HealthyStatistics:
    covered = count >= MIN_SCANS
    n = np.maximum(count, 2)
    mean = np.where(covered, total / n, 0)
    std = np.sqrt(np.maximum(np.where(covered, (squares - n * mean**2) / (n - 1), 0), 0))
    floor = np.percentile(std[covered], _STD_FLOOR_PERCENTILE) if covered.any() else 0.0
    std = np.where(covered, np.maximum(std, max(float(floor), 1e-6)), 0)
    return HealthyStatistics(mean.astype(np.float32), std.astype(np.float32), count.astype(np.float32), affine)


def _resampled(values: FloatMap, known: BoolArray, matrix: Array, shape: Shape) -> tuple[FloatMap, FloatMap]:
    """Average on another grid what is known of a map, so that what is not known does not count as 0.

    Args:
        values: Map (X, Y, Z).
        known: Where it has a value.
        matrix: Target index to source index (4, 4).
        shape: Shape of the target grid.

    Returns:
        The average on the target grid, 0 where nothing is known, and the share of voxels there that are known.
    """
    share = resample(known, matrix, shape)
    moved = resample(np.where(known, values, 0), matrix, shape)
    return np.divide(moved, share, out=moved, where=share > 0), share

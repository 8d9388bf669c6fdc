"""Two plain methods that every model must be compared with: intensity, and voxelwise z-scores against healthy scans.

Both give maps that :func:`maediff.scoring.postprocess` filters and :func:`method_metrics` scores as it does a model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from maediff.calibration import calibrate
from maediff.config import ScoreConfig
from maediff.errors import InputError
from maediff.evaluation.voxel import voxel_metrics
from maediff.scoring import Sign, case_score, postprocess
from maediff.typing import BoolArray, DoubleArray, FloatArray, FloatMap
from maediff.volume import Volume

MIN_SCANS = 3
"""Voxels that fewer healthy brains cover have no z-score."""

_STD_FLOOR_PERCENTILE = 5.0


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

    def mean_on(self, volume: Volume) -> FloatMap:
        """Resample the mean to the grid of a scan."""
        return _on_grid(self.mean, self.affine, volume.data.shape, volume.affine)


def relative_intensity(data: FloatArray, mask: BoolArray) -> FloatMap:
    """Scale a scan so that its dark end (1st percentile in the brain) is 0 and its brain median 1; zero outside.

    Raises:
        InputError: The brain has no contrast.
    """
    inside = data[mask]
    low, middle = np.percentile(inside, [1.0, 50.0]) if inside.size else (0.0, 0.0)
    if not middle > low:
        raise InputError(f"the brain has no contrast (1st percentile {low:g}, median {middle:g}); check scan and mask")
    scaled = np.clip((data.astype(np.float32) - np.float32(low)) / np.float32(middle - low), 0, None)
    relative: FloatMap = np.where(mask, scaled, np.float32(0))
    return relative


def intensity_map(data: FloatArray, mask: BoolArray, sign: Sign = "bright") -> FloatMap:
    """Call a voxel the more anomalous the brighter (darker, or further from the brain's median) it is.

    Args:
        data: Scan, any shape, any intensity units.
        mask: Brain, same shape.
        sign: ``bright``: intensity relative to the brain's median; ``dark``: max(2 - that, 0); ``abs``: |that - 1|.

    Returns:
        Map, float32, zero outside the brain.

    Raises:
        InputError: The brain has no contrast.
    """
    relative = relative_intensity(data, mask)
    if sign == "bright":
        return relative
    scores: FloatMap = np.maximum(2 - relative, 0) if sign == "dark" else np.abs(relative - 1)
    scores[~mask] = 0
    return scores


def fit_zscore(scans: Iterable[tuple[Volume, BoolArray]]) -> HealthyStatistics:
    """Average healthy scans voxel by voxel, on the grid of the first.

    Scans on another grid are resampled linearly to it by their affines; they must already lie in one space (a
    template's), since nothing is registered here.

    Args:
        scans: Healthy scans, each with its brain mask.

    Raises:
        InputError: Fewer than three scans.
    """
    total = squares = count = np.zeros(0)
    affine = np.eye(4)
    n = 0
    for n, (volume, mask) in enumerate(scans, start=1):
        relative, brain = relative_intensity(volume.data, mask), mask.astype(np.float32)
        if n == 1:
            affine = volume.affine
            total, squares, count = np.zeros((3, *volume.data.shape))
        relative = _on_grid(relative, volume.affine, total.shape, affine)
        inside = _on_grid(brain, volume.affine, total.shape, affine) >= 0.5
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
    shape, affine = volume.data.shape, volume.affine
    mean, std, count = (
        _on_grid(part, healthy.affine, shape, affine) for part in (healthy.mean, healthy.std, healthy.count)
    )
    known = mask & (count >= MIN_SCANS - 0.5) & (std > 0)
    z = np.divide(relative_intensity(volume.data, mask) - mean, std, out=np.zeros(shape, np.float32), where=known)
    signed: FloatMap = np.abs(z) if sign == "abs" else np.maximum(z if sign == "bright" else -z, 0)
    return signed


def filter_map(
    values: FloatArray, mask: BoolArray, spacing_mm: tuple[float, float, float], config: ScoreConfig
) -> FloatMap:
    """Filter a map (X, Y, Z) whose third axis is the slice axis as a model's map is filtered."""
    slices = postprocess(np.moveaxis(values, 2, 0), np.moveaxis(mask, 2, 0), spacing_mm, config)
    return np.ascontiguousarray(np.moveaxis(slices, 0, 2))


def method_metrics(
    healthy: Iterable[tuple[FloatArray, BoolArray]],
    test: Iterable[tuple[FloatArray, BoolArray, BoolArray, str]],
    rate: float,
) -> dict[str, dict[str, float | None]]:
    """Score one method's maps as a model is scored: calibrate on healthy scans, then average over scans by lesion.

    Args:
        healthy: Maps of healthy calibration scans, each with its brain mask.
        test: Maps of test scans, each with brain mask, lesion mask and lesion kind.
        rate: False-positive rate of the calibration.

    Returns:
        ``{kind: {"auroc", "auprc", "dice", "dice_oracle"}}``; None where not defined.
    """
    threshold = calibrate(((values, mask, case_score(values, mask)) for values, mask in healthy), rate).threshold
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for values, mask, label, kind in test:
        scores[kind].append(asdict(voxel_metrics(values, mask, label, threshold)))
    table: dict[str, dict[str, float | None]] = {}
    for kind, rows in scores.items():
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        defined = {name: column[np.isfinite(column)] for name, column in columns.items()}
        table[kind] = {name: float(values.mean()) if values.size else None for name, values in defined.items()}
    return table


def _statistics(total: FloatArray, squares: FloatArray, count: FloatArray, affine: DoubleArray) -> HealthyStatistics:
    covered = count >= MIN_SCANS
    n = np.maximum(count, 2)
    mean = np.where(covered, total / n, 0)
    std = np.sqrt(np.maximum(np.where(covered, (squares - n * mean**2) / (n - 1), 0), 0))
    floor = np.percentile(std[covered], _STD_FLOOR_PERCENTILE) if covered.any() else 0.0
    std = np.where(covered, np.maximum(std, max(float(floor), 1e-6)), 0)
    return HealthyStatistics(mean.astype(np.float32), std.astype(np.float32), count.astype(np.float32), affine)


def _on_grid(data: FloatArray, affine: DoubleArray, shape: tuple[int, ...], target: DoubleArray) -> FloatMap:
    if data.shape == shape and np.allclose(affine, target, atol=1e-4):
        return data.astype(np.float32)
    matrix = np.linalg.inv(affine) @ target  # target voxel to source voxel
    moved: FloatMap = ndimage.affine_transform(
        data.astype(np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1
    )
    return moved

"""ROC and precision-recall curves, for drawing: of pooled voxels and of scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maediff.evaluation.bootstrap import VoxelHistogram
from maediff.typing import DoubleArray

MAX_POINTS = 240


@dataclass(frozen=True)
class Curves:
    """Curves for a threshold that decreases from the highest score to the lowest.

    Attributes:
        false_positive_rate: Share of healthy items called anomalous (K,), rising.
        recall: Share of anomalous items called anomalous (K,), rising; also the true-positive rate.
        precision: Share of anomalous items among those called so (K,).
        prevalence: Share of anomalous items: the precision of chance.
    """

    false_positive_rate: DoubleArray
    recall: DoubleArray
    precision: DoubleArray
    prevalence: float


def voxel_curves(scans: Sequence[VoxelHistogram]) -> Curves | None:
    """Compute curves over the brain voxels of all scans together; None if only one kind of voxel is there."""
    if not scans:
        return None
    bins = np.unique(np.concatenate([scan.bins for scan in scans]))
    lesion, healthy = np.zeros((2, bins.size))
    for scan in scans:
        place = np.searchsorted(bins, scan.bins)
        lesion[place] += scan.lesion
        healthy[place] += scan.healthy
    return _curves(lesion[::-1], healthy[::-1])


def scan_curves(scores: npt.ArrayLike, has_lesion: npt.ArrayLike) -> Curves | None:
    """Compute curves over scans; None if only one kind of scan is there.

    Example:
        >>> scan_curves([0.1, 0.2, 0.9], [False, False, True]).recall.tolist()
        [0.0, 1.0, 1.0, 1.0]
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(has_lesion, dtype=bool)
    bins, place = np.unique(values, return_inverse=True)
    lesion = np.bincount(place, weights=truth, minlength=bins.size)
    healthy = np.bincount(place, weights=~truth, minlength=bins.size)
    return _curves(lesion[::-1].astype(np.float64), healthy[::-1].astype(np.float64))


def _curves(lesion: DoubleArray, healthy: DoubleArray) -> Curves | None:
    """Accumulate counts, highest score first, and thin the points to the resolution of a picture."""
    hits, alarms = np.cumsum(lesion), np.cumsum(healthy)
    if hits.size == 0 or hits[-1] == 0 or alarms[-1] == 0:
        return None
    precision = hits / (hits + alarms)
    rate, recall = alarms / alarms[-1], hits / hits[-1]
    kept = _thinned(rate, recall)
    return Curves(
        np.concatenate([[0.0], rate[kept]]),
        np.concatenate([[0.0], recall[kept]]),
        np.concatenate([precision[:1], precision[kept]]),
        float(hits[-1] / (hits[-1] + alarms[-1])),
    )


def _thinned(rate: DoubleArray, recall: DoubleArray) -> npt.NDArray[np.intp]:
    """Indices of points spread evenly along the ROC curve, both ends included."""
    if rate.size <= MAX_POINTS:
        return np.arange(rate.size)
    along = rate + recall
    kept = np.searchsorted(along, np.linspace(along[0], along[-1], MAX_POINTS))
    unique: npt.NDArray[np.intp] = np.unique(np.concatenate([[0], np.clip(kept, 0, rate.size - 1), [rate.size - 1]]))
    return unique

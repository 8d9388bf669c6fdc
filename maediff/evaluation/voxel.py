"""Voxelwise metrics inside the brain: exact on ties, one sort of the healthy voxels a scan.

Only scores of lesion voxels matter as thresholds: between two of them recall stands still and precision and Dice can
only fall. So it is enough to know, for every distinct lesion score v, how many voxels of either kind lie at or above
v, which one sort and binary searches tell. Definitions are scikit-learn's ``roc_auc_score`` and
``average_precision_score``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maediff.errors import InputError
from maediff.scoring import BoolArray, FloatArray

NAN = float("nan")


@dataclass(frozen=True)
class VoxelMetrics:
    """Metrics of one scan; NaN where a metric is not defined.

    Attributes:
        auroc: Area under the ROC curve; NaN without lesion voxels or without healthy ones.
        auprc: Average precision; NaN without lesion voxels.
        dice: Dice at the calibrated threshold; NaN without lesion voxels or without a threshold.
        dice_oracle: Best Dice over all thresholds, chosen by looking at the truth; NaN without lesion voxels.
    """

    auroc: float = NAN
    auprc: float = NAN
    dice: float = NAN
    dice_oracle: float = NAN


@dataclass(frozen=True)
class Ranking:
    """Counts of voxels at or above every distinct lesion score, from the highest score down.

    Attributes:
        true_positives: Lesion voxels at or above each distinct lesion score (K,), rising.
        false_positives: Healthy voxels at or above it (K,).
        false_positives_above: Healthy voxels strictly above it (K,).
        n_healthy: All healthy voxels.
    """

    true_positives: npt.NDArray[np.int64]
    false_positives: npt.NDArray[np.int64]
    false_positives_above: npt.NDArray[np.int64]
    n_healthy: int

    @property
    def n_lesion(self) -> int:
        """All lesion voxels."""
        return int(self.true_positives[-1]) if self.true_positives.size else 0


def rank(lesion: FloatArray, healthy: FloatArray) -> Ranking:
    """Sort healthy scores once and place every distinct lesion score among them.

    Args:
        lesion: Scores of lesion voxels (P,).
        healthy: Scores of healthy voxels (N,).

    Returns:
        The counts from which all metrics follow.

    Raises:
        InputError: A score is not finite.
    """
    if not (np.isfinite(lesion).all() and np.isfinite(healthy).all()):
        raise InputError("the anomaly map holds voxels that are not finite, so it cannot be ranked; run infer again")
    values, counts = np.unique(lesion, return_counts=True)
    ordered = np.sort(healthy)
    at_or_above = ordered.size - np.searchsorted(ordered, values, side="left")
    above = ordered.size - np.searchsorted(ordered, values, side="right")
    return Ranking(
        true_positives=np.cumsum(counts[::-1], dtype=np.int64),
        false_positives=at_or_above[::-1].astype(np.int64),
        false_positives_above=above[::-1].astype(np.int64),
        n_healthy=int(ordered.size),
    )


def auroc(ranking: Ranking) -> float:
    """Share of (lesion, healthy) voxel pairs in the right order, ties counted half (Mann-Whitney U / PN)."""
    if not (ranking.n_lesion and ranking.n_healthy):
        return NAN
    at_score = np.diff(ranking.true_positives, prepend=0)
    below_or_tied = ranking.n_healthy - (ranking.false_positives + ranking.false_positives_above) / 2
    return float(at_score @ below_or_tied / (ranking.n_lesion * ranking.n_healthy))


def auprc(ranking: Ranking) -> float:
    """Average precision: sum over thresholds of (recall step) x (precision), no interpolation."""
    if not ranking.n_lesion:
        return NAN
    precision = ranking.true_positives / (ranking.true_positives + ranking.false_positives)
    return float(np.diff(ranking.true_positives, prepend=0) @ precision / ranking.n_lesion)


def best_dice(ranking: Ranking) -> float:
    """Highest Dice over all thresholds: 2 TP / (TP + FP + P)."""
    if not ranking.n_lesion:
        return NAN
    sizes = ranking.true_positives + ranking.false_positives + ranking.n_lesion
    return float((2 * ranking.true_positives / sizes).max())


def dice(prediction: BoolArray, truth: BoolArray) -> float:
    """Dice overlap of two masks, 2 |A and B| / (|A| + |B|); NaN where the truth is empty.

    Example:
        >>> dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    lesion = int(np.count_nonzero(truth))
    if lesion == 0:
        return NAN
    common = int(np.count_nonzero(prediction & truth))
    return 2 * common / (int(np.count_nonzero(prediction)) + lesion)


def dice_oracle(values: FloatArray, label: BoolArray, mask: BoolArray) -> float:
    """Exact best Dice over all thresholds on the map, inside the brain. It has seen the truth: name it oracle.

    Args:
        values: Anomaly map, any shape.
        label: Lesion mask, same shape.
        mask: Brain, same shape.
    """
    return best_dice(rank(values[mask & label], values[mask & ~label]))


def voxel_metrics(
    values: FloatArray, mask: BoolArray, label: BoolArray, threshold: float | None, anomalous: BoolArray | None = None
) -> VoxelMetrics:
    """Score one anomaly map against the truth, inside the brain only.

    Args:
        values: Anomaly map, any shape.
        mask: Brain, same shape; lesion voxels outside it do not count.
        label: Lesion mask, same shape.
        threshold: Calibrated threshold (voxels strictly above it are anomalous); None leaves Dice undefined.
        anomalous: Anomaly mask to take for Dice instead of thresholding, where small components were removed.

    Returns:
        Metrics; all NaN where no lesion voxel lies inside the brain.

    Raises:
        InputError: Shapes differ, or the map is not finite.
    """
    if not values.shape == mask.shape == label.shape:
        raise InputError(f"map {values.shape}, brain mask {mask.shape} and label {label.shape} differ in shape")
    inside, truth = values[mask], label[mask]
    if not truth.any():
        return VoxelMetrics()
    ranking = rank(inside[truth], inside[~truth])
    predicted = anomalous[mask] if anomalous is not None else None if threshold is None else inside > threshold
    return VoxelMetrics(
        auroc=auroc(ranking),
        auprc=auprc(ranking),
        dice=NAN if predicted is None else dice(predicted, truth),
        dice_oracle=best_dice(ranking),
    )

"""Voxelwise metrics inside the brain, by scikit-learn: exact, ties included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from maediff.errors import InputError
from maediff.typing import BoolArray, FloatArray

NAN = float("nan")


@dataclass(frozen=True)
class VoxelMetrics:
    """Metrics of one scan; NaN if a metric is not defined.

    Attributes:
        auroc: Area under the ROC curve; NaN without lesion voxels or without healthy ones.
        auprc: Average precision; NaN without lesion voxels.
        dice: Dice at the calibrated threshold; NaN without lesion voxels or without a threshold.
        dice_oracle: Best Dice over all thresholds, chosen by looking at the truth; NaN without lesion voxels.
        lesion_share: Share of brain voxels that are lesion, the AUPRC of chance; NaN without lesion voxels.
    """

    auroc: float = NAN
    auprc: float = NAN
    dice: float = NAN
    dice_oracle: float = NAN
    lesion_share: float = NAN


def dice(prediction: BoolArray, truth: BoolArray) -> float:
    """Compute the Dice overlap of two masks, 2 |A and B| / (|A| + |B|); NaN if the truth is empty.

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
    """Compute the exact best Dice over all thresholds, inside the brain. It uses the truth: call it oracle.

    Args:
        values: Anomaly map, any shape.
        label: Lesion mask, same shape.
        mask: Brain, same shape.
    """
    inside, truth = _finite(values[mask]), label[mask]
    if not truth.any():
        return NAN
    precision, recall, _ = precision_recall_curve(truth, inside)
    either = precision + recall  # Dice is their harmonic mean, and 0 where both are
    return float((2 * precision * recall / np.where(either > 0, either, 1)).max())


def auroc(values: FloatArray, truth: npt.ArrayLike) -> float:
    """Compute the area under the ROC curve, ties counted half; NaN unless both kinds are present.

    Args:
        values: Scores (N,).
        truth: Whether each is of a lesion (N,).
    """
    kinds = np.asarray(truth, dtype=bool)
    return float(roc_auc_score(kinds, values)) if kinds.any() and not kinds.all() else NAN


def voxel_metrics(
    values: FloatArray, mask: BoolArray, label: BoolArray, threshold: float | None, anomalous: BoolArray | None = None
) -> VoxelMetrics:
    """Score one anomaly map against the truth, inside the brain only.

    Args:
        values: Anomaly map, any shape.
        mask: Brain, same shape; lesion voxels outside it do not count.
        label: Lesion mask, same shape.
        threshold: Calibrated threshold (voxels strictly above it are anomalous); None leaves Dice undefined.
        anomalous: Anomaly mask for Dice instead of thresholding, if small components were removed.

    Returns:
        Metrics; all NaN if no lesion voxel lies inside the brain.

    Raises:
        InputError: Shapes differ, or the map is not finite.
    """
    if not values.shape == mask.shape == label.shape:
        raise InputError(f"map {values.shape}, brain mask {mask.shape} and label {label.shape} differ in shape")
    inside, truth = _finite(values[mask]), label[mask]
    if not truth.any():
        return VoxelMetrics()
    predicted = anomalous[mask] if anomalous is not None else None if threshold is None else inside > threshold
    return VoxelMetrics(
        auroc=auroc(inside, truth),
        auprc=float(average_precision_score(truth, inside)),
        dice=NAN if predicted is None else dice(predicted, truth),
        dice_oracle=dice_oracle(values, label, mask),
        lesion_share=float(truth.mean()),
    )


def _finite(values: FloatArray) -> FloatArray:
    if not np.isfinite(values).all():
        raise InputError("the anomaly map holds voxels that are not finite, so it cannot be ranked; run infer again")
    return values

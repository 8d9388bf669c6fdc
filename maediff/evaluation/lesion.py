"""Lesion-wise detection: which lesions were found, and how many findings are lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.measure import label as components

from maediff.evaluation.voxel import NAN
from maediff.typing import BoolArray


@dataclass(frozen=True)
class LesionMetrics:
    """Detection of one scan's lesions, which are 26-connected components; one shared voxel is a hit. [ours]

    Attributes:
        detection_rate: Share of lesions that the anomaly mask touches; NaN without lesions.
        precision: Share of the mask's components that touch a lesion; NaN without components.
        f1: 2 TP / (2 TP + missed lesions + false components), with TP the detected lesions; NaN without lesions.
        n_lesions: Lesions inside the brain.
        n_false: Components of the mask that touch no lesion.
    """

    detection_rate: float = NAN
    precision: float = NAN
    f1: float = NAN
    n_lesions: int = 0
    n_false: int = 0


def lesion_metrics(anomalous: BoolArray, label: BoolArray, mask: BoolArray) -> LesionMetrics:
    """Match components of the anomaly mask with lesions, inside the brain.

    Args:
        anomalous: Anomaly mask (X, Y, Z).
        label: Lesion mask, same shape.
        mask: Brain, same shape.
    """
    lesions, n_lesions = components(label & mask, connectivity=3, return_num=True)
    findings, n_findings = components(anomalous & mask, connectivity=3, return_num=True)
    found = np.count_nonzero(np.unique(lesions[findings > 0]))
    right = np.count_nonzero(np.unique(findings[lesions > 0]))
    wrong = n_findings - right
    return LesionMetrics(
        detection_rate=found / n_lesions if n_lesions else NAN,
        precision=right / n_findings if n_findings else NAN,
        f1=2 * found / (n_lesions + found + wrong) if n_lesions else NAN,
        n_lesions=n_lesions,
        n_false=wrong,
    )

"""Lesion-wise detection: which lesions were found, and how many findings are lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.measure import label as components

from maediff.evaluation.voxel import NAN
from maediff.typing import BoolArray, FloatArray


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


def detection_at(
    scans: Sequence[tuple[FloatArray, BoolArray, BoolArray]],
    thresholds: npt.ArrayLike | None = None,
    false_per_scan: float = 2.0,
) -> tuple[float, list[LesionMetrics]]:
    """Detect lesions at a given mean number of false components per scan: one point of the FROC curve.

    One threshold for all scans falls until they have more false components than allowed. It never falls further: below
    some threshold everything merges into a single component, which touches every lesion. [ours]

    Args:
        scans: Anomaly map, lesion mask and brain (X, Y, Z) of each scan.
        thresholds: Tried from the highest down; voxels above are anomalous. None: 60 thresholds, above which lie
            from 1 in 100,000 to 1 in 5 of the scans' brain voxels.
        false_per_scan: False components allowed per scan, on average.

    Returns:
        The threshold (infinite if the highest one already gives too many), and each scan's metrics there.
    """
    if thresholds is None:
        inside = np.concatenate([values[mask] for values, _, mask in scans])
        thresholds = np.quantile(inside, 1 - np.geomspace(1e-5, 0.2, 60))
    boxes = [tuple(map(_extent, np.nonzero(mask))) for _, _, mask in scans]
    cut = [(values[box], label[box], mask[box]) for (values, label, mask), box in zip(scans, boxes, strict=True)]
    best, found = np.inf, [lesion_metrics(np.zeros_like(mask), label, mask) for _, label, mask in cut]
    for threshold in np.unique(thresholds)[::-1]:
        tried = [lesion_metrics(values > threshold, label, mask) for values, label, mask in cut]
        if sum(metrics.n_false for metrics in tried) > false_per_scan * len(scans):
            break
        best, found = float(threshold), tried
    return best, found


def _extent(places: npt.NDArray[np.intp]) -> slice:
    """Cover the places along one axis; nothing lies outside the brain that counts."""
    return slice(int(places.min(initial=0)), int(places.max(initial=-1)) + 1)

"""Scan-level detection: how well the score separates scans with a lesion from healthy ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maediff.evaluation.bootstrap import Estimate, interval, resample_counts
from maediff.evaluation.voxel import NAN, auroc
from maediff.typing import BoolArray, DoubleArray


def case_auroc(scores: npt.ArrayLike, has_lesion: npt.ArrayLike) -> float:
    """Compute the area under the ROC curve of scan-level scores, ties counted half; NaN unless both kinds are present.

    Args:
        scores: Scan-level anomaly scores (N,).
        has_lesion: Whether each scan has a lesion (N,).

    Example:
        >>> case_auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
        0.75
    """
    return auroc(np.asarray(scores, dtype=np.float64), has_lesion)


def case_auroc_estimate(
    scores: npt.ArrayLike, has_lesion: npt.ArrayLike, patients: list[str], n: int, seed: int
) -> Estimate:
    """Compute the scan-level AUROC with a 95 % bootstrap interval over patients.

    Resamples that hold only one kind of scan are left out. ``n`` of the result counts the scans.

    Args:
        scores: Scan-level scores (N,).
        has_lesion: Whether each scan has a lesion (N,).
        patients: Patient of each scan (N,).
        n: Resamples.
        seed: Seed of the resampling.
    """
    kinds = np.asarray(has_lesion, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    mean = auroc(values, kinds)
    if np.isnan(mean):
        return Estimate(NAN, NAN, NAN, 0)
    names, owner = np.unique(patients, return_inverse=True)
    weights = resample_counts(len(names), n, seed)[:, owner]  # (resamples, scans)
    low, high = interval(resampled_auroc(values, kinds, weights), len(names))
    return Estimate(mean, low, high, int(kinds.size))


def resampled_auroc(values: DoubleArray, kinds: BoolArray, weights: npt.NDArray[np.int64]) -> DoubleArray:
    """Compute the AUROC of many resamples at once: the share of pairs in order, ties counted half.

    Args:
        values: Scores (N,).
        kinds: Whether each is of a scan with a lesion (N,).
        weights: How often each counts in each resample (R, N).

    Returns:
        (R,), NaN for resamples that hold only one kind.
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # one bin per distinct score
    ordered = weights[:, order].astype(np.float64)
    lesion, healthy = (np.add.reduceat(ordered * of[order], starts, axis=1) for of in (kinds, ~kinds))
    below = np.cumsum(healthy, axis=1) - healthy
    pairs = lesion.sum(1) * healthy.sum(1)
    won: DoubleArray = (lesion * (below + healthy / 2)).sum(1)
    found: DoubleArray = np.divide(won, pairs, out=np.full_like(won, NAN), where=pairs > 0)
    return found

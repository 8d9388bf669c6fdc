"""Scan-level detection: how well the score separates scans with a lesion from healthy ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maediff.evaluation.bootstrap import Estimate, interval, resample_counts
from maediff.evaluation.voxel import NAN, auroc


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
    low, high = interval([auroc(values, kinds, drawn) for drawn in weights], len(names))
    return Estimate(mean, low, high, int(kinds.size))

"""Scan-level detection: does the score tell scans with a lesion from healthy ones?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maediff.evaluation.bootstrap import Estimate, interval, resample_counts

FloatVector = npt.NDArray[np.float64]


def case_auroc(scores: npt.ArrayLike, has_lesion: npt.ArrayLike) -> float:
    """Area under the ROC curve of scan-level scores, ties counted half; NaN unless both kinds are present.

    Args:
        scores: Scan-level anomaly scores (N,).
        has_lesion: Whether each scan has a lesion (N,).

    Example:
        >>> case_auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
        0.75
    """
    ordered = _pairs(scores, has_lesion)
    return float(ordered.mean()) if ordered.size else float("nan")


def case_auroc_estimate(
    scores: npt.ArrayLike, has_lesion: npt.ArrayLike, patients: list[str], n: int, seed: int
) -> Estimate:
    """Scan-level AUROC with a 95 % bootstrap interval over patients.

    Resamples that hold only one kind of scan are left out. ``n`` of the result counts the scans.

    Args:
        scores: Scan-level scores (N,).
        has_lesion: Whether each scan has a lesion (N,).
        patients: Patient of each scan (N,).
        n: Resamples.
        seed: Of the resampling.
    """
    kinds = np.asarray(has_lesion, dtype=bool)
    ordered = _pairs(scores, kinds)
    if not ordered.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    names, owner = np.unique(patients, return_inverse=True)
    weights = resample_counts(len(names), n, seed)[:, owner].astype(np.float64)  # (resamples, scans)
    lesion, healthy = weights[:, kinds], weights[:, ~kinds]
    pairs = lesion.sum(axis=1) * healthy.sum(axis=1)
    correct = np.einsum("bp,bp->b", lesion, healthy @ ordered.T)
    low, high = interval(correct[pairs > 0] / pairs[pairs > 0], len(names))
    return Estimate(float(ordered.mean()), low, high, int(kinds.size))


def _pairs(scores: npt.ArrayLike, has_lesion: npt.ArrayLike) -> FloatVector:
    """(P, N): 1 where the lesion scan scores higher than the healthy one, 0.5 on a tie, else 0."""
    values, kinds = np.asarray(scores, dtype=np.float64), np.asarray(has_lesion, dtype=bool)
    lesion, healthy = values[kinds][:, None], values[~kinds][None, :]
    ordered: FloatVector = (lesion > healthy) + 0.5 * (lesion == healthy)
    return ordered

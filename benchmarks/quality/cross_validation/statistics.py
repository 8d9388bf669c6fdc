"""Means and differences over patients, with intervals that know both sources of chance: patients and trainings."""

from __future__ import annotations

import numpy as np

from maediff.evaluation import Estimate
from maediff.evaluation.bootstrap import interval, resample_counts
from maediff.typing import DoubleArray

RESAMPLES = 10_000


def mean(values: DoubleArray, n: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Average over trainings and patients, see :func:`difference`."""
    return difference(values, np.zeros((1, values.shape[1])), n, seed)


def difference(ours: DoubleArray, other: DoubleArray, n: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Average the difference of two rows over the same patients, with a percentile bootstrap interval.

    Each resample draws patients with replacement, the same ones for both rows, and all but one of each row's n
    trainings, with replacement too: the mean of n - 1 drawn ones varies as much as that of n trainings does, where n
    drawn ones would vary too little (Rao and Wu, JASA 1988). A row with a single training adds nothing to the interval,
    which is then too narrow.

    Args:
        ours: (trainings, patients); patients with a NaN in either row are left out.
        other: (trainings, patients), the same patients.
        n: Resamples.
        seed: Seed of the resampling.

    Returns:
        Mean, interval and the number of patients.
    """
    defined = np.isfinite(ours).all(0) & np.isfinite(other).all(0)
    patients = int(defined.sum())
    if not patients:
        return Estimate(np.nan, np.nan, np.nan, 0)
    counts = resample_counts(patients, n, seed)
    rng = np.random.default_rng((seed, 1))

    def drawn(values: DoubleArray) -> DoubleArray:
        means: DoubleArray = counts @ values[:, defined].T / patients
        picked = rng.integers(len(values), size=(n, max(1, len(values) - 1)))
        average: DoubleArray = np.take_along_axis(means, picked, 1).mean(1)
        return average

    low, high = interval(drawn(ours) - drawn(other), patients)
    return Estimate(float(ours[:, defined].mean() - other[:, defined].mean()), low, high, patients)

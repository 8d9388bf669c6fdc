"""95 % intervals by resampling patients, which are the independent units, unlike scans and voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maediff.evaluation.voxel import NAN, VoxelMetrics
from maediff.typing import BoolArray, DoubleArray, FloatArray

LEVEL = 0.95
_BITS_DROPPED = 12  # of a float32's 23 bits of mantissa: bins 2^-11 = 0.05 % wide
_CHUNK = 32  # resamples handled at once


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval and the number of values."""

    mean: float
    ci_low: float
    ci_high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return plain values for JSON; undefined values are None."""
        numbers = {"mean": self.mean, "ci_low": self.ci_low, "ci_high": self.ci_high}
        return {name: value if np.isfinite(value) else None for name, value in numbers.items()} | {"n": self.n}


def resample_counts(n_patients: int, n: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw patients with replacement: how often each patient appears in each resample, (n, n_patients)."""
    shares = np.full(n_patients, 1.0 / n_patients)
    return np.random.default_rng(seed).multinomial(n_patients, shares, size=n)


def interval(resampled: npt.ArrayLike, n_patients: int) -> tuple[float, float]:
    """Compute the percentile interval of resampled values; NaN for fewer than two patients."""
    values = np.asarray(resampled, dtype=np.float64)
    values = values[np.isfinite(values)]
    if n_patients < 2 or values.size == 0:
        return NAN, NAN
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_ci(
    values: npt.ArrayLike, n: int = 1000, seed: int = 0, patients: Sequence[str] | None = None
) -> Estimate:
    """Average over scans, with a percentile bootstrap interval over patients.

    Args:
        values: One value per scan; NaN values are left out and not counted.
        n: Resamples; 0 leaves the interval undefined.
        seed: Seed of the resampling; the same seed gives the same interval.
        patients: Patient of each scan; a patient's scans are drawn together. None: every scan is a patient.

    Returns:
        Mean, interval and the number of scans counted.

    Example:
        >>> bootstrap_ci([0.5, 0.5, float("nan"), 0.5])
        Estimate(mean=0.5, ci_low=0.5, ci_high=0.5, n=3)
    """
    array = np.asarray(values, dtype=np.float64)
    defined = np.isfinite(array)
    if not defined.any():
        return Estimate(NAN, NAN, NAN, 0)
    array = array[defined]
    owners = np.arange(defined.size).astype(str) if patients is None else np.asarray(patients)
    names, owner = np.unique(owners[defined], return_inverse=True)
    counts = resample_counts(len(names), n, seed)
    totals = counts @ np.bincount(owner, weights=array)
    low, high = interval(totals / (counts @ np.bincount(owner)), len(names))
    return Estimate(float(array.mean()), low, high, int(array.size))


def paired_p_value(ours: npt.ArrayLike, other: npt.ArrayLike, n: int = 10_000, seed: int = 0) -> float:
    """Test whether two methods differ on the same patients: a two-sided paired bootstrap.

    Patients are drawn with replacement, both methods on the same ones; p is twice the share of resamples whose mean
    difference lies on the other side of 0, never below ``2 / (n + 1)`` and never above 1.

    Args:
        ours: One value per patient.
        other: Values of the other method, in the same order; patients with a NaN in either are left out.
        n: Resamples.
        seed: Seed of the resampling.

    Returns:
        The p-value; NaN for fewer than two patients.

    Raises:
        ValueError: The numbers of patients differ.

    Example:
        >>> paired_p_value([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
        1.0
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"{first.size} and {second.size} patients cannot be paired; score both methods on the same ones"
        )
    gap = first - second
    gap = gap[np.isfinite(gap)]
    if gap.size < 2:
        return NAN
    means = resample_counts(gap.size, n, seed) @ gap / gap.size
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (n + 1))


@dataclass(frozen=True)
class VoxelHistogram:
    """One scan's brain voxels, binned finely by score; small enough to keep for a whole cohort.

    Attributes:
        bins: Non-empty bins, rising with the score (K,).
        lesion: Lesion voxels in each (K,).
        healthy: Healthy voxels in each (K,).
        overlap: True-positive, predicted and lesion voxels at the calibrated threshold, exact; None without one.
    """

    bins: npt.NDArray[np.intp]
    lesion: npt.NDArray[np.int64]
    healthy: npt.NDArray[np.int64]
    overlap: tuple[int, int, int] | None


def histogram(
    values: FloatArray, mask: BoolArray, label: BoolArray, anomalous: BoolArray | None = None
) -> VoxelHistogram:
    """Bin one scan's brain voxels by score, each bin 0.05 % wide.

    Args:
        values: Anomaly map.
        mask: Brain.
        label: Lesion mask.
        anomalous: Anomaly mask at the calibrated threshold, or None.
    """
    truth, key = label[mask], _bin(values[mask])
    first = key.min(initial=np.iinfo(key.dtype).max)
    key -= first
    everything = np.bincount(key)
    lesion = np.bincount(key[truth], minlength=everything.size)
    bins = np.flatnonzero(everything)
    overlap = None
    if anomalous is not None:
        predicted = anomalous[mask]
        overlap = (int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum()))
    return VoxelHistogram(bins + int(first), lesion[bins], (everything - lesion)[bins], overlap)


def pooled(
    scans: Sequence[VoxelHistogram], patients: Sequence[str], n: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Compute metrics over the voxels of all scans together, with bootstrap intervals over patients.

    Scores that agree within 0.05 % count as tied, which moves a metric by far less than its interval; Dice at the
    calibrated threshold is exact.

    Args:
        scans: One histogram per scan, healthy scans included.
        patients: Patient of each scan.
        n: Resamples.
        seed: Seed of the resampling.

    Returns:
        Estimates keyed by the fields of ``VoxelMetrics``; ``n`` counts the scans.
    """
    names = list(VoxelMetrics.__dataclass_fields__)
    if not scans or not any(scan.lesion.any() for scan in scans):
        return {name: Estimate(NAN, NAN, NAN, 0) for name in names}
    people, owner = np.unique(patients, return_inverse=True)
    metrics = _stacked(scans, owner, len(people))
    point = metrics(np.ones((1, len(people))))
    counts = resample_counts(len(people), n, seed).astype(np.float64)
    chunks = [metrics(counts[start : start + _CHUNK]) for start in range(0, n, _CHUNK)]
    estimates = {}
    for name in names:
        drawn = np.concatenate([chunk[name] for chunk in chunks]) if chunks else np.empty(0)
        mean = float(point[name][0])
        estimates[name] = Estimate(mean, *interval(drawn, len(people)), len(scans) if np.isfinite(mean) else 0)
    return estimates


def _bin(values: FloatArray) -> npt.NDArray[np.uint32]:
    """Map scores to integers that rise with them: the leading bits of the float32, negative numbers reversed."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0
    key = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    binned: npt.NDArray[np.uint32] = key >> np.uint32(_BITS_DROPPED)
    return binned


def _stacked(
    scans: Sequence[VoxelHistogram], owner: npt.NDArray[np.intp], n_people: int
) -> Callable[[DoubleArray], dict[str, DoubleArray]]:
    """Sum histograms by patient on shared bins, highest score first; return metrics as a function of weights."""
    bins = np.unique(np.concatenate([scan.bins for scan in scans]))
    lesion, healthy = np.zeros((2, n_people, bins.size))
    overlap = np.zeros((n_people, 3))
    for scan, person in zip(scans, owner, strict=True):
        place = bins.size - 1 - np.searchsorted(bins, scan.bins)
        lesion[person, place] += scan.lesion
        healthy[person, place] += scan.healthy
        overlap[person] += scan.overlap or (np.nan,) * 3

    def metrics(weights: DoubleArray) -> dict[str, DoubleArray]:
        return _binned_metrics(weights @ lesion, weights @ healthy, weights @ overlap)

    return metrics


def _binned_metrics(lesion: DoubleArray, healthy: DoubleArray, overlap: DoubleArray) -> dict[str, DoubleArray]:
    """Compute the metrics of each row of histograms, bins from the highest score down; NaN for rows without lesion."""
    hits, alarms = np.cumsum(lesion, axis=1), np.cumsum(healthy, axis=1)
    n_lesion, n_healthy = hits[:, -1:], alarms[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.nan_to_num(hits / (hits + alarms))  # 0 / 0 occurs only before the first voxel, at zero recall
        wins = lesion * (n_healthy - alarms + healthy / 2)
        return {
            "auroc": wins.sum(axis=1) / (n_lesion * n_healthy)[:, 0],
            "auprc": (lesion * precision).sum(axis=1) / n_lesion[:, 0],
            "dice": np.where(overlap[:, 2] > 0, 2 * overlap[:, 0] / (overlap[:, 1] + overlap[:, 2]), np.nan),
            "dice_oracle": np.where(n_lesion[:, 0] > 0, (2 * hits / (hits + alarms + n_lesion)).max(axis=1), np.nan),
            "lesion_share": (n_lesion / (n_lesion + n_healthy))[:, 0],
        }

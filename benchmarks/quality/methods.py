"""Score several methods alike: threshold from pseudo-healthy slices, metrics a patient, paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.quality.patients import Patient
from maediff.calibration import Calibration, calibrate
from maediff.config import ScoreConfig
from maediff.evaluation import Estimate, bootstrap_ci, voxel_metrics
from maediff.methods.intensity import intensity_map
from maediff.scoring import anomaly_mask, case_score, filter_map

METRICS = ("auroc", "auprc", "dice", "dice_validated", "dice_oracle")
FloatMap = npt.NDArray[np.float32]


Maps = Callable[[Patient], FloatMap]


def intensity(config: ScoreConfig) -> Maps:
    """Make the plain baseline: brightness, filtered and eroded as ``config`` says."""

    def values(patient: Patient) -> FloatMap:
        raw = intensity_map(patient.volume.data, patient.brain, "bright")
        return filter_map(raw, patient.brain, patient.volume.spacing_mm, config)

    return values


def pseudo_healthy_calibration(maps: Sequence[FloatMap], patients: Sequence[Patient], rate: float) -> Calibration:
    """Calibrate on the tumour-free slices of patients with tumours; those with none of them are left out."""
    origin = f"pseudo-healthy: tumour-free slices of {len(patients)} validation patients, all of whom have a tumour"
    parts = [(values, patient.pseudo_healthy) for values, patient in zip(maps, patients, strict=True)]
    samples = ((values, mask, case_score(values, mask)) for values, mask in parts if mask.any())
    return calibrate(samples, rate, origin=origin)


def validated_threshold(maps: Sequence[FloatMap], patients: Sequence[Patient], steps: int = 400) -> float:
    """Find the threshold with the highest mean Dice over labelled patients.

    Args:
        maps: One map a patient.
        patients: Validation patients.
        steps: Candidate thresholds: quantiles of the brain voxels, from the median up to one in 100,000.
    """
    pairs = [(m[p.brain], m[p.brain & p.label]) for m, p in zip(maps, patients, strict=True)]
    candidates = np.quantile(np.concatenate([inside for inside, _ in pairs]), 1 - np.geomspace(0.5, 1e-5, steps))
    total = np.zeros(steps)
    for inside, lesion in pairs:
        predicted, found = _above(inside, candidates), _above(lesion, candidates)
        total += 2 * found / np.maximum(predicted + lesion.size, 1)
    return float(candidates[int(total.argmax())])


@dataclass(frozen=True)
class Thresholds:
    """A method's thresholds: from pseudo-healthy slices, and from labelled patients."""

    calibration: Calibration
    validated: float


def thresholds(maps: Sequence[FloatMap], patients: Sequence[Patient], config: ScoreConfig) -> Thresholds:
    """Set both thresholds of a method from its maps of the validation patients."""
    calibration = pseudo_healthy_calibration(maps, patients, config.false_positive_rate)
    return Thresholds(calibration, validated_threshold(maps, patients))


@dataclass(frozen=True)
class Scored:
    """One method on the test patients: metrics of each, keyed as ``METRICS``, and the thresholds."""

    rows: list[dict[str, float]]
    thresholds: Thresholds

    def summary(self, bootstrap: int, seed: int) -> dict[str, Any]:
        """Average over patients, with bootstrap intervals, and state both thresholds."""
        means = {name: bootstrap_ci([row[name] for row in self.rows], bootstrap, seed) for name in METRICS}
        return means | {
            "threshold": self.thresholds.calibration.threshold,
            "threshold_validated": self.thresholds.validated,
            "pseudo_healthy_scans": self.thresholds.calibration.n_scans,
        }


def score(maps: Maps, found: Thresholds, test: Sequence[Patient], config: ScoreConfig) -> Scored:
    """Score a method on the test patients; components below ``config.min_size_mm3`` are dropped from its masks."""
    rows = [_metrics(maps(patient), patient, found, config.min_size_mm3) for patient in test]
    return Scored(rows, found)


def paired_difference(ours: Scored, other: Scored, metric: str, bootstrap: int, seed: int) -> Estimate:
    """Average the difference a patient, with a bootstrap interval over patients: both methods see the same ones."""
    differences = [a[metric] - b[metric] for a, b in zip(ours.rows, other.rows, strict=True)]
    return bootstrap_ci(differences, bootstrap, seed)


def _metrics(values: FloatMap, patient: Patient, found: Thresholds, min_size_mm3: float) -> dict[str, float]:
    spacing = patient.volume.spacing_mm
    calibrated, validated = (
        voxel_metrics(values, patient.brain, patient.label, t, anomaly_mask(values, t, spacing, min_size_mm3))
        for t in (found.calibration.threshold, found.validated)
    )
    return asdict(calibrated) | {"dice_validated": validated.dice}


def _above(values: npt.NDArray[Any], thresholds: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Count values strictly above each threshold."""
    counts: npt.NDArray[np.intp] = values.size - np.searchsorted(np.sort(values), thresholds, side="right")
    return counts

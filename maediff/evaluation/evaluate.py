"""Score an infer output folder against a reference: per scan, pooled, by lesion and by scan."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from maediff.errors import ConfigError, InputError, one_line
from maediff.evaluation.bootstrap import Estimate, VoxelHistogram, bootstrap_ci, histogram, pooled
from maediff.evaluation.case import case_auroc_estimate
from maediff.evaluation.choice import Choice, read_chosen
from maediff.evaluation.lesion import LesionMetrics, lesion_metrics
from maediff.evaluation.metrics import Metrics
from maediff.evaluation.outputs import OutputCase, read_anomaly_mask
from maediff.evaluation.reference import Reference, Truth
from maediff.evaluation.strata import Stratum
from maediff.evaluation.voxel import NAN, VoxelMetrics, voxel_metrics
from maediff.files import write_json
from maediff.tables import write_table
from maediff.typing import Array, BoolArray
from maediff.volume import Volume, read_map, read_mask
from maediff.working.components import largest_component
from maediff.working.foreground import Background

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
PER_CASE_FILE = "metrics_per_case.csv"
SCORED, FAILED, NO_REFERENCE, UNUSABLE = "scored", "failed", "no reference", "unusable"


@dataclass(frozen=True)
class CaseResult:
    """One scan of the cohort, scored or with the reason why not; a row of ``metrics_per_case.csv``.

    Attributes:
        case: The case's id.
        status: ``scored``, ``failed`` (by infer), ``no reference`` or ``unusable`` (map or reference cannot be read).
        patient: Patient of the scan.
        lesion: Kind of lesion, if the reference names it.
        has_lesion: Whether the reference mask has any voxel; None if not scored.
        score: Scan-level anomaly score.
        threshold: Calibrated threshold.
        voxel: Voxelwise metrics.
        lesions: Lesion-wise metrics.
        lesion_ml: Lesion volume inside the brain, ml.
        lesion_outside_ml: Lesion volume outside the brain mask, which is not scored, ml.
        anomalous_ml: Anomalous volume inside the brain, ml.
        brain_from: Source of the brain mask.
        message: Why the scan is not scored.
        histogram: Its voxels, binned, for pooled metrics.
        facts: Further cells of the reference, by column.
    """

    case: str
    status: str
    patient: str = ""
    lesion: str | None = None
    has_lesion: bool | None = None
    score: float = NAN
    threshold: float | None = None
    voxel: VoxelMetrics = field(default_factory=VoxelMetrics)
    lesions: LesionMetrics = field(default_factory=LesionMetrics)
    lesion_ml: float = NAN
    lesion_outside_ml: float = NAN
    anomalous_ml: float = NAN
    brain_from: str = ""
    message: str = ""
    histogram: VoxelHistogram | None = field(default=None, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_row(self) -> dict[str, Any]:
        """Flatten into the columns of ``metrics_per_case.csv``."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "voxel":
                row |= asdict(value)
            elif item.name == "lesions":
                row |= {f"lesion_{name.removeprefix('n_')}": number for name, number in asdict(value).items()}
            elif item.name not in ("histogram", "facts"):
                row[item.name] = value
        return row


@dataclass(frozen=True)
class Evaluation:
    """Results of :func:`measure`.

    Attributes:
        metrics: The content of ``metrics.json``.
        cases: One result per scan, in the order of ``cases.tsv``.
    """

    metrics: dict[str, Any]
    cases: list[CaseResult]


def evaluate(
    out_dir: str | Path,
    reference: str | Path,
    metrics_dir: str | Path,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    strata: Sequence[str] = (),
) -> Metrics:
    """Score an infer output folder and write ``metrics.json`` and ``metrics_per_case.csv``.

    Args:
        out_dir: What ``maediff infer`` wrote.
        reference: Table or folder, see :class:`~maediff.evaluation.reference.Reference`.
        metrics_dir: Where to write; created if it does not exist.
        bootstrap: Resamples of patients for the 95 % intervals; 0 leaves them out.
        seed: Seed of the resampling.
        strata: Columns of the reference or of ``participants.tsv`` by which to repeat the metrics: ``site``, or
            ``age:40,60`` with the edges of ranges.

    Returns:
        The content of ``metrics.json``, see :func:`measure`, with tables of it.

    Raises:
        InputError: The folder or the reference cannot be used, or no scan could be scored.
        OutputError: ``metrics_dir`` cannot be written.
    """
    evaluation = measure(Path(out_dir), Path(reference), bootstrap=bootstrap, seed=seed, strata=strata)
    rows = [case.to_row() for case in evaluation.cases]
    write_table(Path(metrics_dir) / PER_CASE_FILE, rows, list(rows[0]))
    write_json(Path(metrics_dir) / METRICS_FILE, evaluation.metrics)
    return Metrics(evaluation.metrics, rows)


def measure(
    out_dir: str | Path,
    reference: str | Path,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    strata: Sequence[str] = (),
    choice: Choice | None = None,
) -> Evaluation:
    """Score an infer output folder in memory.

    ``metrics`` has the keys ``voxel.*`` (mean over scans that have lesion voxels), ``voxel_pooled.*`` (all voxels of
    all scored scans together, healthy ones included), ``lesion.*`` and ``case.auroc`` (scans with a lesion against
    healthy ones), each with ``mean``, ``ci_low``, ``ci_high`` and ``n``, the number of scans on which it rests; None
    if not defined. ``by_lesion`` repeats them for each kind that the reference names, against all healthy scans in
    ``case.auroc``, and ``by_stratum`` for each group of each column in ``strata``. ``cases`` counts the scans and
    lists those that were not scored, with the reason.

    Args:
        out_dir: What ``maediff infer`` wrote.
        reference: Table or folder of truths.
        bootstrap: Resamples of patients.
        seed: Seed of the resampling.
        strata: See :func:`evaluate`.
        choice: A threshold that a person chose instead of the calibrated one.

    Raises:
        InputError: The folder or the reference cannot be used, no scan could be scored, or a stratum has no column.
        ConfigError: ``bootstrap`` or ``seed`` is negative, or a stratum cannot be read.
    """
    wanted = [Stratum.parse(text) for text in strata]
    if bootstrap < 0 or seed < 0:
        raise ConfigError(f"bootstrap {bootstrap} and seed {seed} must be 0 or more")
    truths = Reference(Path(reference), people=bool(wanted))
    outputs = read_chosen(Path(out_dir), choice)
    results = [_score(output, truths) for output in outputs]
    scored = [result for result in results if result.status == SCORED]
    for result in results:
        if result.status != SCORED:
            logger.warning("%s is not scored (%s): %s", result.case, result.status, result.message)
    if not scored:
        reason = f"; the first one: {results[0].message}" if results else ", which lists none"
        raise InputError(f"none of the {len(results)} scans in {out_dir} could be scored{reason}")
    metrics: dict[str, Any] = _summarise(scored, bootstrap, seed)
    metrics["by_lesion"] = _by_lesion(scored, bootstrap, seed)
    if wanted:
        metrics["by_stratum"] = _by_stratum(scored, wanted, bootstrap, seed)
    metrics["cases"] = _counts(results, scored)
    metrics["settings"] = {
        "bootstrap": bootstrap,
        "seed": seed,
        "level": 0.95,
        "thresholds": sorted({result.threshold for result in scored if result.threshold is not None}),
        "model_hashes": sorted({str(o.sidecar["model_hash"]) for o in outputs if o.sidecar.get("model_hash")}),
    }
    return Evaluation(metrics, results)


def brain_of(output: OutputCase, truth: Truth | None, like: Volume) -> tuple[BoolArray, str]:
    """Return the brain in which a scan is scored, and its source.

    The brain is the reference's mask, else the one that infer used, else all that is not background in the
    reconstruction, which outside the brain is the scan, else the voxels where the map is not zero.

    Raises:
        MAEDiffError: The mask cannot be used, or the one that infer used is gone.
    """
    if truth is not None and truth.mask is not None:
        return read_mask(truth.mask, like, "brain mask"), "reference"
    if output.mask is not None:
        return read_mask(output.mask, like, "brain mask"), "infer"
    if named := output.sidecar.get("mask"):
        raise InputError(
            f"the brain mask {named} that infer used is not where it was; put it back, or name one in column mask of "
            "the reference table"
        )
    if "reconstruction" in output.files:
        brain = _not_background(output, read_map(output.files["reconstruction"]).data)
        return brain | (like.data > 0), "reconstruction"
    return like.data > 0, "non-zero map"


def _not_background(output: OutputCase, reconstruction: Array) -> BoolArray:
    """Find the brain of a scan that had no mask, by the background that its sidecar records."""
    if "background" not in output.sidecar:  # of a version whose reconstructions are zero outside the brain
        return np.asarray(reconstruction != 0)
    found = output.sidecar["background"]
    if not found:  # a whole head that was accepted as it is
        return np.ones(reconstruction.shape, bool)
    return largest_component(Background(float(found["level"]), float(found["tolerance"])).outside(reconstruction))


def _score(output: OutputCase, truths: Reference) -> CaseResult:
    if not output.finished:
        message = output.message or f"status {output.status}, and no anomaly map in the output folder"
        return CaseResult(output.case, FAILED, score=output.score, message=message)
    try:
        truth = truths.find(output)
    except Exception as error:  # one bad scan must not stop the others
        return CaseResult(output.case, NO_REFERENCE, score=output.score, message=one_line(error))
    try:
        return _compare(output, truth)
    except Exception as error:
        message = one_line(error)
        return CaseResult(output.case, UNUSABLE, truth.patient, truth.lesion, score=output.score, message=message)


def _compare(output: OutputCase, truth: Truth) -> CaseResult:
    volume = read_map(output.files["anomaly"])
    if truth.label is None and truth.lesion is not None:
        raise InputError(f"the reference says {truth.lesion} but names no label; add the lesion mask or clear the kind")
    label = np.zeros(volume.data.shape, bool) if truth.label is None else read_mask(truth.label, volume, "label")
    brain, origin = brain_of(output, truth, volume)
    anomalous = _anomalous(output, volume)
    voxel_ml = volume.voxel_mm3 / 1000
    return CaseResult(
        case=output.case,
        status=SCORED,
        patient=truth.patient,
        lesion=truth.lesion,
        has_lesion=bool(label.any()),
        score=output.score,
        threshold=output.threshold,
        voxel=voxel_metrics(volume.data, brain, label, output.threshold, anomalous),
        lesions=LesionMetrics() if anomalous is None else lesion_metrics(anomalous, label, brain),
        lesion_ml=float((label & brain).sum()) * voxel_ml,
        lesion_outside_ml=float((label & ~brain).sum()) * voxel_ml,
        anomalous_ml=NAN if anomalous is None else float((anomalous & brain).sum()) * voxel_ml,
        brain_from=origin,
        histogram=histogram(volume.data, brain, label, anomalous),
        facts=dict(truth.facts),
    )


def _anomalous(output: OutputCase, volume: Volume) -> BoolArray | None:
    """Return the mask that infer wrote, without small components, else the map above the threshold, else None."""
    if output.threshold is None:
        return None
    written = read_anomaly_mask(output, volume)
    if written is not None:
        return written
    above: BoolArray = volume.data > output.threshold
    return above


def _summarise(results: Sequence[CaseResult], n: int, seed: int) -> dict[str, Any]:
    """Compute estimates over the given scans, keyed as in CONVENTIONS."""
    patients = [result.patient for result in results]

    def over_scans(get: Callable[[CaseResult], float]) -> Estimate:
        return bootstrap_ci([get(result) for result in results], n, seed, patients)

    estimates: dict[str, Estimate] = {}
    for item in fields(VoxelMetrics):
        estimates[f"voxel.{item.name}"] = over_scans(lambda r, name=item.name: getattr(r.voxel, name))  # type: ignore[misc]
    histograms = [result.histogram for result in results if result.histogram is not None]
    estimates |= {f"voxel_pooled.{name}": value for name, value in pooled(histograms, patients, n, seed).items()}
    for name in ("detection_rate", "precision", "f1"):
        estimates[f"lesion.{name}"] = over_scans(
            lambda r, name=name: getattr(r.lesions, name) if r.has_lesion else NAN  # type: ignore[misc]
        )
    estimates["case.auroc"] = _case_estimate(results, n, seed)
    return {name: estimate.to_dict() for name, estimate in estimates.items()}


def _case_estimate(results: Iterable[CaseResult], n: int, seed: int) -> Estimate:
    usable = [result for result in results if math.isfinite(result.score)]
    kinds = [bool(result.has_lesion) for result in usable]
    return case_auroc_estimate([r.score for r in usable], kinds, [r.patient for r in usable], n, seed)


def _by_lesion(scored: Sequence[CaseResult], n: int, seed: int) -> dict[str, dict[str, Any]]:
    healthy = [result for result in scored if not result.has_lesion]
    table = {}
    for kind in sorted({result.lesion for result in scored if result.lesion and result.has_lesion}):
        group = [result for result in scored if result.lesion == kind and result.has_lesion]
        table[kind] = _summarise(group, n, seed)
        table[kind]["case.auroc"] = _case_estimate([*group, *healthy], n, seed).to_dict()
    return table


def _by_stratum(
    scored: Sequence[CaseResult], strata: Sequence[Stratum], n: int, seed: int
) -> dict[str, dict[str, Any]]:
    items = [(result, result.facts) for result in scored]
    return {
        stratum.column: {
            group: _summarise(members, n, seed) | {"scans": len(members)}
            for group, members in stratum.split(items).items()
        }
        for stratum in strata
    }


def _counts(results: Sequence[CaseResult], scored: Sequence[CaseResult]) -> dict[str, Any]:
    missing = [result for result in results if result.status != SCORED]
    return {
        "total": len(results),
        "scored": len(scored),
        "with_lesion": sum(bool(result.has_lesion) for result in scored),
        "healthy": sum(not result.has_lesion for result in scored),
        "patients": len({result.patient for result in scored}),
        "not_scored": [{"case": r.case, "status": r.status, "message": r.message} for r in missing],
    }

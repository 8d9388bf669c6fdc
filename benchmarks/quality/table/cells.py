"""Compute a cell of the benchmark table: train within the budget, choose timestep and thresholds, test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import maediff
from benchmarks.common import AbsentError, say
from benchmarks.quality.methods import FloatMap, validated_threshold
from benchmarks.quality.patients import MASKS_AS_GIVEN, Mask, Patient, write_cases
from benchmarks.quality.settings import reconstruct
from benchmarks.quality.table.rows import DATA_SETS, DataSet, Row, cell_path, config_of, lesion_kinds, variant
from maediff.calibration import Calibration, calibrate
from maediff.config import UNTRAINED, Config, ScoreConfig, load_config, override
from maediff.data.cases import find_cases
from maediff.errors import InputError
from maediff.evaluation import detection_at, voxel_metrics
from maediff.files import read_json, write_json
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.inference.reading import Reading
from maediff.methods.build import build_scan_baseline
from maediff.scoring import anomaly_mask, case_score, fixed_sign, postprocess
from maediff.training.loop import Losses, Progress
from maediff.typing import BoolArray
from maediff.working import WorkingScan, lesion_slices, prepare_label
from maediff.working.spatial import to_working

MOST_SAMPLES = 4
"""Most samples that a method may see, as a multiple of MAEDiff's, even if its samples cost little."""
FALSE_PER_SCAN = 2.0
"""Lesion-wise sensitivity is measured at this mean number of false components per test scan."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Budget:
    """Length and cost of a training.

    Attributes:
        steps: Optimiser steps.
        samples: Slices seen.
        tflop: Operations of the whole training.
        gflop_a_sample: Operations per slice, forward and backward.
    """

    steps: int
    samples: int
    tflop: float
    gflop_a_sample: float


@dataclass(frozen=True)
class Maps:
    """A scan's map in native space, with and without the median filter."""

    filtered: FloatMap
    unfiltered: FloatMap
    healthy_l1: float | None
    seconds_a_slice: float


@dataclass(frozen=True)
class Raw:
    """A scan's unfiltered scores on its working grid, before post-processing.

    Attributes:
        scorer: Predictor that makes maps of the scores.
        prepared: The scan.
        values: Scores (S, H, W).
        healthy_l1: Mean absolute residual of the slices without lesion, in working units; None if there are none.
        seconds_a_slice: Seconds per slice that contains brain.
    """

    scorer: Predictor
    prepared: WorkingScan
    values: FloatMap
    healthy_l1: float | None
    seconds_a_slice: float

    def map_as(self, score: ScoreConfig) -> FloatMap:
        """Make the map in native space as inference does, with the filter widths of `score`."""
        config = self.scorer.config.model_copy(update={"score": score})
        return replace(self.scorer, config=config, locations=None).map_of(self.prepared, self.values)

    def without(self, slices: BoolArray) -> Raw:
        """Cut slices (S,) out of the brain, so that their scores support none in other slices."""
        mask = self.prepared.mask & ~slices[:, None, None]
        kept = np.where(mask, self.values, np.float32(0))
        return replace(self, prepared=replace(self.prepared, mask=mask), values=kept)

    def maps(self, score: ScoreConfig) -> Maps:
        """Make the map with the filter widths of `score`, and another without the median filter."""
        unfiltered = self.map_as(score.model_copy(update={"median_mm": 0.0}))
        return Maps(self.map_as(score), unfiltered, self.healthy_l1, self.seconds_a_slice)


@dataclass(frozen=True)
class Choice:
    """What validation chose for a training: timestep, post-processing, and thresholds by name."""

    timestep: int
    score: ScoreConfig
    thresholds: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Folders and seed with which a cell is computed.

    Attributes:
        work: Folder of cohorts, run folders and models.
        source: Folder of real scans.
        cells: Folder of stored cells.
        seed: Seed of the training.
    """

    work: Path
    source: Path
    cells: Path
    seed: int = 0

    def cell_of(self, data: str, row: str) -> Path:
        """Return the path of the cell of a data set and a row."""
        return cell_path(self.cells, data, row, self.seed)

    def run_dir(self, data: str, row: str) -> Path:
        """Return the run folder of a method that is trained on a data set."""
        return self.work / data / variant(row, self.seed)


def compute(data: DataSet, row: Row, place: Place) -> dict[str, Any]:
    """Compute a cell.

    Args:
        data: Data set.
        row: Method.
        place: Folders of scans, models and cells, and the seed.

    Returns:
        The cell, ready for JSON.

    Raises:
        AbsentError: The scans are missing, or the cell or the model that this cell needs.
        MAEDiffError: The method refuses the scans.
    """
    cases = place.work / data.name / "cases.csv"
    if not cases.is_file():
        write_cases(cases, data.cases(cases.parent, place.source))
    if data.trained_on:
        return _transfer(data, row, place, cases)
    config = override(config_of(data, row, place.seed), ["train.workers=0"])
    spent = budget(config, load_config(data.config, data.overrides), data.budget_tflop)
    run_dir = place.run_dir(data.name, row.trained_as or row.name)
    seconds = _train(override(config, [f"train.max_steps={spent.steps}"]), cases, run_dir)
    predictor = load_model(run_dir / "model", "cpu", accept=MASKS_AS_GIVEN)
    predictor = replace(predictor, config=override(predictor.config, row.at_test))
    validation = [Patient(case) for case in find_cases(cases, split="val")]
    chosen = [patient for patient in validation if patient.case.label][: data.choose]
    raws = {t: [raw_scores(predictor, patient, data.score, t) for patient in chosen] for t in row.timesteps}
    tries = {t: _validation_auprc(found, chosen, data.score) for t, found in raws.items()}
    best = max(tries, key=lambda t: tries[t])
    say(f"  validation AUPRC at timesteps: {', '.join(f'{t}: {value:.3f}' for t, value in tries.items())}")
    scores = (data.score, *data.others)
    gained = [_working_auprc(raws[best], chosen, score) for score in scores]
    score = scores[int(np.argmax(gained))]
    known = {patient.case.id: raw for patient, raw in zip(chosen, raws[best], strict=True)}
    found = [known.get(p.case.id) or raw_scores(predictor, p, score, best) for p in validation]
    thresholds = _thresholds(found, validation, score)
    rows = _test(predictor, data, cases, Choice(best, score, thresholds))
    return {
        "training": asdict(spent) | {"seconds": seconds},
        "validation_auprc": {str(t): value for t, value in tries.items()},
        "timestep": best,
        "score": score.model_dump(),
        "postprocessing_auprc": gained,
        "thresholds": thresholds,
        "parameters": sum(p.numel() for p in predictor.network.parameters()),
        "gflop_per_slice": gflop_per_slice(predictor, validation[0], best),
        "threads": torch.get_num_threads(),
        "patients": rows,
    }


def budget(config: Config, ours: Config, tflop: float) -> Budget:
    """Convert a budget of operations into steps, with at most :data:`MOST_SAMPLES` times the samples of MAEDiff."""
    if config.method in UNTRAINED:
        return Budget(1, 0, 0.0, 0.0)
    batch = config.train.batch_size * config.train.accumulate
    cost = training_gflop(config)
    samples = min(tflop * 1e3 / cost, MOST_SAMPLES * tflop * 1e3 / training_gflop(ours))
    steps = max(1, round(samples / batch))
    return Budget(steps, steps * batch, steps * batch * cost / 1e3, cost)


def training_gflop(config: Config) -> float:
    """Count the operations of one sample's forward and backward pass, in GFLOP; a multiply-add counts as two."""
    torch.manual_seed(0)
    losses, count = Losses(config).train(), 4
    shape = (count, 1 + config.neighbour_channels, *config.data.size)
    mask = torch.zeros(count, 1, *config.data.size)
    mask[..., : config.partition.window, : config.partition.window] = 1
    image = torch.rand(shape)
    batch = {"image": image, "clean": image, "mask": mask, "noise": torch.randn(shape), "t": torch.full((count,), 50)}
    with FlopCounterMode(display=False) as counter:
        loss, auxiliary = losses(batch)
        (loss + config.model.mae_loss_weight * auxiliary).backward()
    return float(counter.get_total_flops() / count / 1e9)


def gflop_per_slice(predictor: Predictor, patient: Patient, t: int) -> float:
    """Count the operations that reconstruct the slice with the most brain, in GFLOP."""
    if predictor.config.method in UNTRAINED:
        return 0.0
    scan = predictor.prepare(patient.volume, patient.brain)
    prepared = scan.prepared
    middle = int(prepared.mask.sum((1, 2)).argmax())
    one = replace(scan, prepared=replace(prepared, slices=prepared.slices[[middle]], mask=prepared.mask[[middle]]))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels hide their operations from the counter
    try:
        with FlopCounterMode(display=False) as counter:
            reconstruct(predictor, one, t)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops() / 1e9)


def raw_scores(predictor: Predictor, patient: Patient, score: ScoreConfig, t: int) -> Raw:
    """Compute residuals on the working grid; maps of methods without a network are resampled to it."""
    volume = patient.volume
    scan = predictor.prepare(volume, patient.brain)
    prepared = scan.prepared
    start = time.perf_counter()
    if predictor.config.method in UNTRAINED:
        baseline = build_scan_baseline(predictor.config, predictor.network.state_dict())
        native, _ = baseline.scan_maps(volume, prepared.native_mask, ScoreConfig(sign=score.sign))
        share = to_working(prepared.native_mask, prepared.grid)
        values = np.divide(to_working(native, prepared.grid), share, out=np.zeros_like(share), where=prepared.mask)
        l1 = None
    else:
        healthy = reconstruct(predictor, scan, t)
        values = predictor.compare(prepared, healthy, Reading(fixed_sign(score)))
        well = prepared.mask & ~lesion_slices(patient.label, prepared.grid)[:, None, None]
        l1 = float(np.abs(prepared.slices - healthy.mean.numpy())[well].mean()) if well.any() else None
    slices = max(1, int(prepared.mask.any((1, 2)).sum()))
    return Raw(predictor, prepared, values, l1, (time.perf_counter() - start) / slices)


def _train(config: Config, cases: Path, run_dir: Path) -> float:
    """Train, or continue from the last checkpoint; return the seconds of the call that finished."""
    record = run_dir / "seconds.json"
    if (run_dir / "model" / "config.yaml").is_file() and record.is_file():
        return float(read_json(record)["seconds"])

    def notice(now: Progress) -> None:
        if now.val_loss is not None:
            say(f"  step {now.step} of {now.max_steps}, validation {now.val_loss:.4f}")

    start = time.perf_counter()
    maediff.train(config, cases, run_dir, resume=True, device="cpu", on_progress=notice)
    seconds = time.perf_counter() - start
    write_json(record, {"seconds": seconds})
    return seconds


def _validation_auprc(raws: Sequence[Raw], patients: Sequence[Patient], score: ScoreConfig) -> float:
    found = [
        voxel_metrics(raw.map_as(score), patient.brain, patient.label, None).auprc
        for raw, patient in zip(raws, patients, strict=True)
    ]
    return float(np.nanmean(found))


def _working_auprc(raws: Sequence[Raw], patients: Sequence[Patient], score: ScoreConfig) -> float:
    """Average AUPRC on the working grid, which is coarser than the scans and so a tenth of the work."""
    found = []
    for raw, patient in zip(raws, patients, strict=True):
        prepared = raw.prepared
        values = postprocess(raw.values, prepared.mask, prepared.grid.spacing_mm, score)
        truth = prepare_label(patient.label, prepared.grid)
        found.append(voxel_metrics(values, prepared.mask, truth, None).auprc)
    return float(np.nanmean(found))


def _thresholds(raws: Sequence[Raw], validation: Sequence[Patient], score: ScoreConfig) -> dict[str, Any]:
    """Choose one threshold from healthy scans (or from tumour-free slices) and one from labelled scans."""
    pairs = list(zip(raws, validation, strict=True))
    healthy = [(raw.map_as(score), p.brain) for raw, p in pairs if p.case.label is None]
    pseudo = not healthy
    if pseudo:
        calm = [(raw.without(lesion_slices(p.label, raw.prepared.grid)), p) for raw, p in pairs]
        healthy = [(raw.map_as(score), p.pseudo_healthy) for raw, p in calm if p.pseudo_healthy.any()]
    calibration: Calibration = calibrate(
        ((values, mask, case_score(values, mask)) for values, mask in healthy), ScoreConfig().false_positive_rate
    )
    labelled = [(raw.map_as(score), p) for raw, p in pairs if p.case.label]
    validated = validated_threshold([values for values, _ in labelled], [p for _, p in labelled])
    return {
        "healthy": calibration.threshold,
        "healthy_scans": len(healthy),
        "pseudo_healthy": pseudo,
        "validated": validated,
    }


def _test(predictor: Predictor, data: DataSet, cases: Path, choice: Choice) -> Rows:
    """Measure each test scan with a post-processing; where it was chosen, also the AUPRC without the choice."""
    kinds = lesion_kinds(cases)
    rows, scans = [], []
    for number, case in enumerate(find_cases(cases, split="test"), start=1):
        patient = Patient(case)
        raw = raw_scores(predictor, patient, choice.score, choice.timestep)
        found = raw.maps(choice.score)
        row = {"number": number, "kind": kinds.get(case.subject, ""), "healthy_l1": found.healthy_l1}
        row |= _metrics(found, patient, choice.thresholds) | {"seconds_a_slice": found.seconds_a_slice}
        if data.others:
            row["auprc_plain"] = voxel_metrics(raw.map_as(data.score), patient.brain, patient.label, None).auprc
        rows.append(row)
        scans.append((found.filtered, patient.label, patient.brain))
    _, detections = detection_at(scans, false_per_scan=FALSE_PER_SCAN)
    return [row | {"sensitivity": here.detection_rate} for row, here in zip(rows, detections, strict=True)]


def _metrics(found: Maps, patient: Patient, thresholds: dict[str, Any]) -> dict[str, float]:
    """Measure one scan, with the median filter at both thresholds, and without it."""
    brain, label, spacing = patient.brain, patient.label, patient.volume.spacing_mm

    def at(name: str) -> tuple[float, Mask]:
        return thresholds[name], anomaly_mask(found.filtered, thresholds[name], spacing, 0.0)

    calibrated = voxel_metrics(found.filtered, brain, label, *at("healthy"))
    validated = voxel_metrics(found.filtered, brain, label, *at("validated"))
    raw = voxel_metrics(found.unfiltered, brain, label, None)
    others = {
        "auprc_unfiltered": raw.auprc,
        "dice_oracle_unfiltered": raw.dice_oracle,
    }
    return asdict(calibrated) | {"dice_validated": validated.dice} | others


def _transfer(data: DataSet, row: Row, place: Place, cases: Path) -> dict[str, Any]:
    """Test a model that was trained on another data set, with the timestep and thresholds chosen there."""
    other = DATA_SETS[str(data.trained_on)]
    built_on = place.cell_of(other.name, row.name)
    cell = read_json(built_on).get("results", {})
    if "refused" in cell:
        raise InputError(f"refused on {other.name}, where it would have to train: {cell['refused']}")
    model = place.run_dir(other.name, row.name) / "model"
    if "timestep" not in cell or not model.is_dir():
        raise AbsentError(
            f"{built_on} and {model} must hold the method trained on {other.name}; "
            f"compute the cell {other.name} {row.name} first, with --again if it is stored"
        )
    predictor = load_model(model, "cpu", accept=MASKS_AS_GIVEN)
    rows = _test(predictor, data, cases, Choice(cell["timestep"], data.score, cell["thresholds"]))
    return {"trained_on": other.name, "timestep": cell["timestep"], "thresholds": cell["thresholds"], "patients": rows}

"""The same test patients of a fold under every method whose training is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.common import AbsentError, say
from benchmarks.quality.cross_validation.folds import path_of
from benchmarks.quality.montage import RGB, Pictured, write_pictures
from benchmarks.quality.patients import Patient
from benchmarks.quality.table.cells import Maps, Place, maps
from benchmarks.quality.table.rows import DataSet, Row, config_of
from maediff.config import UNTRAINED
from maediff.data.cases import find_cases
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.report.figures import TRUTH_COLOUR, frame_around, grey, heat, overlay, plane_slices, plane_spacing_mm
from maediff.typing import FloatMap

PATIENTS = 4
"""Shown: those with the smallest and the largest tumour, and others evenly between them."""


@dataclass(frozen=True)
class Scored:
    """A method's maps of the patients shown."""

    row: Row
    found: Sequence[Maps]

    @property
    def top(self) -> float:
        """The value shown as the brightest: the median over patients of what 0.2 % of the scan exceeds."""
        return float(np.median([np.percentile(one.filtered, 99.8) for one in self.found])) or 1.0


def draw(path: Path, data: DataSet, rows: Sequence[Row], place: Place, fold: int) -> None:
    """Write the picture: a patient a row; scan, tumour, and each method's filtered map on a scale of its own.

    Raises:
        AbsentError: No method has a stored cell and a trained model.
    """
    cases = place.work / data.name / "cases.csv"
    patients = _spread([Patient(case) for case in find_cases(cases, split="test")]) if cases.is_file() else []
    scored = []
    for row in rows:
        its = replace(place, seed=0) if config_of(data, row).method in UNTRAINED else place
        cell, model = path_of(its.cells, row.name, fold, its.seed), its.run_dir(data.name, row.name) / "model"
        if not (cell.is_file() and model.is_dir()):
            say(f"{row.name}: no cell {cell}, or no model {model}; left out")
            continue
        predictor, timestep = load_model(model, "cpu"), read_json(cell)["results"]["timestep"]
        scored.append(Scored(row, [maps(predictor, patient, data.score, timestep) for patient in patients]))
    if not scored:
        raise AbsentError(f"no method of fold {fold}, seed {place.seed} has a cell and a model in {place.work}")
    lines = [
        Pictured(
            f"{patient.case.subject}, {int(patient.label.sum()) / 1000:.0f}k voxels",
            patient.volume.affine,
            _pictures(patient, [(one.found[number].filtered, one.top) for one in scored]),
        )
        for number, patient in enumerate(patients)
    ]
    heading = f"fold {fold}, seed {place.seed}; maps filtered, each method on its own scale. Research use only"
    write_pictures(path, ["scan", "tumour", *(one.row.title for one in scored)], lines, heading)


def _spread(patients: Sequence[Patient]) -> list[Patient]:
    """Choose patients by the size of their tumour."""
    ordered = sorted(patients, key=lambda patient: int(patient.label.sum()))
    chosen = np.linspace(0, len(ordered) - 1, min(PATIENTS, len(ordered))).round().astype(int)
    return [ordered[index] for index in chosen]


def _pictures(patient: Patient, found: Sequence[tuple[FloatMap, float]]) -> list[RGB]:
    """Cut the slice with most of the tumour out of scan, truth and maps."""
    affine, data, brain = patient.volume.affine, patient.volume.data, patient.brain
    truth = plane_slices(patient.label, affine)
    frame = frame_around(plane_slices(brain, affine), int(truth.sum((1, 2)).argmax()), plane_spacing_mm(affine))
    low, high = (float(q) for q in np.percentile(data[brain], (0.5, 99.8)))
    scan = grey(frame.cut(plane_slices(data, affine)), low, high)
    shown = [heat(frame.cut(plane_slices(values, affine)), top) for values, top in found]
    return [scan, overlay(scan, frame.cut(truth), TRUTH_COLOUR), *shown]

"""The same test patients of a fold under every method whose training is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.common import AbsentError, say
from benchmarks.quality.cross_validation.folds import path_of
from benchmarks.quality.montage import RGB, Pictured, Section, write_pictures
from benchmarks.quality.patients import Patient
from benchmarks.quality.table.cells import Place, raw_scores
from benchmarks.quality.table.rows import DataSet, Row, config_of
from maediff.config import UNTRAINED, ScoreConfig
from maediff.data.cases import find_cases
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.report.figures import heat
from maediff.typing import FloatMap

PATIENTS = 4
"""Shown: those with the smallest and the largest tumour, and others evenly between them."""


@dataclass(frozen=True)
class MethodMaps:
    """A method's filtered maps of the patients shown."""

    row: Row
    maps: Sequence[FloatMap]

    @property
    def top(self) -> float:
        """The value shown as the brightest: the median over patients of what 0.2 % of the scan exceeds."""
        return float(np.median([np.percentile(values, 99.8) for values in self.maps])) or 1.0


def draw(path: Path, data: DataSet, rows: Sequence[Row], place: Place, fold: int) -> None:
    """Write the picture: a patient a row; scan, tumour, and each method's filtered map on a scale of its own.

    Raises:
        AbsentError: No method has a stored cell and a trained model.
    """
    cases = place.work / data.name / "cases.csv"
    patients = _spread([Patient(case) for case in find_cases(cases, split="test")]) if cases.is_file() else []
    methods = []
    for row in rows:
        its = replace(place, seed=0) if config_of(data, row).method in UNTRAINED else place
        cell, model = path_of(its.cells, row.name, fold, its.seed), its.run_dir(data.name, row.name) / "model"
        if not (cell.is_file() and model.is_dir()):
            say(f"{row.name}: no cell {cell}, or no model {model}; left out")
            continue
        predictor, chosen = load_model(model, "cpu"), read_json(cell)["results"]
        score = ScoreConfig.model_validate(chosen["score"])
        raws = (raw_scores(predictor, patient, score, chosen["timestep"]) for patient in patients)
        methods.append(MethodMaps(row, [raw.map_as(score) for raw in raws]))
    if not methods:
        raise AbsentError(f"no method of fold {fold}, seed {place.seed} has a cell and a model in {place.work}")
    lines = [
        Pictured(
            f"{patient.case.subject}, {int(patient.label.sum()) / 1000:.0f}k voxels",
            patient.volume.affine,
            _pictures(patient, [(method.maps[number], method.top) for method in methods]),
        )
        for number, patient in enumerate(patients)
    ]
    heading = f"fold {fold}, seed {place.seed}; maps filtered, each method on its own scale. Research use only"
    write_pictures(path, ["scan", "tumour", *(method.row.title for method in methods)], lines, heading)


def _spread(patients: Sequence[Patient]) -> list[Patient]:
    """Choose patients by the size of their tumour."""
    ordered = sorted(patients, key=lambda patient: int(patient.label.sum()))
    chosen = np.linspace(0, len(ordered) - 1, min(PATIENTS, len(ordered))).round().astype(int)
    return [ordered[index] for index in chosen]


def _pictures(patient: Patient, found: Sequence[tuple[FloatMap, float]]) -> list[RGB]:
    """Cut the slice with most of the tumour out of scan, truth and maps."""
    section = Section.of(patient.volume.affine, patient.volume.data, patient.brain, patient.label)
    return [section.scan, section.truth, *(heat(section.cut(values), top) for values, top in found)]

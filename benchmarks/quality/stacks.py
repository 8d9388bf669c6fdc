"""Reconstructions of a synthetic validation cohort on working slices, scored many times with other settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from maediff.config import ScoreConfig
from maediff.data.cases import Case, find_cases
from maediff.data.lesions import KINDS
from maediff.data.synthesis import synthesise
from maediff.evaluation.voxel import voxel_metrics
from maediff.files import read_json
from maediff.inference.predictor import Predictor
from maediff.scoring import anomaly_map
from maediff.typing import BoolArray, FloatArray
from maediff.volume import read_mask, read_nifti
from maediff.working import prepare, prepare_label

VALIDATION = {"subjects": 24, "seed": 777}


def validation_cases(run: Path, modality: str) -> list[Case]:
    """Make (once) and list the lesioned scans of the validation cohort, kinds in turn."""
    data = run.with_name(f"{run.name}-val-{modality}")
    if not (data / "cases.csv").is_file():
        synthesise(data, modality=modality, **VALIDATION)  # type: ignore[arg-type]
    return [case for case in find_cases(data / "cases.csv") if case.label]


class Stack(NamedTuple):
    """A scan, its healthy reconstruction and its truth on working slices, (S, H, W) each."""

    slices: FloatArray
    healthy: FloatArray
    brain: BoolArray
    label: BoolArray
    spacing_mm: tuple[float, float, float]
    kind: str


def reconstruct(predictor: Predictor, cases: Iterable[Case], every: int) -> list[Stack]:
    """Reconstruct every n-th slice of each scan."""
    stacks = []
    for case in cases:
        volume = read_nifti(case.image)
        ready = prepare(volume, read_mask(str(case.mask), volume, "brain mask"), predictor.config.data)
        label = prepare_label(read_mask(str(case.label), volume, "lesion label"), ready.grid)[::every]
        x, brain = ready.slices[::every], ready.mask[::every]
        healthy = predictor.reconstruct(torch.from_numpy(x), torch.from_numpy(brain), (0, case.id)).mean.numpy()
        kind = str(read_json(case.image.with_name(f"{case.stem}.json")).get("SyntheticLesion"))
        stacks.append(Stack(x, healthy, brain, label, ready.grid.spacing_mm, kind))
    return stacks


def auprc(stacks: Iterable[Stack], score: ScoreConfig) -> dict[str, float]:
    """Average the AUPRC of scans by lesion kind, and the absolute residual off the lesions (`healthy_l1`)."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    off = []
    for stack in stacks:
        values = anomaly_map(stack.slices, stack.healthy, stack.brain, stack.spacing_mm, score)
        found[stack.kind].append(voxel_metrics(values, stack.brain, stack.label, 0.0).auprc)
        off.append(float(np.abs(stack.slices - stack.healthy)[stack.brain & ~stack.label].mean()))
    return {kind: float(np.nanmean(v)) if v else float("nan") for kind, v in found.items()} | {
        "healthy_l1": float(np.mean(off))
    }


def auprc_by_kind(predictor: Predictor, cases: Iterable[Case], every: int) -> dict[str, float]:
    """Score a model with its own settings."""
    return auprc(reconstruct(predictor, cases, every), predictor.config.score)

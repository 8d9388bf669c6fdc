"""Evaluate maps: voxelwise, lesion-wise and scan-level metrics, with intervals over patients."""

from __future__ import annotations

from maediff.evaluation.bootstrap import Estimate, bootstrap_ci
from maediff.evaluation.case import case_auroc
from maediff.evaluation.choice import Choice
from maediff.evaluation.evaluate import Evaluation, evaluate, measure
from maediff.evaluation.lesion import LesionMetrics, detection_at, lesion_metrics
from maediff.evaluation.voxel import VoxelMetrics, dice, dice_oracle, voxel_metrics

__all__ = [
    "Choice",
    "Estimate",
    "Evaluation",
    "LesionMetrics",
    "VoxelMetrics",
    "bootstrap_ci",
    "case_auroc",
    "detection_at",
    "dice",
    "dice_oracle",
    "evaluate",
    "lesion_metrics",
    "measure",
    "voxel_metrics",
]

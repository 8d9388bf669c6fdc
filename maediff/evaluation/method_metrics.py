"""Score the maps of any method like those of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from maediff.calibration import calibrate
from maediff.evaluation.voxel import voxel_metrics
from maediff.scoring import case_score
from maediff.typing import BoolArray, FloatArray


def method_metrics(
    healthy: Iterable[tuple[FloatArray, BoolArray]],
    test: Iterable[tuple[FloatArray, BoolArray, BoolArray, str]],
    rate: float,
) -> dict[str, dict[str, float | None]]:
    """Score one method's maps like a model's: calibrate on healthy scans, then average over scans by lesion.

    Args:
        healthy: Maps of healthy calibration scans, each with its brain mask.
        test: Maps of test scans, each with brain mask, lesion mask and lesion kind.
        rate: False-positive rate of the calibration.

    Returns:
        ``{kind: {"auroc", "auprc", "dice", "dice_oracle", "lesion_share"}}``; None if not defined.
    """
    threshold = calibrate(((values, mask, case_score(values, mask)) for values, mask in healthy), rate).threshold
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for values, mask, label, kind in test:
        scores[kind].append(asdict(voxel_metrics(values, mask, label, threshold)))
    table: dict[str, dict[str, float | None]] = {}
    for kind, rows in scores.items():
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        defined = {name: column[np.isfinite(column)] for name, column in columns.items()}
        table[kind] = {name: float(values.mean()) if values.size else None for name, values in defined.items()}
    return table

"""Charts of a cohort: scan-level scores beside those of healthy scans, ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maediff.calibration import alike
from maediff.evaluation.curves import Curves, scan_curves, voxel_curves
from maediff.evaluation.evaluate import SCORED, CaseResult
from maediff.evaluation.outputs import OutputCase
from maediff.evaluation.reference import Reference
from maediff.report.charts import Group, strip_chart, unit_chart

_UNIT = "scan-level score: mean of the highest 1 % of the map"
_WIDTH = 840  # of the chart of all scans, pixels: the page's, beside the list of scans
_CARD_WIDTH = 400  # of the chart in a scan's card, pixels; narrow windows shrink it


@dataclass(frozen=True)
class CurvePair:
    """ROC and precision-recall curve of the same items, as SVG, and what they are of."""

    title: str
    roc: str
    precision_recall: str


def distribution(cases: Sequence[OutputCase], record: Mapping[str, Any], truths: Reference | None) -> str | None:
    """Draw the scores of all scans, by kind where the truth is known, below those of the healthy calibration scans.

    Args:
        cases: Finished cases.
        record: ``run.json`` of the run.
        truths: Reference, if there is one.

    Returns:
        SVG, or None if no scan has a score.
    """
    kinds: dict[str, list[tuple[str, float]]] = {}
    for case in cases:
        if np.isfinite(case.score):
            kinds.setdefault(_kind(case, truths), []).append((case.case, case.score))
    if not kinds:
        return None
    sorts = {case.sort for case in cases}
    scores = healthy_scores(record, *(sorts.pop() if len(sorts) == 1 else ()))
    healthy = [("healthy calibration scan", score) for score in scores]
    rows = [Group("healthy, calibration", healthy, "healthy")] if healthy else []
    rows += [Group(kind, points, "scan") for kind, points in sorted(kinds.items())]
    return strip_chart(rows, _UNIT, _WIDTH)


def placed_among_healthy(case: OutputCase, record: Mapping[str, Any]) -> str | None:
    """Draw one scan's score below those of the healthy calibration scans that it is compared with.

    Returns:
        SVG, or None if the run's calibration is unknown or not that of this scan's map.
    """
    scores = healthy_scores(record, *case.sort)
    same = (record.get("hashes") or {}).get("model") == case.sidecar.get("model_hash")
    if not (scores and same and np.isfinite(case.score)):
        return None
    healthy = Group("healthy scans", [("healthy calibration scan", score) for score in scores], "healthy")
    return strip_chart(
        [healthy, Group("this scan", [(case.case, case.score)], "scan")], "scan-level score", _CARD_WIDTH
    )


def healthy_scores(record: Mapping[str, Any], contrast: str = "", form: str = "") -> list[float]:
    """Scores of the healthy calibration scans, from ``run.json``; empty if it has none.

    Args:
        record: ``run.json`` of the run.
        contrast: Contrast of the scan to compare; if the calibration has a part for it, the scores of that part.
        form: Its form, likewise.
    """
    calibration = record.get("calibration")
    if not isinstance(calibration, Mapping):
        return []
    part = alike(calibration, lambda record, name: record.get(name) or {}, contrast, form)
    return [float(score) for score in part.get("case_scores", [])]


def curve_charts(results: Sequence[CaseResult]) -> list[CurvePair]:
    """Draw ROC and precision-recall curves, of voxels and of scans, as far as both kinds are there.

    Args:
        results: Scans compared with the truth.
    """
    scored = [result for result in results if result.status == SCORED and result.histogram is not None]
    voxels = voxel_curves([result.histogram for result in scored if result.histogram is not None])
    scans = scan_curves([result.score for result in scored], [bool(result.has_lesion) for result in scored])
    pairs = (
        (f"Voxels of {len(scored)} scans together: lesion against the rest of the brain", voxels),
        (f"{len(scored)} scans: with a lesion against healthy", scans),
    )
    return [_pair(title, curves) for title, curves in pairs if curves]


def _pair(title: str, curves: Curves) -> CurvePair:
    roc_labels = ("false-positive rate", "true-positive rate")
    return CurvePair(
        title,
        unit_chart(curves.false_positive_rate, curves.recall, roc_labels, chance=(0.0, 1.0)),
        unit_chart(curves.recall, curves.precision, ("recall", "precision"), chance=(curves.prevalence,) * 2),
    )


def _kind(case: OutputCase, truths: Reference | None) -> str:
    if truths is None:
        return "this cohort"
    try:
        truth = truths.find(case)
    except Exception:  # evaluation says what is wrong with it
        return "truth unknown"
    return truth.lesion or ("lesion" if truth.label else "healthy")

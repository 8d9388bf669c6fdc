"""One picture a scan: scan, healthy reconstruction, anomaly map and mask at the most anomalous slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maediff.files import atomic_path
from maediff.inference.result import AnomalyResult
from maediff.report.figures import (
    MASK_COLOUR,
    frame_around,
    grey,
    heat,
    most_anomalous_slice,
    overlay,
    plane_slices,
    plane_spacing_mm,
    scale_top,
)
from maediff.typing import Array, ByteArray

_GAP = 4


def write_preview(result: AnomalyResult, path: Path) -> None:
    """Write the picture as PNG, panels from left to right, in radiological orientation.

    Args:
        result: What a model said about a scan.
        path: File to write.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib import image

    panels = preview_panels(result)
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, gap)][:-1]
    with atomic_path(path) as temporary:
        image.imsave(temporary, np.concatenate(row, axis=1), format="png", metadata={"Software": "MAEDiff"})


def preview_panels(result: AnomalyResult) -> list[ByteArray]:
    """Draw scan, reconstruction and map, and the mask over the scan where there is one: each (H, W, 3)."""
    affine = result.volume.affine

    def planes(data: Array) -> Array:
        return plane_slices(data, affine)

    anomaly, brain = planes(result.anomaly), planes(result.brain_mask)
    frame = frame_around(brain, most_anomalous_slice(anomaly), plane_spacing_mm(affine))
    low, high = (float(q) for q in np.percentile(result.volume.data[result.brain_mask], (0.5, 99.5)))
    top = scale_top([float(np.percentile(result.anomaly[result.brain_mask], 99.5))], result.threshold)
    scan = grey(frame.cut(planes(result.volume.data)), low, high)
    panels = [scan, grey(frame.cut(planes(result.reconstruction)), low, high), heat(frame.cut(anomaly), top)]
    if result.anomaly_mask is not None:
        panels.append(overlay(scan, frame.cut(planes(result.anomaly_mask)), MASK_COLOUR))
    return panels

"""One picture per scan: scan, healthy reconstruction, anomaly map and mask at the most anomalous slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maediff.files import atomic_path
from maediff.inference.result import AnomalyResult
from maediff.report.figures import (
    MASK_COLOUR,
    colour_table,
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
_BAR, _DPI = 46, 100  # height of the colour bar with its numbers, pixels; dots per inch of its text


def write_preview(result: AnomalyResult, path: Path) -> None:
    """Write the picture as PNG, panels from left to right, in radiological orientation, with the colour scale below.

    Args:
        result: What a model said about a scan.
        path: File to write.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib import image

    panels = preview_panels(result)
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    row = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    bar = colour_bar(row.shape[1], preview_top(result), result.threshold, result.units)
    with atomic_path(path) as temporary:
        image.imsave(temporary, np.concatenate([row, bar]), format="png", metadata={"Software": "MAEDiff"})


def preview_top(result: AnomalyResult) -> float:
    """Return the upper end of the colour scale of report and viewer: :func:`~maediff.report.figures.scale_top`."""
    return scale_top([result.score], result.threshold)


def colour_bar(width: int, top: float, threshold: float | None, units: str) -> ByteArray:
    """Draw the colour scale with its numbers: zero, the threshold and its end.

    Args:
        width: Pixels.
        top: End of the scale.
        threshold: Calibrated threshold, or None.
        units: Of the map.

    Returns:
        Picture (H, W, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, _BAR / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.62, 0.88, 0.24))
    axes.imshow(colour_table()[None], extent=(0, top, 0, 1), aspect="auto")
    ticks = [0.0, top] if threshold is None or not 0.1 < threshold / top < 0.9 else [0.0, threshold, top]
    axes.set_xticks(ticks, [f"{value:.3g}" for value in ticks], fontsize=7)
    axes.set_yticks([])
    axes.tick_params(length=2, pad=1)
    figure.text(0.5, 0.02, units.split(":", maxsplit=1)[0], fontsize=6, ha="center")
    canvas.draw()  # type: ignore[no-untyped-call]
    rgb: ByteArray = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    pad = max(0, width - rgb.shape[1])
    return np.pad(rgb, ((0, 0), (0, pad), (0, 0)), constant_values=255)[:, :width]


def preview_panels(result: AnomalyResult) -> list[ByteArray]:
    """Draw scan, reconstruction and map, and the mask over the scan if there is one: each (H, W, 3)."""
    affine = result.volume.affine

    def planes(data: Array) -> Array:
        return plane_slices(data, affine)

    anomaly, brain = planes(result.anomaly), planes(result.brain_mask)
    frame = frame_around(brain, most_anomalous_slice(anomaly), plane_spacing_mm(affine))
    low, high = (float(q) for q in np.percentile(result.volume.data[result.brain_mask], (0.5, 99.5)))
    scan = grey(frame.cut(planes(result.volume.data)), low, high)
    panels = [
        scan,
        grey(frame.cut(planes(result.reconstruction)), low, high),
        heat(frame.cut(anomaly), preview_top(result)),
    ]
    if result.anomaly_mask is not None:
        panels.append(overlay(scan, frame.cut(planes(result.anomaly_mask)), MASK_COLOUR))
    return panels

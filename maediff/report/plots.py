"""Pictures of one result, for notebooks: a matplotlib figure, and HTML with a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from maediff.errors import InputError
from maediff.report.figures import (
    MASK_COLOUR,
    PLANES,
    Frame,
    data_uri,
    frame_around,
    grey,
    grey_window,
    heat,
    high_value,
    most_anomalous_place,
    overlay,
    plane_slices,
    plane_spacing_mm,
    scale_top,
)
from maediff.typing import Array, ByteArray

if TYPE_CHECKING:
    from maediff.inference.result import AnomalyResult

_EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
_EDGE_STYLES = ("left:4px;top:50%", "right:4px;top:50%", "left:50%;top:2px", "left:50%;bottom:2px")
_INCHES = 2.6
Panels = list[tuple[str, ByteArray]]


class ResultFigure(Figure):
    """A figure that a notebook shows as it is, whatever the backend."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=110, bbox_inches="tight")
        return stream.getvalue()


def result_figure(result: AnomalyResult, planes: Sequence[str], index: int | None = None) -> ResultFigure:
    """Draw a result, one row of pictures per plane, see :meth:`AnomalyResult.plot`.

    Raises:
        InputError: Unknown plane, or no such slice.
    """
    wrong = [plane for plane in planes if plane not in PLANES]
    if wrong or not planes:
        raise InputError(
            f"there is no plane {', '.join(map(repr, wrong)) or planes!r}; choose from {', '.join(PLANES)}"
        )
    rows = [(plane, *_row(result, plane, index)) for plane in planes]
    columns = len(rows[0][2])
    heights = [_INCHES / frame.aspect for _, frame, _ in rows]
    figure = ResultFigure(figsize=(_INCHES * columns, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, (plane, frame, panels) in zip(axes, rows, strict=True):
        for axis, (title, picture) in zip(line, panels, strict=True):
            height, width = picture.shape[:2]
            axis.imshow(picture, aspect=width / height / frame.aspect, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
            _letters(axis, plane)
        line[0].set_title(f"{line[0].get_title()}, {plane} {frame.slice_index + 1} of {frame.n_slices}", fontsize=9)
    return figure


def result_html(result: AnomalyResult) -> str:
    """Describe a result with a picture of the slice through its largest finding, or its highest map values."""
    frame, panels = _row(result, "axial", None)
    letters = "".join(
        f'<b style="position:absolute;{place}">{letter}</b>'
        for letter, place in zip(_EDGES["axial"], _EDGE_STYLES, strict=True)
    )
    pictures = "".join(
        f'<figure style="display:inline-block;margin:0 6px 0 0">'
        f'<div style="position:relative;color:#fff;font-size:11px"><img alt="{title}" src="{data_uri(picture)}" '
        f'style="display:block;width:180px;aspect-ratio:{frame.aspect:.4f};background:#000">{letters}</div>'
        f'<figcaption style="font-size:small">{title}</figcaption></figure>'
        for title, picture in panels
    )
    text = "<br>".join(escape(line.strip()) for line in result.describe())
    side = f"axial slice {frame.slice_index + 1} of {frame.n_slices}, the patient's right on the left"
    return f"<div><p>{text}</p>{pictures}<p><small>{side}. Research use only.</small></p></div>"


def _row(result: AnomalyResult, plane: str, index: int | None) -> tuple[Frame, Panels]:
    """Draw the panels of one slice."""
    affine = result.volume.affine

    def cut(data: Array) -> Array:
        return frame.cut(plane_slices(data, affine, plane))

    brain = plane_slices(result.brain_mask, affine, plane)
    chosen = _slice(result, plane) if index is None else index
    if not 0 <= chosen < len(brain):
        raise InputError(f"there is no {plane} slice {chosen}; they are counted from 0 to {len(brain) - 1}")
    frame = frame_around(brain, chosen, plane_spacing_mm(affine, plane))
    window = grey_window(result.volume.data, result.brain_mask)
    top = scale_top([high_value(result.anomaly, result.brain_mask)], result.threshold)
    scan = grey(cut(result.volume.data), *window)
    panels: Panels = [
        ("Scan", scan),
        ("Healthy reconstruction", grey(cut(result.reconstruction), *window)),
        (f"Anomaly map, 0 to {top:g}", heat(cut(result.anomaly), top)),
    ]
    if result.anomaly_mask is not None:
        panels.append((f"Above {result.threshold:.3g}", overlay(scan, cut(result.anomaly_mask), MASK_COLOUR)))
    return frame, panels


def _slice(result: AnomalyResult, plane: str) -> int:
    """Choose the slice through the largest finding, else through the highest map values."""
    findings = result.components()
    affine = result.volume.affine
    if findings.empty:
        return most_anomalous_place(result.anomaly, affine)[plane]
    marked = np.zeros(result.anomaly.shape, bool)
    marked[tuple(int(findings.iloc[0][f"centre_{axis}"]) for axis in "ijk")] = True
    return int(plane_slices(marked, affine, plane).any(axis=(1, 2)).argmax())


def _letters(axis: Any, plane: str) -> None:
    left, right, upper, lower = _EDGES[plane]
    places = ((left, 0.03, 0.5), (right, 0.97, 0.5), (upper, 0.5, 0.96), (lower, 0.5, 0.04))
    for letter, x, y in places:
        axis.text(x, y, letter, transform=axis.transAxes, color="white", fontsize=8, ha="center", va="center")

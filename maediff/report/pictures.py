"""Choose what to show of each scan and render it, all scans on one colour scale."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.errors import InputError, MAEDiffError
from maediff.evaluation.outputs import OutputCase
from maediff.evaluation.reference import Reference
from maediff.report.figures import (
    MASK_COLOUR,
    TRUTH_COLOUR,
    Frame,
    axial_planes,
    data_uri,
    frame_around,
    grey,
    heat,
    most_anomalous_slice,
    overlay,
    plane_spacing_mm,
    scale_top,
)
from maediff.volume import Volume, read_mask, read_nifti

logger = logging.getLogger(__name__)

_TOP_PERCENTILE = 99.9  # of a map's brain voxels: where the shared colour scale ends
_WINDOW = (0.5, 99.8)  # grey window, percentiles of the scan within the brain


@dataclass(frozen=True)
class View:
    """One row of pictures: a slice of one scan, and why this slice.

    Attributes:
        reason: In words.
        place: Which slice, in words.
        aspect: Width over height.
        panels: Title and data URI of each picture.
    """

    reason: str
    place: str
    aspect: float
    panels: list[tuple[str, str]]


@dataclass(frozen=True)
class Gallery:
    """Pictures of a cohort.

    Attributes:
        views: Views of each case, by its id.
        top: Upper end of the shared colour scale.
        notes: What could not be shown, by case id.
    """

    views: dict[str, list[View]]
    top: float
    notes: dict[str, str]


@dataclass
class _Planes:
    """What a scan's pictures are cut from; arrays (h, w), already cropped, one a view."""

    aspect: float
    top: float
    window: tuple[float, float]
    views: list[tuple[str, str, dict[str, npt.NDArray[Any]]]] = field(default_factory=list)


def build_gallery(cases: Sequence[OutputCase], reference: Reference | None) -> Gallery:
    """Render the pictures of finished cases.

    Shown are the slice that holds most of the highest map values and, where the reference marks a lesion that this
    slice misses, the slice with most of the lesion.

    Args:
        cases: Finished cases.
        reference: Truths, if known.
    """
    planes: dict[str, _Planes] = {}
    notes: dict[str, str] = {}
    for case in cases:
        try:
            planes[case.case], note = _extract(case, reference)
        except MAEDiffError as error:
            logger.warning("no pictures of %s: %s", case.case, error)
            note = f"No pictures: {error}"
        if note:
            notes[case.case] = note
    thresholds = [case.threshold for case in cases if case.threshold is not None]
    top = scale_top([item.top for item in planes.values()], max(thresholds, default=None))
    return Gallery({name: _render(item, top) for name, item in planes.items()}, top, notes)


def _extract(case: OutputCase, reference: Reference | None) -> tuple[_Planes, str]:
    volume = read_nifti(case.files["anomaly"])
    layers, note = _layers(case, volume, reference)
    planes = {name: axial_planes(data, volume.affine) for name, data in layers.items()}
    brain = planes["map"] > 0
    first = most_anomalous_slice(planes["map"])
    frame = frame_around(brain, first, plane_spacing_mm(volume.affine))
    shown = planes.get("scan", planes.get("reconstruction", planes["map"]))
    inside = shown[brain] if brain.any() else shown
    low, high = np.percentile(inside, _WINDOW)
    top = float(np.percentile(planes["map"][brain], _TOP_PERCENTILE)) if brain.any() else 0.0
    result = _Planes(frame.aspect, top, (min(0.0, float(low)) if low < 0 else float(low) * 0.5, float(high)))
    for reason, index in _slices(planes, first):
        here = Frame(index, frame.n_slices, frame.rows, frame.columns, frame.aspect)
        place = f"slice {index + 1} of {frame.n_slices} from below"
        result.views.append((reason, place, {name: here.cut(data) for name, data in planes.items()}))
    return result, note


def _layers(case: OutputCase, volume: Volume, reference: Reference | None) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Volumes (X, Y, Z) that there are of a case: scan, reconstruction, map, mask, truth; and what is amiss."""
    layers: dict[str, npt.NDArray[Any]] = {}
    notes = []
    if case.image is None:
        notes.append("The scan is no longer where it was, so it is not shown.")
    else:
        scan = read_nifti(case.image)
        if scan.data.shape == volume.data.shape:
            layers["scan"] = scan.data
        else:
            notes.append("The scan's grid is not that of its map, so it is not shown.")
    if "reconstruction" in case.files:
        layers["reconstruction"] = read_nifti(case.files["reconstruction"]).data
    layers["map"] = np.where(volume.data > 0, volume.data, 0)
    if "mask" in case.files:
        layers["mask"] = read_mask(case.files["mask"], volume, "anomaly mask")
    if reference is not None:
        try:
            label = reference.find(case).label
            layers["truth"] = np.zeros(volume.data.shape, bool) if label is None else read_mask(label, volume, "label")
        except InputError as error:
            notes.append(f"Truth not shown: {error}.")
    return layers, " ".join(notes)


def _slices(planes: dict[str, npt.NDArray[Any]], first: int) -> list[tuple[str, int]]:
    chosen = [("most anomalous slice", first)]
    truth = planes.get("truth")
    if truth is not None and truth.any() and not truth[first].any():
        chosen.append(("slice with most of the lesion", int(truth.sum(axis=(1, 2)).argmax())))
    return chosen


def _render(item: _Planes, top: float) -> list[View]:
    return [View(reason, place, item.aspect, _panels(parts, item.window, top)) for reason, place, parts in item.views]


def _panels(parts: dict[str, npt.NDArray[Any]], window: tuple[float, float], top: float) -> list[tuple[str, str]]:
    base = parts.get("scan", parts.get("reconstruction"))
    backdrop = grey(base, *window) if base is not None else heat(parts["map"], top)
    panels = []
    if "scan" in parts:
        panels.append(("Scan", backdrop))
    if "reconstruction" in parts:
        panels.append(("Healthy reconstruction", grey(parts["reconstruction"], *window)))
    panels.append(("Anomaly map", heat(parts["map"], top)))
    if "mask" in parts:
        panels.append(("Anomaly mask", overlay(backdrop, parts["mask"], MASK_COLOUR)))
    if "truth" in parts:
        title = "Truth" if parts["truth"].any() else "Truth: no lesion here"
        panels.append((title, overlay(backdrop, parts["truth"], TRUTH_COLOUR)))
    return [(title, data_uri(picture)) for title, picture in panels]

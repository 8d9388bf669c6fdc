"""Choose what to show of each scan and render it, all scans on one colour scale."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maediff.errors import InputError, MAEDiffError, one_line
from maediff.evaluation.evaluate import brain_of
from maediff.evaluation.outputs import OutputCase
from maediff.evaluation.reference import Reference
from maediff.findings import Findings, locate, to_template
from maediff.report.figures import (
    MASK_COLOUR,
    PLANES,
    TRUTH_COLOUR,
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
from maediff.typing import Array, BoolArray
from maediff.volume import Volume, read_map, read_mask, read_nifti

logger = logging.getLogger(__name__)


_SIDES = {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}  # left and upper edge of the picture
_COUNTED_FROM = {"axial": "below", "coronal": "the back", "sagittal": "the patient's left"}


@dataclass(frozen=True)
class View:
    """One row of pictures: a slice of one scan, and why this slice.

    Attributes:
        plane: "axial", "coronal" or "sagittal".
        place: Which slice, and why, in words.
        aspect: Width over height.
        sides: Letters of the left and the upper edge.
        panels: Title and data URI of each picture.
    """

    plane: str
    place: str
    aspect: float
    sides: tuple[str, str]
    panels: list[tuple[str, str]]


@dataclass(frozen=True)
class Gallery:
    """Pictures of a cohort.

    Attributes:
        views: Views of each case, by its id.
        top: Upper end of the shared colour scale.
        uncertainty_top: Upper end of the colour scale of all uncertainties; None where there are none.
        findings: Where the anomalous volume of each case lies; none for cases without a mask.
        notes: What could not be shown, by case id.
    """

    views: dict[str, list[View]]
    top: float
    uncertainty_top: float | None
    findings: dict[str, Findings]
    notes: dict[str, str]


@dataclass(frozen=True)
class _Slice:
    """A slice that is to be drawn; ``parts`` are arrays (h, w), already cropped."""

    plane: str
    place: str
    aspect: float
    parts: dict[str, Array]


@dataclass(frozen=True)
class _Scan:
    """What a scan's pictures are drawn from."""

    top: float
    spread: float | None
    window: tuple[float, float]
    slices: list[_Slice]
    findings: Findings | None


def build_gallery(cases: Sequence[OutputCase], reference: Reference | None) -> Gallery:
    """Render the pictures of finished cases.

    Shown are the three planes through the place where the highest map values lie most densely and, where the reference
    marks a lesion that none of them meets, the axial slice with most of the lesion.

    Args:
        cases: Finished cases.
        reference: Truths, if known.
    """
    scans: dict[str, _Scan] = {}
    notes: dict[str, str] = {}
    for case in cases:
        try:
            scans[case.case], note = _extract(case, reference)
        except Exception as error:  # whatever is wrong with a scan must not stop the others
            logger.warning("no pictures of %s: %s", case.case, one_line(error))
            note = f"No pictures: {one_line(error)}"
        if note:
            notes[case.case] = note
    thresholds = [case.threshold for case in cases if case.threshold is not None]
    top = scale_top([scan.top for scan in scans.values()], max(thresholds, default=None))
    spreads = [scan.spread for scan in scans.values() if scan.spread is not None]
    tops = (top, scale_top(spreads, None) if spreads else None)
    views = {name: [_render(item, scan.window, tops) for item in scan.slices] for name, scan in scans.items()}
    findings = {name: scan.findings for name, scan in scans.items() if scan.findings}
    return Gallery(views, *tops, findings, notes)


def _extract(case: OutputCase, reference: Reference | None) -> tuple[_Scan, str]:
    volume = read_map(case.files["anomaly"])
    layers, note = _layers(case, volume, reference)
    values, affine = layers["map"], volume.affine
    brain = values > 0
    shown = layers.get("scan", layers.get("reconstruction", values))
    window = grey_window(shown, brain)
    top = high_value(values, brain)
    spread = high_value(layers["uncertainty"], brain) if "uncertainty" in layers else None
    place = most_anomalous_place(values, affine)
    slices = [_cut(layers, affine, plane, place[plane]) for plane in PLANES]
    truth = layers.get("truth")
    if truth is not None and truth.any() and not any(item.parts["truth"].any() for item in slices):
        largest = int(plane_slices(truth, affine).sum(axis=(1, 2)).argmax())
        slices.append(_cut(layers, affine, "axial", largest, "with most of the lesion, which the map missed, "))
    findings = None
    if "mask" in layers:
        inside = _brain(case, volume)
        findings = locate(layers["mask"], inside, affine, to_template(volume, case.image, case.sidecar), values=values)
    return _Scan(top, spread, window, slices, findings), note


def _brain(case: OutputCase, volume: Volume) -> BoolArray:
    """Find the brain that a scan was scored in; where its mask is gone, that is where the map is not zero."""
    try:
        return brain_of(case, None, volume)[0]
    except MAEDiffError:
        return np.asarray(volume.data > 0)


def _cut(
    layers: dict[str, Array],
    affine: Array,
    plane: str,
    index: int,
    why: str = "",
) -> _Slice:
    brain = layers["map"] > 0
    frame = frame_around(plane_slices(brain, affine, plane), index, plane_spacing_mm(affine, plane))
    parts = {name: frame.cut(plane_slices(data, affine, plane)) for name, data in layers.items()}
    place = f"slice {why}{index + 1} of {frame.n_slices} from {_COUNTED_FROM[plane]}"
    return _Slice(plane, place, frame.aspect, parts)


def _layers(case: OutputCase, volume: Volume, reference: Reference | None) -> tuple[dict[str, Array], str]:
    """Volumes (X, Y, Z) of a case, as far as there are any, and what is amiss."""
    layers: dict[str, Array] = {}
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
        layers["reconstruction"] = read_map(case.files["reconstruction"]).data
    layers["map"] = np.where(volume.data > 0, volume.data, 0)
    if "uncertainty" in case.files:
        layers["uncertainty"] = read_map(case.files["uncertainty"]).data
    if "mask" in case.files:
        layers["mask"] = read_mask(case.files["mask"], volume, "anomaly mask")
    if reference is not None:
        try:
            label = reference.find(case).label
            layers["truth"] = np.zeros(volume.data.shape, bool) if label is None else read_mask(label, volume, "label")
        except InputError as error:
            notes.append(f"Truth not shown: {error}.")
    return layers, " ".join(notes)


def _render(item: _Slice, window: tuple[float, float], tops: tuple[float, float | None]) -> View:
    return View(item.plane, item.place, item.aspect, _SIDES[item.plane], _panels(item.parts, window, tops))


def _panels(
    parts: dict[str, Array], window: tuple[float, float], tops: tuple[float, float | None]
) -> list[tuple[str, str]]:
    """Draw a slice; ``tops`` end the colour scales of the map and of the uncertainty."""
    top, spread = tops
    base = parts.get("scan", parts.get("reconstruction"))
    backdrop = grey(base, *window) if base is not None else heat(parts["map"], top)
    panels = []
    if "scan" in parts:
        panels.append(("Scan", backdrop))
    if "reconstruction" in parts:
        panels.append(("Healthy reconstruction", grey(parts["reconstruction"], *window)))
    panels.append(("Anomaly map", heat(parts["map"], top)))
    if "uncertainty" in parts and spread is not None:
        panels.append((f"Uncertainty, 0 to {spread:g}", heat(parts["uncertainty"], spread)))
    if "mask" in parts:
        panels.append(("Anomaly mask", overlay(backdrop, parts["mask"], MASK_COLOUR)))
    if "truth" in parts:
        title = "Truth" if parts["truth"].any() else "Truth: no lesion here"
        panels.append((title, overlay(backdrop, parts["truth"], TRUTH_COLOUR)))
    return [(title, data_uri(picture)) for title, picture in panels]

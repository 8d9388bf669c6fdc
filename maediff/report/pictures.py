"""Contents of the page for each scan: sheets of slices in three planes, the places to look at, and its findings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maediff.errors import InputError, MAEDiffError, one_line
from maediff.evaluation.evaluate import brain_of
from maediff.evaluation.outputs import OutputCase, read_anomaly_mask, read_shown_scan
from maediff.evaluation.reference import Reference
from maediff.findings import Component, Findings, locate, to_template
from maediff.report.figures import (
    PLANES,
    Frame,
    canonical_index,
    frame_around,
    grey,
    grey_window,
    high_value,
    most_anomalous_voxel,
    plane_axes,
    plane_slices,
    plane_spacing_mm,
    round_up,
    scale_top,
    voxel_from_canonical,
)
from maediff.report.sheets import LEVELS, Tiling, choose_slices, encode, labels, levels
from maediff.typing import Array, BoolArray
from maediff.volume import Volume, read_map, read_mask

logger = logging.getLogger(__name__)
Layers = Mapping[str, Array]

_TOTAL_BYTES = 22_000_000  # of all pictures of a report
_CARD_BYTES = (450_000, 6_000_000)  # of one scan's pictures, at least and at most
_BYTES_PER_PIXEL = 1.1  # of all layers together, measured on FLAIR at 1 mm
_MAX_KEYS = 12  # findings and lesions whose own slices are always there
_MAX_LISTED = 200  # findings on a card; the table beside the maps has all


@dataclass(frozen=True)
class Card:
    """Content of the page for one scan.

    Attributes:
        data: Plain values for JSON, from which the page draws.
        findings: Its findings; None without a mask.
        lesions: Lesions of the reference, each with the volume that the mask shares; None without a reference.
    """

    data: dict[str, Any]
    findings: Findings | None
    lesions: Findings | None


@dataclass(frozen=True)
class Gallery:
    """Pictures of a cohort.

    Attributes:
        cards: By case id.
        top: Upper end of the shared colour scale.
        uncertainty_top: Upper end of the colour scale of all uncertainties; None if there are none.
        notes: What could not be shown, by case id.
    """

    cards: dict[str, Card]
    top: float
    uncertainty_top: float | None
    notes: dict[str, str]

    @property
    def findings(self) -> dict[str, Findings]:
        """Findings of each case that has a mask."""
        return {name: card.findings for name, card in self.cards.items() if card.findings}

    @property
    def has_truth(self) -> bool:
        """Whether a reference is shown anywhere."""
        return any(card.lesions is not None for card in self.cards.values())


def build_gallery(cases: Sequence[OutputCase], reference: Reference | None, top: float | None = None) -> Gallery:
    """Render the pictures of finished cases.

    The first picture of each scan goes through its largest finding; buttons lead to the largest lesion of the
    reference, to the largest that the mask missed, and to the place of the highest map values.

    Args:
        cases: Finished cases.
        reference: Truths, if known.
        top: End of the colour scale; by default that of these cases.
    """
    top = colour_top(cases) if top is None else top
    spread = _uncertainty_top(cases)
    budget = min(max(_TOTAL_BYTES // max(len(cases), 1), _CARD_BYTES[0]), _CARD_BYTES[1])
    cards: dict[str, Card] = {}
    notes: dict[str, str] = {}
    for case in cases:
        try:
            cards[case.case], note = _card(case, reference, (top, spread), budget)
        except Exception as error:  # whatever is wrong with a scan must not stop the others
            logger.warning("no pictures of %s: %s", case.case, one_line(error))
            note = f"No pictures: {one_line(error)}"
        if note:
            notes[case.case] = note
    return Gallery(cards, top, spread, notes)


def colour_top(cases: Sequence[OutputCase]) -> float:
    """Return the upper end of the colour scale that all scans of a run share, in report, viewer and previews."""
    thresholds = [case.threshold for case in cases if case.threshold is not None]
    return scale_top([case.score for case in cases], max(thresholds, default=None))


def _uncertainty_top(cases: Sequence[OutputCase]) -> float | None:
    tops = []
    for case in cases:
        if "uncertainty" in case.files:
            try:
                spread = read_map(case.files["uncertainty"]).data
            except Exception:  # reported with the scan's other pictures
                continue
            tops.append(high_value(spread, spread > 0))
    return round_up(max(tops)) if tops else None


def _card(
    case: OutputCase, reference: Reference | None, tops: tuple[float, float | None], budget: int
) -> tuple[Card, str]:
    volume = read_map(case.files["anomaly"])
    layers, note = read_layers(case, volume, reference)
    findings, lesions = measure_findings(case, volume, layers)
    places = _places(layers["map"], volume.affine, findings, lesions)
    data = {
        "shape": _canonical_shape(volume),
        "toVoxel": voxel_from_canonical(volume.affine, volume.data.shape).tolist(),
        "affine": volume.affine.round(6).tolist(),
        "threshold": case.threshold,
        "maskMl": None if findings is None else findings.volume_ml,
        "above": _volumes_above(layers["map"], tops[0], volume.voxel_mm3 / 1000),
        "places": places,
        "findings": _listed(findings, volume),
        "lesions": _listed(lesions, volume),
    }
    keys = [place["at"] for place in places] + [item["at"] for item in data["findings"] or []]
    data["planes"] = _planes(layers, volume.affine, keys, tops, budget)
    return Card(data, findings, lesions), note


def measure_findings(case: OutputCase, volume: Volume, layers: Layers) -> tuple[Findings | None, Findings | None]:
    """Measure a scan's findings against the reference's lesions, and the lesions against the mask.

    Args:
        case: The scan.
        volume: Its map.
        layers: What :func:`read_layers` found.

    Returns:
        Findings, None without a mask; lesions, None without a reference.
    """
    values = layers["map"]
    inside = _brain(case, volume)
    placed = to_template(volume, case.image, case.sidecar)
    mask, truth = layers.get("mask"), layers.get("truth")
    findings = lesions = None
    if mask is not None:
        findings = locate(mask, inside, volume.affine, placed, values=values, truth=truth)
    if truth is not None:
        lesions = locate(truth, inside, volume.affine, placed, values=values, truth=mask)
    return findings, lesions


def _brain(case: OutputCase, volume: Volume) -> BoolArray:
    """Find the brain that a scan was scored in; if its mask is missing, use the voxels where the map is not zero."""
    try:
        return brain_of(case, None, volume)[0]
    except MAEDiffError:
        return np.asarray(volume.data > 0)


def read_layers(case: OutputCase, volume: Volume, reference: Reference | None) -> tuple[dict[str, Any], str]:
    """Read the available volumes (X, Y, Z) of a case, and describe problems.

    Args:
        case: A finished case.
        volume: Its map.
        reference: Truths, if known.

    Returns:
        Arrays by ``map``, ``scan``, ``reconstruction``, ``uncertainty``, ``mask`` and ``truth``; and a note or "".
    """
    layers: dict[str, Any] = {}
    scan, note = read_shown_scan(case, volume)
    notes = [note] if note else []
    if scan is not None:
        layers["scan"] = scan.data
    if "reconstruction" in case.files:
        layers["reconstruction"] = read_map(case.files["reconstruction"]).data
    layers["map"] = np.where(volume.data > 0, volume.data, 0)
    if "uncertainty" in case.files:
        layers["uncertainty"] = read_map(case.files["uncertainty"]).data
    mask = read_anomaly_mask(case, volume)
    if mask is not None:
        layers["mask"] = mask
    if reference is not None:
        try:
            label = reference.find(case).label
            layers["truth"] = np.zeros(volume.data.shape, bool) if label is None else read_mask(label, volume, "label")
        except InputError as error:
            notes.append(f"Truth not shown: {error}.")
    return layers, " ".join(notes)


def _places(values: Array, affine: Array, findings: Findings | None, lesions: Findings | None) -> list[dict[str, Any]]:
    """Return the places to look at first, by name and canonical voxel; the pictures start at the first."""

    def at(name: str, voxel: tuple[int, int, int]) -> dict[str, Any]:
        return {"name": name, "at": list(canonical_index(voxel, affine, values.shape))}

    found = []
    if findings and findings.components:
        found.append(at(_sized("Largest finding", findings.components[0]), findings.components[0].centre_voxel))
    if lesions and lesions.components:
        found.append(at(_sized("Largest lesion", lesions.components[0]), lesions.components[0].centre_voxel))
        missed = next((part for part in lesions.components if part.truth_ml == 0), None)
        if missed:
            found.append(at(_sized("Largest missed lesion", missed), missed.centre_voxel))
    return [*found, at("Highest values", most_anomalous_voxel(values, affine))]


def _sized(name: str, part: Component) -> str:
    return f"{name}, {part.volume_ml:.2g} ml" if part.volume_ml < 1 else f"{name}, {part.volume_ml:.1f} ml"


def _listed(found: Findings | None, volume: Volume) -> list[dict[str, Any]] | None:
    if found is None:
        return None
    return [
        {
            "n": part.number,
            "ml": part.volume_ml,
            "peak": part.peak,
            "at": list(canonical_index(part.centre_voxel, volume.affine, volume.data.shape)),
            "voxel": list(part.centre_voxel),
            "mm": list(part.centre_mm),
            "side": part.side,
            "lobes": ", ".join(
                f"{lobe} {100 * share:.0f} %" for k, (lobe, share) in enumerate(part.lobes) if not k or share >= 0.1
            ),
            "share": part.truth_share,
        }
        for part in found.components[:_MAX_LISTED]
    ]


def _canonical_shape(volume: Volume) -> list[int]:
    last = canonical_index(tuple(n - 1 for n in volume.data.shape), volume.affine, volume.data.shape)
    first = canonical_index((0, 0, 0), volume.affine, volume.data.shape)
    return [max(a, b) + 1 for a, b in zip(first, last, strict=True)]


def _volumes_above(values: Array, top: float, voxel_ml: float) -> list[float]:
    """Volume of the map above each step of the threshold slider, ml."""
    counts = np.bincount(levels(values, top).ravel(), minlength=LEVELS + 1)
    above = counts.sum() - np.cumsum(counts)
    return [float(f"{count * voxel_ml:.5g}") for count in above[:LEVELS]]


@dataclass(frozen=True)
class _Pictures:
    """How the pictures of a scan are drawn.

    Attributes:
        layers: Arrays (X, Y, Z) by name.
        affine: Voxel to RAS mm (4, 4).
        window: Intensities that are black and white.
        tops: Ends of the colour scales of the map and of the uncertainty.
    """

    layers: Layers
    affine: Array
    window: tuple[float, float]
    tops: tuple[float, float | None]

    def plane(self, name: str, frame: Frame, keys: Sequence[int], count: int) -> dict[str, Any]:
        """Draw the sheets of a plane: about ``count`` slices, those in ``keys`` among them."""
        planes = {layer: plane_slices(data, self.affine, name) for layer, data in self.layers.items()}
        inside = np.flatnonzero(planes["map"].any(axis=(1, 2)))
        first, last = (int(inside[0]), int(inside[-1])) if inside.size else (0, frame.n_slices - 1)
        chosen = choose_slices(first, last, keys[:_MAX_KEYS], count)
        cut = {layer: [frame.cut(data, index) for index in chosen] for layer, data in planes.items()}
        height, width = cut["map"][0].shape
        tiling = Tiling.of(len(chosen), height, width)
        mm = plane_spacing_mm(self.affine, name)
        return {
            "slices": chosen,
            "across": tiling.across,
            "size": [height, width],
            "origin": [frame.rows.start, frame.columns.start],
            "step": frame.step,
            "mm": [mm[0] * frame.step, mm[1] * frame.step],
            "sheets": self._sheets(cut, tiling),
        }

    def _sheets(self, cut: Mapping[str, Sequence[Array]], tiling: Tiling) -> dict[str, str]:
        sheets = {
            name: encode(tiling.tile([grey(part, *self.window)[..., 0] for part in cut[name]]), lossless=False)
            for name in ("scan", "reconstruction")
            if name in cut
        }
        for name, top in zip(("map", "uncertainty"), self.tops, strict=True):
            if name in cut and top:
                sheets[name] = encode(tiling.tile([levels(part, top) for part in cut[name]]), lossless=True)
        if "mask" in cut or "truth" in cut:
            empty = [np.zeros((tiling.height, tiling.width), bool)] * len(cut["map"])
            pairs = zip(cut.get("mask", empty), cut.get("truth", empty), strict=True)
            sheets["labels"] = encode(tiling.tile([labels(*pair) for pair in pairs]), lossless=True)
        return sheets


def _planes(
    layers: Layers,
    affine: Array,
    keys: Sequence[Sequence[int]],
    tops: tuple[float, float | None],
    budget: int,
) -> dict[str, Any]:
    brain = layers["map"] > 0
    around = brain | layers["truth"] if "truth" in layers else brain
    shown = layers.get("scan", layers.get("reconstruction"))
    window = (0.0, tops[0]) if shown is None else grey_window(shown, brain)
    frames = {
        plane: frame_around(plane_slices(around, affine, plane), 0, plane_spacing_mm(affine, plane)) for plane in PLANES
    }
    pixels = sum(frame.height * frame.width for frame in frames.values())
    count = max(3, round(budget / _BYTES_PER_PIXEL / max(pixels, 1)))
    pictures = _Pictures(layers, affine, window, tops)
    return {
        plane: pictures.plane(plane, frame, [key[plane_axes(plane)[0]] for key in keys], count)
        for plane, frame in frames.items()
    }

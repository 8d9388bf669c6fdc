"""What can be measured of a scan, and of its map, without knowing what it shows: plain numbers, comparable over scans.

No measure assumes a contrast: T1, T2 and FLAIR brains differ in ``tissues`` and ``histogram``, not in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import permutations, product
from typing import Any

import numpy as np

from maediff.errors import InputError
from maediff.inputcheck.template import Boxed, boxed, template
from maediff.typing import Array, BoolArray

UPRIGHT = "upright"
_BINS = np.linspace(-1, 1.5, 17)  # working units
_LAG_MM = 4.0  # tissue is alike over this distance, noise is not, also where it was interpolated
_MIN_FLIPPED, _MARGIN_FLIPPED = 0.7, 0.05  # correlations; real brains upright: 0.79 and more, flipped ones 0.82 at most
_MIN_TURNED, _MARGIN_TURNED = 0.8, 0.06
_NEIGHBOURS = 4  # voxels of a third difference
_MIN_CELLS = 100  # of the box, to fit tissues


@dataclass(frozen=True)
class ScanMeasures:
    """Measures of one scan on its working grid; intensities in working units.

    Attributes:
        brain_ml: Volume of the brain mask, ml.
        sides_mm: Sides of its bounding box, mm: right, anterior, superior.
        symmetry: Dice of the mask with its left-right mirror image.
        placement: How the brain lies compared with the template: "upright", or what fits better.
        shape: Correlation of the brain's shape with the template's, both stretched to one box, -1 to 1.
        shape_elsewhere: The best such correlation in another placement.
        structure: Share of the intensities' variance that the template's tissues explain, 0 to 1.
        coherence: Correlation of voxels a few mm apart within slices as they were cut; near 0 for noise.
        noise: Spread of the differences of neighbours that neighbours do not explain, a measure of noise.
        dark_share: Share of the brain at the lowest intensity.
        side_gap: Mean intensity right less left.
        tissues: Mean intensity where the template has fluid, grey and white matter.
        histogram: Share of the brain in each of 16 bins from -1 to 1.5.
    """

    brain_ml: float
    sides_mm: tuple[float, float, float]
    symmetry: float
    placement: str
    shape: float
    shape_elsewhere: float
    structure: float
    coherence: float
    noise: float
    dark_share: float
    side_gap: float
    tissues: tuple[float, float, float]
    histogram: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScanMeasures:
        """Rebuild from JSON; raises KeyError, TypeError or ValueError for what is no measure."""
        found: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        for name in ("sides_mm", "tissues", "histogram"):
            found[name] = tuple(float(value) for value in found[name])
        checked: dict[str, Any] = {k: v if isinstance(v, (tuple, str)) else float(v) for k, v in found.items()}
        return cls(**checked)


@dataclass(frozen=True)
class MapMeasures:
    """Measures of an anomaly map inside the brain, in the map's units.

    Attributes:
        median: Half of the brain lies above it.
        spread: From the 10th to the 90th percentile.
        flagged_share: Share of the brain above the threshold; None without one.
    """

    median: float
    spread: float
    flagged_share: float | None = None

    @classmethod
    def of(cls, values: Array, brain: BoolArray, threshold: float | None) -> MapMeasures:
        """Measure a map (X, Y, Z) inside a brain that is not empty."""
        inside = values[brain]
        low, middle, high = (float(q) for q in np.percentile(inside, [10, 50, 90]))
        return cls(middle, high - low, None if threshold is None else float(np.mean(inside > threshold)))


@dataclass(frozen=True)
class HealthyScan:
    """Measurements of one healthy scan that calibration stores."""

    scan: ScanMeasures
    map: MapMeasures

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, rounded to what matters."""
        return {name: _rounded(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HealthyScan:
        """Rebuild what :meth:`to_dict` returned; errors as :meth:`ScanMeasures.from_dict`."""
        found = values["map"]
        return cls(ScanMeasures.from_dict(values["scan"]), MapMeasures(float(found["median"]), float(found["spread"])))


def measure_scan(
    slices: Array, mask: BoolArray, spacing_mm: tuple[float, float, float], axes: Sequence[int] = (2, 0, 1)
) -> ScanMeasures:
    """Measure a scan.

    Args:
        slices: Working intensities (S, H, W); all axes run to the right, to the front or upwards.
        mask: Brain (S, H, W), not empty.
        spacing_mm: Spacing along H, W and S.
        axes: Indices into (H, W, S) of the axes that run upwards, to the right and to the front, see
            :func:`maediff.working.hemispheres.axial_axes`; by default those of axial slices.

    Raises:
        InputError: The mask is empty.
    """
    if not mask.any():
        raise InputError("the brain mask is empty on the working grid: the brain is smaller than its pixels")
    values = slices[mask]
    z, x, y = axes
    brain, image = (np.moveaxis(each, 0, 2).transpose(x, y, z) for each in (mask, slices))
    found = boxed(brain, image[None])
    placement, shape, elsewhere = _placement(found.share, template().share)
    tissues, structure = _tissues(found, template())
    half = len(found.share) // 2
    left, right = (found.values[0][part][found.share[part] > 0.5] for part in (slice(half), slice(half, None)))
    coherence, noise = _texture(slices, mask, spacing_mm)
    return ScanMeasures(
        brain_ml=float(mask.sum() * np.prod(spacing_mm) / 1000),
        sides_mm=tuple(float(n * spacing_mm[axis]) for n, axis in zip(found.sides, (x, y, z), strict=True)),  # type: ignore[arg-type]
        symmetry=float(2 * np.minimum(found.share, found.share[::-1]).sum() / (2 * found.share.sum())),
        placement=placement,
        shape=shape,
        shape_elsewhere=elsewhere,
        structure=structure,
        coherence=coherence,
        noise=noise,
        dark_share=float(np.mean(values <= values.min() + 1e-3)),
        side_gap=float(right.mean() - left.mean()) if left.size and right.size else 0.0,
        tissues=tissues,
        histogram=tuple((np.histogram(values.clip(-1, 1.5), _BINS)[0] / values.size).tolist()),
    )


def _placement(share: Array, reference: Array) -> tuple[str, float, float]:
    """Compare a brain's shape with the template's in every placement of its axes; left and right look alike.

    Masks that reach far down the neck are as high as a brain is long, so that exchanged axes must fit far better before
    they count; flips must fit better by a margin.

    Returns:
        How the brain lies, the correlation upright, and the best one otherwise.
    """
    upright, flips, turns = 0.0, (-1.0, ""), (-1.0, "")
    for axes in permutations(range(3)):
        for front, top in product((1, -1), (1, -1)):
            fit = _correlation(np.transpose(share, axes)[:, ::front, ::top], reference)
            if axes != (0, 1, 2):
                turns = max(turns, (fit, "turned onto another side"))
            elif front == top == 1:
                upright = fit
            else:
                flips = max(flips, (fit, _words(front, top)))
    name = UPRIGHT
    if turns[0] >= _MIN_TURNED and turns[0] > max(flips[0], upright) + _MARGIN_TURNED:
        name = turns[1]
    elif flips[0] >= _MIN_FLIPPED and flips[0] > upright + _MARGIN_FLIPPED:
        name = flips[1]
    return name, upright, max(flips[0], turns[0])


def _correlation(one: Array, other: Array) -> float:
    """Correlate two arrays; 0 if one of them is constant."""
    first, second = one.ravel() - one.mean(), other.ravel() - other.mean()
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size > 0 else 0.0


def _words(front: int, top: int) -> str:
    if front == top:
        return "upside down and back to front"
    return "upside down" if top == -1 else "back to front"


def _tissues(found: Boxed, reference: Boxed) -> tuple[tuple[float, float, float], float]:
    """Fit intensities by the template's tissues: their means, and the share of variance explained."""
    both = (found.share > 0.5) & (reference.share > 0.5)
    grey, white = (values[both] for values in reference.values)
    shares = np.stack([(1 - grey - white).clip(0), grey, white], 1)
    values = found.values[0][both]
    if values.size < _MIN_CELLS or np.ptp(values) == 0:
        return (0.0, 0.0, 0.0), 0.0
    means, *_ = np.linalg.lstsq(shares, values, rcond=None)
    rest = values - shares @ means
    explained = 1 - float(rest.var() / values.var())
    fluid, first, second = (float(value) for value in means)
    return (fluid, first, second), max(0.0, explained)


def _texture(slices: Array, mask: BoolArray, spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    """Correlate voxels some mm apart within slices, and estimate noise from third differences of neighbours."""
    variance = float(slices[mask].var())
    if variance == 0:
        return 0.0, 0.0
    squares, rough = [], []
    for axis, step in ((1, spacing_mm[0]), (2, spacing_mm[1])):
        lag = max(2, round(_LAG_MM / step))
        near = np.take(mask, range(lag, mask.shape[axis]), axis) & np.take(mask, range(mask.shape[axis] - lag), axis)
        gap = np.take(slices, range(lag, mask.shape[axis]), axis) - np.take(slices, range(mask.shape[axis] - lag), axis)
        squares.append(gap[near])
        if mask.shape[axis] > _NEIGHBOURS:
            inside = np.lib.stride_tricks.sliding_window_view(mask, _NEIGHBOURS, axis=axis).all(-1)
            rough.append(np.diff(slices, _NEIGHBOURS - 1, axis=axis)[inside])
    change = np.concatenate(squares)
    fine = np.concatenate(rough) if rough else np.zeros(0)
    coherence = 1 - float((change.astype(np.float64) ** 2).mean()) / (2 * variance) if change.size else 0.0
    # Noise of unit variance has third differences of variance 1 + 9 + 9 + 1.
    return coherence, float(1.4826 * np.median(np.abs(fine)) / np.sqrt(20)) if fine.size else 0.0


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, tuple):
            return [short(item) for item in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {name: short(value) for name, value in values.items()}

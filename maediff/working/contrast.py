"""Read from the image what kind of contrast a scan has: T1-like, T2-like, FLAIR-like, or other.

Fluid lies at the rim of the brain and in its middle, cortex beneath the rim, white matter deeper, and white matter is
smooth. Depth and smoothness of dark, grey and bright parts of the brain, and the shape of its histogram, therefore
identify the sequence: fluid is bright on T2 and dark on T1 and FLAIR; white matter is brighter than cortex on T1 and as
bright or darker on FLAIR. A small classifier on such features was fitted on synthetic heads alone
(``python -m benchmarks.release.contrast_reader``).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

from maediff.errors import InputError
from maediff.typing import Array, BoolArray, DoubleArray

ContrastKind = Literal["t1", "t2", "flair", "other"]
KINDS: tuple[ContrastKind, ...] = ("t1", "t2", "flair")
LESION_SIGNS: dict[ContrastKind, Literal["bright", "dark"]] = {"t1": "dark", "t2": "bright", "flair": "bright"}
"""How lesions differ from healthy tissue on each contrast."""
COEFFICIENTS = Path(__file__).with_name("contrast.json")
MIN_PROBABILITY = 0.65
"""Below this the contrast counts as other: no sign is safer than a wrong one."""
MIN_DARK = 0.8
"""Probability of T1 from which on only what is dark counts. A tumour makes FLAIR look like T1, and would be hidden."""

_PIXEL_MM = 3.0
_BINS = 10  # of intensity, equally full
_HISTOGRAM = (2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98)
_BANDS = 5  # of depth, equally full
_AROUND = 2.0  # reach of the mean around a pixel, standard deviation in pixels
_TINY = 1e-9
_FAR = 3.0  # standard deviations: no feature alone decides
_MIN_SHARE = 0.5  # slices with less brain than this share of the largest have no deep white matter


class ContrastReading(NamedTuple):
    """Kind of contrast of a scan.

    Attributes:
        kind: The kind; "other" if no kind is probable enough.
        probabilities: Probability of each kind except "other".
    """

    kind: ContrastKind
    probabilities: dict[ContrastKind, float]

    @property
    def lesion_sign(self) -> Literal["abs", "bright", "dark"]:
        """How lesions differ from healthy tissue: dark on T1, bright on T2 and FLAIR; abs if that is unsure.

        A wrong sign hides all lesions; no sign only adds false alarms.

        Example:
            >>> ContrastReading("other", {"t1": 0.1, "t2": 0.5, "flair": 0.4}).lesion_sign
            'bright'
        """
        dark = self.probabilities.get("t1", 0.0)
        if dark >= MIN_DARK:
            return "dark"
        return "bright" if 1 - dark >= MIN_PROBABILITY else "abs"

    def among(self, sign: Literal["abs", "bright", "dark"]) -> str:
        """Return the likeliest kind whose lesions have the given sign; empty for abs, which no kind has.

        Example:
            >>> ContrastReading("t1", {"t1": 0.7, "t2": 0.2, "flair": 0.1}).among("bright")
            't2'
        """
        of: list[ContrastKind] = [kind for kind, own in LESION_SIGNS.items() if own == sign]
        return max(of, key=lambda kind: self.probabilities.get(kind, 0.0), default="")


def read_contrast(data: Array, brain: BoolArray, spacing_mm: tuple[float, float, float]) -> ContrastReading:
    """Classify the contrast of a scan.

    Depth is measured within slices, across the axis with the largest spacing (the shortest axis of an isotropic scan):
    a wrong slice distance in the header does no harm.

    Args:
        data: Intensities (X, Y, Z).
        brain: Brain (X, Y, Z), not empty.
        spacing_mm: Voxel size, mm.
    """
    fit = _fit()
    values = np.concatenate([features(data, brain, spacing_mm), [1.0]])
    values[:-1] = np.clip((values[:-1] - fit["mean"]) / fit["spread"], -_FAR, _FAR)
    hidden = np.tanh(fit["hidden"] @ values)
    scores = fit["output"] @ np.concatenate([hidden, [1.0]])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    probabilities = {kind: round(float(share), 4) for kind, share in zip(KINDS, shares, strict=True)}
    best = KINDS[int(shares.argmax())]
    return ContrastReading(best if shares.max() >= MIN_PROBABILITY else "other", probabilities)


def features(data: Array, brain: BoolArray, spacing_mm: tuple[float, float, float]) -> DoubleArray:
    """Describe a brain by its intensities, and by their differences from the surroundings.

    Each is described by a histogram, and by how deep it lies and how smooth it is in ten bins: white matter is deep and
    smooth at any brightness, cortex is shallow, and fluid is both. Differences from the surroundings know neither bias
    field nor large tumours: fluid in sulci and ventricles is a few dark or bright spots in flat tissue on FLAIR and T2,
    where cortex as well is dark on T1.

    Args:
        data: Intensities (X, Y, Z).
        brain: Brain (X, Y, Z), not empty.
        spacing_mm: Voxel size, mm.

    Returns:
        (F,) features; they do not change with scale and offset of the intensities.
    """
    image, mask = _slices(data, brain, spacing_mm)
    if not mask.any():
        raise InputError(f"the brain is smaller than {_PIXEL_MM:g} mm; check its mask and the spacing in the header")
    depth = np.concatenate([ndimage.distance_transform_edt(part)[part] for part in mask])
    return np.concatenate([_of_intensity(image, mask, depth), _of_difference(image, mask, depth)])


def _of_intensity(image: Array, mask: BoolArray, depth: Array) -> DoubleArray:
    """Describe intensities, (43,), on the scale from what is dark to the middle, which tumours hardly change."""
    values = image[mask]
    histogram = np.clip((np.percentile(values, _HISTOGRAM) - np.median(values)) / _dark_range(values), -3, 4)
    parts = np.array_split(np.argsort(values, kind="stable"), _BINS)
    inner = depth > np.median(depth)  # where the rim of the mask is far
    filled = np.where(mask, image, np.median(values))  # values outside carry no information
    slopes = [ndimage.gaussian_filter1d(filled, 0.7, axis=axis, order=1)[mask] for axis in (1, 2)]
    slope = np.hypot(*slopes)
    rough = np.array([np.median(slope[part][inner[part]]) if inner[part].any() else 0.0 for part in parts])
    rough /= max(float(rough.mean()), _TINY)
    share = [inner[part].mean() for part in parts]
    found: DoubleArray = np.concatenate([histogram, _deep(depth, parts), rough, share])
    return found


def _of_difference(image: Array, mask: BoolArray, depth: Array) -> DoubleArray:
    """Describe the differences from the mean around, (54,): all, the inner half, and five bands of depth."""
    around = (0.0, _AROUND, _AROUND)
    mean = ndimage.gaussian_filter(np.where(mask, image, 0), around)
    mean /= np.maximum(ndimage.gaussian_filter(mask.astype(np.float32), around), 1e-3)
    values = (image - mean)[mask]
    inner = values[depth > np.median(depth)] if np.ptp(depth) else values
    width, inner_width, dark = _width(values), _width(inner), _dark_range(image[mask])
    widths = np.clip([width / dark, inner_width / dark, inner_width / width], 0, 5)
    edges = np.quantile(depth, np.linspace(0, 1, _BANDS + 1)[1:-1])
    band = np.searchsorted(edges, depth, side="right")
    bands = [
        np.percentile(values[band == index], at) / width if (band == index).any() else 0.0
        for at in (50, 10, 90)
        for index in range(_BANDS)
    ]
    parts = np.array_split(np.argsort(values, kind="stable"), _BINS)
    histograms = np.percentile(values, _HISTOGRAM) / width, np.percentile(inner, _HISTOGRAM) / inner_width
    found: DoubleArray = np.concatenate([*histograms, widths, bands, _deep(depth, parts)])
    return found


def _deep(depth: Array, parts: list[Array]) -> list[float]:
    """Compute the mean depth of each part of a brain, on the scale of the mean of all."""
    return [float(depth[part].mean() / depth.mean()) for part in parts]


def _dark_range(values: Array) -> float:
    """Compute the distance from what is dark in a brain to its middle."""
    return max(float(np.median(values) - np.percentile(values, 3)), _TINY)


def _width(values: Array) -> float:
    return max(float(np.subtract(*np.percentile(values, (90, 10)))), _TINY)


def _slices(data: Array, brain: BoolArray, spacing_mm: tuple[float, float, float]) -> tuple[Array, BoolArray]:
    """Turn a scan into slices (S, H, W) with pixels of 3 mm, of those that hold much brain."""
    axis = _slice_axis(brain.shape, spacing_mm)
    mask = np.moveaxis(brain, axis, 0)
    image = np.moveaxis(np.asarray(data, np.float32), axis, 0)
    area = mask.sum(axis=(1, 2))
    chosen = area >= _MIN_SHARE * area.max()
    sides = [spacing_mm[a] for a in range(3) if a != axis]
    blur = (0, *(0.4 * _PIXEL_MM / side if side < 0.8 * _PIXEL_MM else 0.0 for side in sides))
    fewer = (1, *(side / _PIXEL_MM for side in sides))
    share = _shrunk(mask[chosen].astype(np.float32), blur, fewer)
    values = _shrunk(np.where(mask[chosen], image[chosen], 0), blur, fewer)
    return np.asarray(values / np.maximum(share, 1e-3)), share >= 0.5


def _shrunk(image: Array, blur: tuple[float, ...], fewer: tuple[float, ...]) -> Array:
    result: Array = ndimage.zoom(ndimage.gaussian_filter(image, blur), fewer, order=1)
    return result


def _slice_axis(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> int:
    """Find the axis across slices: that of the largest spacing, else the one with the fewest voxels."""
    return max(range(3), key=lambda axis: (round(spacing_mm[axis], 2), -shape[axis]))


@lru_cache(maxsize=1)
def _fit() -> dict[str, Array]:
    """Load the fitted coefficients."""
    return {name: np.array(value) for name, value in json.loads(COEFFICIENTS.read_text())["fit"].items()}

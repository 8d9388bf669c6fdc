"""Synthetic whole heads of any contrast with the truth of where the brain is, drawn on the fly from label maps.

SynthStrip's idea (Hoopes et al., NeuroImage 2022): a network that never sees the same contrast twice learns shape. A
sample is a head that is moved, bent and cut to a field of view, gets an intensity per structure, and then what
scanners do: thick slices, blur, bias field, noise, ghosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from maediff.errors import InputError
from maediff.extraction.scale import normalise
from maediff.heads.contrast import Kind, draw_contrast
from maediff.heads.labels import CSF, TISSUES, Head, class_index, indices, outside_brain
from maediff.typing import BoolArray, FloatMap
from maediff.working.components import bounding_box, largest_component

_BELOW_CEREBELLUM_MM = 3  # where the brain stem ends and the spinal cord begins, as in the masks of IXI
_FOLD_MM = 4.0
_CEREBELLUM = frozenset({"cerebellar white matter", "cerebellar cortex"})
_SOFT_TISSUE = class_index("soft tissue")
_SULCAL_FLUID = class_index("sulcal CSF")
_CORTEX, _WHITE = class_index("cortex"), class_index("white matter")
_FLUID = indices(CSF)
_SOLID = [index for index in range(len(TISSUES)) if index not in {*outside_brain(), *_FLUID}]


@dataclass(frozen=True)
class TrueBrain:
    """A head whose brain is known.

    Attributes:
        classes: Tissue class of each voxel (X, Y, Z), 1 mm, RAS.
        brain: Truth (X, Y, Z): brain with the fluid around it, down to the foramen magnum.
        centre: Middle of the brain, voxels.
    """

    classes: npt.NDArray[np.uint8]
    brain: BoolArray
    centre: FloatMap


class Sample(NamedTuple):
    """A synthetic scan (X, Y, Z), 0 to 1, with the share of brain and of its solid tissue in each voxel."""

    image: FloatMap
    brain: FloatMap
    tissue: FloatMap


def true_brain(head: Head) -> TrueBrain:
    """Mark the brain of a label map: all that the skull encloses, without the spinal canal.

    Args:
        head: The label map as tissue classes.
    """
    inside = ~np.isin(head.classes, outside_brain())
    cerebellum = np.isin(head.classes, indices(_CEREBELLUM))
    floor = int(np.flatnonzero(cerebellum.any(axis=(0, 1)))[0]) - _BELOW_CEREBELLUM_MM
    inside[:, :, : max(0, floor - int(_FOLD_MM))] = False
    inside = largest_component(inside)
    box = bounding_box(inside)
    if box is None:
        raise InputError(f"{head.name} holds no brain above its cerebellum; give a label map of a whole head")
    brain = np.zeros_like(inside)
    brain[box] = _closed(inside[box], _FOLD_MM)
    brain[:, :, : max(0, floor)] = False
    brain[box] = ndimage.gaussian_filter(brain[box].astype(np.float32), 1.0) > 0.5
    centre = np.array([(side.start + side.stop - 1) / 2 for side in box], np.float32)
    return TrueBrain(head.classes, brain, centre)


def _closed(mask: BoolArray, radius: float) -> BoolArray:
    """Close folds narrower than twice a radius: falx and tentorium lie within the brain."""
    padded = np.pad(mask, int(radius) + 1)
    near = ndimage.distance_transform_edt(~padded) <= radius
    inner = (slice(int(radius) + 1, -int(radius) - 1),) * 3
    result: BoolArray = (ndimage.distance_transform_edt(near) > radius)[inner]
    return result


def draw(
    head: TrueBrain,
    rng: np.random.Generator,
    spacing_mm: float,
    shape: tuple[int, int, int],
    kind: Kind | None = None,
) -> Sample:
    """Draw a synthetic scan of a head.

    Args:
        head: The head.
        rng: Source of all chance.
        spacing_mm: Voxel size of the sample.
        shape: Its shape.
        kind: Kind of contrast; any if None. If it is given, as for the contrast reader, tissues, tumours and coils vary
            more, so that the kind is known in scans that are hard to read.
    """
    coordinates = _places(head, rng, spacing_mm, shape)
    means, spreads = _contrast(rng, kind)
    image, spread, share, outer, fluid = (np.zeros(shape, np.float32) for _ in range(5))
    jitters = _JITTERS * spacing_mm
    for jitter in jitters:  # several points per voxel: rims are mixtures
        index, valid = _lookup(coordinates, head.classes.shape, jitter)
        classes = np.where(valid, head.classes.ravel()[index], 0)
        image += means[classes]
        spread += spreads[classes]
        share += head.brain.ravel()[index] & valid
        outer += classes == _SOFT_TISSUE
        fluid += classes == _SULCAL_FLUID
    for values in (image, spread, share, outer, fluid):
        np.divide(values, len(jitters), out=values)
    if rng.random() < 0.7:  # muscle and fat share a label
        second = float(np.clip(rng.normal(means[_SOFT_TISSUE], 0.35), 0, 1.2))
        patches = _smooth_field(rng, shape, rng.uniform(8, 25) / spacing_mm) > rng.normal(0, 0.7)
        image += outer * patches * (second - means[_SOFT_TISSUE])
    if kind is None and rng.random() < 0.6:
        _muscle_and_fat(image, outer, rng, spacing_mm)
    if rng.random() < 0.5:
        _lesions(image, share, rng, spacing_mm, kind)
    if kind is not None and rng.random() < _TUMOUR_SHARES.get(kind, 0.0):
        _large_tumour(image, share, rng, spacing_mm, kind)
    image += spread * (
        0.6 * rng.standard_normal(shape, dtype=np.float32)
        + 0.8 * _smooth_field(rng, shape, rng.uniform(1.5, 4)).astype(np.float32)
    )
    if rng.random() < 0.15:
        _strip(image, share, rng, spacing_mm)
    if kind is not None and rng.random() < 0.6:
        _coil(image, rng)
    image = _scanner(image, rng, spacing_mm)
    seen = _field_of_view(shape, rng)
    scan = normalise(image * seen, float(rng.uniform(98.5, 99.9)))
    return Sample(scan, share * seen, np.clip(share - fluid, 0, 1) * seen)


_JITTERS = 0.25 * np.array([(-1, -1, -1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)], np.float32)


def _places(head: TrueBrain, rng: np.random.Generator, spacing_mm: float, shape: tuple[int, int, int]) -> FloatMap:
    """Say which place of the head each voxel shows: (3, X, Y, Z), voxels of the label map."""
    angles = np.deg2rad(rng.normal(0, (10, 6, 8)) * (2.0 if rng.random() < 0.15 else 1.0))
    rotation = _rotation(angles)
    scales = np.exp(rng.normal(0, 0.06) + rng.normal(0, 0.04, 3))
    if rng.random() < 0.3:  # thickness of slices that is known roughly
        scales[2] *= np.exp(rng.uniform(-0.4, 0.4))
    shears = np.eye(3) + rng.normal(0, 0.03, (3, 3))
    # Rotation first (in the head), then sizes along the axes of the scan, as a wrong slice distance makes them.
    linear = (rotation @ shears @ np.diag(scales) * spacing_mm).astype(np.float32)
    linear[0] *= rng.choice((-1, 1))
    offset = rng.normal(0, (6, 10, 14)) / spacing_mm
    axes = [np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2 + o) for n, o in zip(shape, offset, strict=True)]
    places = np.empty((3, *shape), np.float32)
    for row in range(3):
        places[row] = (
            linear[row, 0] * axes[0][:, None, None]
            + linear[row, 1] * axes[1][None, :, None]
            + (linear[row, 2] * axes[2] + head.centre[row])[None, None, :]
        )
    knots = int(rng.integers(4, 9))
    bend = torch.from_numpy(rng.normal(0, rng.uniform(0, 5), (1, 3, knots, knots, knots)).astype(np.float32))
    places += F.interpolate(bend, shape, mode="trilinear", align_corners=True)[0].numpy()
    return places


def _rotation(angles: npt.NDArray[Any]) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def _lookup(
    places: FloatMap, shape: tuple[int, ...], jitter: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int32], BoolArray]:
    """Find the nearest voxel of each place, as an index into the flat map, and whether it lies inside."""
    index = np.zeros(places.shape[1:], np.int32)
    valid = np.ones(places.shape[1:], bool)
    for axis, length in enumerate(shape):
        voxel = (places[axis] + np.float32(jitter[axis] + 0.5)).astype(np.int32)
        valid &= (voxel >= 0) & (voxel < length)
        index *= length
        index += np.clip(voxel, 0, length - 1)
    return index, valid


def _contrast(rng: np.random.Generator, kind: Kind | None) -> tuple[FloatMap, FloatMap]:
    """Draw mean and spread of the intensity of each tissue class, (K,) each; at times fat is suppressed."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    contrast = draw_contrast(generator, kind)
    means = contrast.signal.numpy().clip(0, 1.5).astype(np.float32)
    if rng.random() < 0.3:
        means[outside_brain()] *= rng.uniform(0.1, 0.8)
    if kind is not None and kind in _FLATTEST:
        _flatten(means, rng, kind)
    return means, contrast.spread.numpy().astype(np.float32)


def _flatten(means: FloatMap, rng: np.random.Generator, kind: Kind) -> None:
    """Draw grey and white matter together, on FLAIR at times past each other, and leave some signal in its fluid."""
    if rng.random() < 0.5:
        middle = 0.5 * (means[_CORTEX] + means[_WHITE])
        means[_SOLID] += (middle - means[_SOLID]) * np.float32(rng.uniform(0, _FLATTEST[kind]))
    if kind == "flair" and rng.random() < 0.5:
        means[_FLUID] += np.float32(rng.uniform(0, 0.15))


_FLATTEST: dict[Kind | None, float] = {"t1": 0.5, "t2": 0.6, "flair": 1.25}
"""Largest share of the difference between grey and white matter that is taken away; old FLAIR scans have none left."""


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatMap:
    """Draw a smooth random field with mean 0 and spread about 1.

    Args:
        rng: Source of chance.
        shape: Its shape.
        scale: Size of its patches, voxels.
    """
    coarse = [max(2, round(n / scale) + 1) for n in shape]
    noise = torch.from_numpy(rng.standard_normal((1, 1, *coarse), dtype=np.float32))
    field: FloatMap = F.interpolate(noise, shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    field *= np.float32(1.6)  # interpolation between knots lowers the spread
    return field


def _muscle_and_fat(image: FloatMap, outer: FloatMap, rng: np.random.Generator, spacing_mm: float) -> None:
    """Lay fat between muscles of some millimetres, up to brighter than any brain, as the neck behind it has them."""
    fine, coarse = (_smooth_field(rng, image.shape, rng.uniform(*side) / spacing_mm) for side in ((3, 9), (15, 40)))
    fat = 1 / (1 + np.exp(-rng.uniform(2, 8) * (fine + rng.uniform(0, 1) * coarse - rng.normal(0, 0.6))))
    dark, bright = np.sort(rng.uniform(0, 1.4, 2))
    image += rng.uniform(0.5, 1) * outer * (dark + (bright - dark) * fat - image)


def _lesions(image: FloatMap, share: FloatMap, rng: np.random.Generator, spacing_mm: float, kind: Kind | None) -> None:
    """Put bright or dark blobs into the brain, up to its rim, so that tumours count as brain."""
    inside = np.argwhere(share > 0.5)
    if len(inside) == 0:
        return
    for _ in range(int(rng.integers(1, 4))):
        centre = inside[rng.integers(len(inside))]
        radius = rng.uniform(5, 35) / spacing_mm
        box = tuple(
            slice(max(0, int(c - 1.5 * radius)), min(n, int(c + 1.5 * radius) + 1))
            for c, n in zip(centre, share.shape, strict=True)
        )
        region = image[box]
        distance = _from_centre(box, centre, radius, rng) + 0.25 * _smooth_field(
            rng, region.shape, max(2.0, radius / 2)
        )
        weight = np.clip((1 - distance) * rng.uniform(1.5, 8), 0, 1) * share[box] * rng.uniform(0.4, 1)
        value = rng.uniform(*_LESIONS.get(kind, (0.0, 1.2)))
        region += (weight * (value - region)).astype(np.float32)


def _from_centre(
    box: tuple[slice, ...], centre: npt.NDArray[np.int64], radius: float, rng: np.random.Generator
) -> FloatMap:
    """Measure the distance from the centre of an ellipsoid of random axes in a part of a scan; 1 is its surface."""
    stretch = np.exp(rng.normal(0, 0.25, 3))
    distance = sum(((a - c) * s) ** 2 for a, c, s in zip(np.ogrid[box], centre, stretch, strict=True)) ** 0.5 / radius
    return np.asarray(distance, np.float32)


_LESIONS: dict[Kind | None, tuple[float, float]] = {"t1": (0.1, 0.6), "t2": (0.5, 1.2), "flair": (0.7, 1.3)}


def _large_tumour(image: FloatMap, share: FloatMap, rng: np.random.Generator, spacing_mm: float, kind: Kind) -> None:
    """Put a tumour with soft oedema and a texture of its own into the brain, as large as a lobe."""
    inside = np.argwhere(share > 0.5)
    if len(inside) == 0:
        return
    centre = inside[rng.integers(len(inside))]
    radius = rng.uniform(20, 50) / spacing_mm
    whole = tuple(slice(0, n) for n in share.shape)
    distance = _from_centre(whole, centre, radius, rng) + 0.3 * _smooth_field(rng, share.shape, max(2.0, radius / 3))
    weight = np.clip((1 - distance) * rng.uniform(1, 5), 0, 1) * share * rng.uniform(0.3, 1)
    texture = 1 + rng.uniform(0, 0.3) * _smooth_field(rng, share.shape, rng.uniform(2, 5))
    value = rng.uniform(*_TUMOURS[kind]) * np.clip(texture, 0.2, None)
    image += (weight * (value - image)).astype(np.float32)


_TUMOURS: dict[Kind, tuple[float, float]] = {"t1": (0.1, 0.6), "t2": (0.5, 1.4), "flair": (0.8, 2.4)}
_TUMOUR_SHARES: dict[Kind, float] = {"t1": 0.3, "t2": 0.3, "flair": 0.6}


def _coil(image: FloatMap, rng: np.random.Generator) -> None:
    """Make the head brighter or darker in its middle than at its rim, as coils do."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in image.shape)]
    squared = sum((axis - offset) ** 2 for axis, offset in zip(axes, rng.normal(0, 0.2, 3), strict=True))
    image *= np.exp(rng.uniform(-0.5, 0.5) * squared).astype(np.float32)


def _strip(image: FloatMap, share: FloatMap, rng: np.random.Generator, spacing_mm: float) -> None:
    """Clear what lies outside the brain and a rim of up to 6 mm: scans arrive stripped, roughly at times."""
    rim = ndimage.gaussian_filter(share, rng.uniform(0.5, 3.0) * 2 / spacing_mm)
    image[rim < rng.uniform(0.1, 0.5)] = 0


def _scanner(image: FloatMap, rng: np.random.Generator, spacing_mm: float) -> FloatMap:
    """Do what scanners do: bias field, thick slices, blur, ghosts, gamma, noise."""
    image = image * np.exp(rng.uniform(0, 0.35) * _smooth_field(rng, image.shape, rng.uniform(60, 120) / spacing_mm))
    np.clip(image, 0, None, out=image)
    image = ndimage.gaussian_filter(image, rng.uniform(0, 0.6))
    if rng.random() < 0.6:
        axis = 2 if rng.random() < 0.7 else int(rng.integers(2))
        image = _thick_slices(image, axis, rng.uniform(1.2, 8.0) / spacing_mm)
    if rng.random() < 0.15:
        axis = int(rng.integers(3))
        shift = int(image.shape[axis] / rng.integers(2, 5))
        image = image + rng.uniform(0.02, 0.15) * np.roll(image, shift, axis)
    top = max(float(image.max()), 1e-6)
    image = (image / top) ** np.float32(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.8:
        level = 0.07 * rng.random() ** 2
        real = image + level * rng.standard_normal(image.shape, dtype=np.float32)
        image = np.hypot(real, level * rng.standard_normal(image.shape, dtype=np.float32))
    return image.astype(np.float32)


def _thick_slices(image: FloatMap, axis: int, thickness: float) -> FloatMap:
    """Average over slices of some voxels and interpolate back, as resampling of a thick-sliced scan does."""
    if thickness <= 1.2:
        return image
    length = image.shape[axis]
    centres = np.arange((thickness - 1) / 2, length - 1, thickness)
    rows = np.abs(np.arange(length)[None] - centres[:, None]) <= thickness / 2
    average = rows / np.maximum(rows.sum(1, keepdims=True), 1)
    place = np.clip((np.arange(length) - centres[0]) / thickness, 0, len(centres) - 1)
    low = np.minimum(place.astype(int), max(len(centres) - 2, 0))
    back = np.zeros((length, len(centres)))
    back[np.arange(length), low] = 1 - (place - low)
    back[np.arange(length), np.minimum(low + 1, len(centres) - 1)] += place - low
    weights = (back @ average).astype(np.float32)
    return np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)


def _field_of_view(shape: tuple[int, ...], rng: np.random.Generator) -> FloatMap:
    """Draw the field of view, 1 inside: what lies beyond is zero, as padding makes it."""
    seen = np.ones(shape, np.float32)
    if rng.random() < 0.5:
        for axis, most in ((0, 0.12), (1, 0.12), (2, 0.3)):
            for side in range(2):
                if rng.random() < 0.4:
                    count = int(rng.uniform(0, most) * shape[axis])
                    cut = [slice(None)] * 3
                    cut[axis] = slice(0, count) if side == 0 else slice(shape[axis] - count, None)
                    seen[tuple(cut)] = 0
    return seen

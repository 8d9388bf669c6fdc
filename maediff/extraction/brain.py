"""From a raw head scan of any contrast to the mask of its brain, on the scan's own voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from nibabel.orientations import inv_ornt_aff, io_orientation
from safetensors.torch import load_file
from scipy import ndimage

from maediff.errors import InputError, ModelError
from maediff.extraction.network import STRIDE, ExtractionNet
from maediff.extraction.scale import normalise
from maediff.hardware import has_fast_bf16
from maediff.typing import Array, BoolArray, FloatMap
from maediff.volume import Volume
from maediff.working.components import bounding_box, largest_component
from maediff.working.resample import resample

WEIGHTS = Path(__file__).parents[1] / "weights" / "extraction" / "model.safetensors"
SPACING_MM = 2.0
_SIDE = 112  # a window of this many voxels holds any head
_AROUND_MM = 40.0  # what the network sees around the brain in its second look
_LONGEST_MM = 600.0
_FOREGROUND = 0.1
_FLAT_MM, _WIDE_MM = 100.0, 150.0
HEIGHTS_MM = (150.0, 180.0, 210.0)
"""Heights of a stack of slices that are tried if the header gives an impossible one: what scanners usually cover."""
_ISOTROPIC = 1.05
_LONGEST_BRAIN_MM, _USUAL_BRAIN_MM = 195.0, 175.0
MIN_BRAIN_ML = 150.0
THRESHOLD = 2 / 3
"""Probability from which a voxel is brain: the network is generous at the rim; set on four scans of IXI."""
_OPENING_MM = 6.0  # muscle behind the cerebellum and eyes hang on the brain by less


@dataclass(frozen=True)
class Extraction:
    """A brain that was found.

    Attributes:
        mask: Brain (X, Y, Z) on the voxels of the scan.
        certainty: How clear the border is, 0 to 1, see :func:`certainty`.
        slice_mm: Slice distance that was assumed instead of the header's, mm, or None.
        notes: Notes for the user.
    """

    mask: BoolArray
    certainty: float
    slice_mm: float | None
    notes: tuple[str, ...]


def extract_brain(
    volume: Volume, net: ExtractionNet | None = None, heights_mm: Sequence[float] = HEIGHTS_MM
) -> Extraction:
    """Find the brain of a raw head scan.

    The scan is brought to 2 mm and to RAS axes, a small network gives each voxel its probability of brain, and this
    comes back to the scan's voxels. What is probable enough and thicker than 12 mm is the brain: its largest part, with
    holes filled. If the header's slice distance cannot be right, the brain is sought at several, and the one with the
    clearest border is taken.

    Args:
        volume: The scan: any contrast, orientation and voxel size.
        net: The network; the packaged one if None.
        heights_mm: Heights of the whole stack that are tried then.

    Raises:
        InputError: No brain was found.
    """
    net = net or packaged_net()
    looks = [_look(volume, affine, slice_mm, net) for affine, slice_mm in _plausible_affines(volume, heights_mm)]
    best = max(looks, key=lambda look: (look.millilitres >= MIN_BRAIN_ML, look.certainty))
    mask, clarity, slice_mm, found_ml = best
    if found_ml < MIN_BRAIN_ML:
        raise InputError(
            f"no brain was found in {volume.name} ({found_ml:.0f} ml; at least {MIN_BRAIN_ML:g} ml is needed): it may "
            "be no scan of a head, or of part of one; give a brain mask if it is"
        )
    notes = () if slice_mm is None else (_said(volume, slice_mm),)
    return Extraction(mask, clarity, slice_mm, notes)


class _Look(NamedTuple):
    """A brain that was found at one slice distance: its mask, how clear its border is, the distance, and its volume."""

    mask: BoolArray
    certainty: float
    slice_mm: float | None
    millilitres: float


def _look(volume: Volume, affine: Array, slice_mm: float | None, net: ExtractionNet) -> _Look:
    """Find the brain at one slice distance; None is that of the header."""
    mask, probability = _found(volume, affine, net)
    smaller = _smaller_pixels(mask, affine) if slice_mm is not None else None
    if smaller is not None:
        affine = smaller
        mask, probability = _found(volume, affine, net)
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    return _Look(mask, certainty(probability), slice_mm, float(np.count_nonzero(mask)) * voxel_ml)


def _found(volume: Volume, affine: Array, net: ExtractionNet) -> tuple[BoolArray, FloatMap]:
    """Find the brain of a scan that lies as an affine says: mask on its voxels, probability on the working grid."""
    to_scan, shape = _working_grid(affine, volume.data.shape)
    probability = _probability(normalise(resample(volume.data, to_scan, shape)), net)
    native = resample(probability, np.linalg.inv(to_scan), volume.data.shape)
    return _opened(native >= THRESHOLD, np.linalg.norm(affine[:3, :3], axis=0)), probability


def _smaller_pixels(mask: BoolArray, affine: Array) -> Array | None:
    """Give a brain that is too long a usual length, if the header's spacing is lost in all directions.

    Returns:
        Voxel index to RAS mm (4, 4) with smaller pixels and the same slice distance; None if no brain is too long.
    """
    box = bounding_box(mask)
    if box is None:
        return None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lengths = np.array([side.stop - side.start for side in box]) * spacing
    if lengths.max() <= _LONGEST_BRAIN_MM:
        return None
    factors = np.full(3, _USUAL_BRAIN_MM / lengths.max())
    factors[int(spacing.argmax())] = 1.0  # the slice distance, which was assumed
    result: Array = affine.copy()
    result[:3, :3] *= factors
    return result


def _opened(mask: BoolArray, spacing_mm: Array) -> BoolArray:
    """Remove what hangs on the brain by a thin bridge; keep its largest part and fill its holes."""
    brain = largest_component(mask)
    box = bounding_box(brain)
    if box is None:
        return brain
    part = brain[box]  # the scan's edge cuts the brain: beyond it the brain goes on
    padded = np.pad(part, 1, mode="edge")
    core = ndimage.distance_transform_edt(padded, sampling=spacing_mm) > _OPENING_MM
    if core.any():
        near = ndimage.distance_transform_edt(~core, sampling=spacing_mm) <= _OPENING_MM + max(spacing_mm.min(), 0.1)
        brain[box] = largest_component((near & padded)[1:-1, 1:-1, 1:-1])
    return brain


@lru_cache(maxsize=1)
def packaged_net() -> ExtractionNet:
    """Load the packaged network.

    Raises:
        ModelError: Its weights are missing: the installation is incomplete.
    """
    if not WEIGHTS.is_file():
        raise ModelError(f"{WEIGHTS} is missing: the installation is incomplete; install maediff again")
    return load_net(WEIGHTS)


def load_net(path: Path) -> ExtractionNet:
    """Load a network from its weights, such as those of an earlier version."""
    net = ExtractionNet().eval()
    net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return net


def certainty(probability: FloatMap) -> float:
    """Measure how clear the border of a brain is: the soft Dice of the probabilities and the mask from 0.5.

    It is ``2 sum(p m) / (sum(p) + sum(m))`` of probability p and mask m: 1 if all probabilities are 0 or 1, and less
    the more voxels are in doubt.

    Args:
        probability: Probability of brain (X, Y, Z).

    Returns:
        0 to 1; 0 if nothing is brain.
    """
    mask = probability >= 0.5
    total = float(probability.sum()) + int(mask.sum())
    return 2 * float(probability[mask].sum()) / total if total > 0 else 0.0


def _plausible_affines(volume: Volume, heights_mm: Sequence[float]) -> list[tuple[Array, float | None]]:
    """Take the header's affine, or some of thicker slices if the header gives a head the height of a hand's breadth.

    Data sets that lost their spacing say 1 x 1 x 1 mm for some twenty slices of 256 x 256 pixels.

    Returns:
        Voxel index to RAS mm (4, 4), and the slice distance that was assumed, mm, or None; one or several.
    """
    extent = np.array(volume.data.shape) * volume.spacing_mm
    axis = int(extent.argmin())
    others = np.delete(extent, axis)
    isotropic = max(volume.spacing_mm) <= _ISOTROPIC * min(volume.spacing_mm)
    if not (isotropic and extent[axis] < _FLAT_MM and others.min() > _WIDE_MM):
        return [(volume.affine, None)]
    found: list[tuple[Array, float | None]] = []
    for height in heights_mm:
        slice_mm = height / volume.data.shape[axis]
        affine = volume.affine.copy()
        affine[:3, axis] *= slice_mm / volume.spacing_mm[axis]
        found.append((affine, slice_mm))
    return found


def _said(volume: Volume, slice_mm: float) -> str:
    shape = " x ".join(map(str, volume.data.shape))
    return (
        f"the header's spacing cannot be right for a head ({shape} voxels of {volume.spacing_mm[0]:g} mm): the brain "
        f"was looked for with slices {slice_mm:.1f} mm apart; mend the header, since volumes and filters rely on it"
    )


def _working_grid(affine: Array, shape: tuple[int, ...]) -> tuple[Array, tuple[int, int, int]]:
    """Lay a grid of 2 mm along the scan's own axes, in RAS order, around the whole scan.

    Returns:
        Working index to scan index (4, 4), and the shape of the grid, multiples of the network's stride.
    """
    orientation = io_orientation(affine)
    order = [int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in range(3)]
    canonical = inv_ornt_aff(orientation, shape)  # RAS-ordered index to scan index
    lengths = np.array(shape)[order]
    spacing = np.linalg.norm(affine[:3, order], axis=0)
    extent = np.minimum(lengths * spacing, _LONGEST_MM)
    sides = STRIDE * np.ceil(extent / SPACING_MM / STRIDE).astype(int)
    step = SPACING_MM / spacing
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = (lengths - 1) / 2 - step * (sides - 1) / 2
    to_scan: Array = canonical @ scale
    return to_scan, (int(sides[0]), int(sides[1]), int(sides[2]))


def _probability(image: FloatMap, net: ExtractionNet) -> FloatMap:
    """Look at the whole scan, then again at the head around the brain, if the scan is longer than a head."""
    window = _foreground(image)
    result = np.zeros_like(image)
    if max(side.stop - side.start for side in window) <= _SIDE:
        result[window] = _seen(image[window], net)
        return result
    result[window] = _seen(image[window], net, mirror=False)
    brain = bounding_box(largest_component(result >= 0.5))
    if brain is None:
        return result
    reach = round(_AROUND_MM / SPACING_MM)
    closer = tuple(_grown(side, reach, n) for side, n in zip(brain, image.shape, strict=True))
    result = np.zeros_like(image)
    result[closer] = _seen(image[closer], net)
    return result


def _foreground(image: FloatMap) -> tuple[slice, ...]:
    """Bound what is not air, with a margin."""
    box = bounding_box(image > _FOREGROUND)
    if box is None:
        return tuple(slice(0, n) for n in image.shape)
    return tuple(_grown(side, 4, n) for side, n in zip(box, image.shape, strict=True))


def _grown(side: slice, reach: int, length: int) -> slice:
    """Widen a side of a box, within the scan, to a multiple of the network's stride if there is room."""
    start, stop = max(0, side.start - reach), min(length, side.stop + reach)
    missing = -(stop - start) % STRIDE
    start = max(0, start - missing // 2)
    stop = min(length, start + STRIDE * -(-(stop - start) // STRIDE))
    return slice(max(0, stop - STRIDE * -(-(stop - start) // STRIDE)), stop)


def _seen(image: FloatMap, net: ExtractionNet, *, mirror: bool = True) -> FloatMap:
    """Return the network's probability of brain, averaged over the scan and its mirror image."""
    x = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(x.device)):
        logits = net(x)
        if mirror:
            logits = (logits + net(x.flip(2)).flip(2)) / 2
    result: FloatMap = logits.float().sigmoid()[0, 0].contiguous().numpy()
    return result

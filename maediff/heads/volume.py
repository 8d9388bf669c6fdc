"""Training volumes drawn from label maps: a brain or a part of it, healthy and with lesions in three dimensions.

As :mod:`maediff.heads.sample` draws slices, on a grid of equal spacing in all directions, with one pose, contrast and
scanner for all slices. A volume takes half a second on one core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from maediff.diffusion.noise import chance, generator, uniform
from maediff.heads.acquisition import Acquisition, draw_acquisition
from maediff.heads.contrast import Contrast, draw_contrast
from maediff.heads.fields import drifting_fields, shrink, smooth_field
from maediff.heads.labels import WHITE, BrainLabels, indices, parenchyma
from maediff.heads.lesions import LesionMask, draw_material, lesion_signal
from maediff.heads.plane import FINE, Plane, draw_pose
from maediff.heads.sample import HeadSlice, Look, draw_rim, looked_up, scaled_range, with_lesions
from maediff.heads.scan import SLAB_MM, ScanLesion, draw_bends, lesion_opacity
from maediff.heads.variation import REGION_MM, STRONGEST, draw_caps, regional_factor

_SHAPES = ("mask", "spots", "blob")
_SHAPE_SHARES = (0.3, 0.2, 0.5)
_RADIUS_MM = (3.0, 40.0)
_SPOT_MM = (1.5, 5.0)
_THICKEST_MM = 6.0
_BIAS = 0.12
_TRIES = 100
_SHARP = (0.0, 0.0)


def draw_volume(
    heads: Sequence[BrainLabels],
    masks: Sequence[LesionMask],
    shape: tuple[int, int, int],
    spacing_mm: float,
    rng: torch.Generator,
    *,
    look: Look | None = None,
) -> HeadSlice:
    """Draw a volume of one of the heads.

    Args:
        heads: Label maps.
        masks: Real lesion masks for their shapes; may be empty.
        shape: (D, H, W), working voxels: upwards, left to right, back to front. If it is smaller than the brain, it
            lies somewhere within it.
        spacing_mm: Side of a working voxel.
        rng: Source of randomness.
        look: Contrasts and lesions; the percentiles are those of the whole brain.

    Returns:
        Volumes (D, H, W) of a :class:`~maediff.heads.sample.HeadSlice`.
    """
    look = look or Look()
    head = heads[int(torch.randint(len(heads), (), generator=rng))]
    in_plane = (shape[1], shape[2])
    pose = draw_pose(in_plane, spacing_mm, rng, "axial")
    contrast, scanner = draw_contrast(rng, look.kind, look.random_share), draw_acquisition(in_plane, rng)
    found = draw_volume_lesions(head, masks, rng, look.severity, look.faintest) if look.lesions else []
    signals = [lesion_signal(contrast, one.material, rng) for one in found]
    rim, wobble = draw_rim(rng), 1.5 * float(torch.rand((), generator=rng)) ** 2
    places = [(index - (shape[0] - 1) / 2) * spacing_mm for index in range(shape[0])]
    thickness = spacing_mm if chance(0.5, rng) else uniform(spacing_mm, _THICKEST_MM, rng)
    offset, *aside = _offset(head, [side * spacing_mm for side in shape], rng)
    pose = replace(pose, u=pose.u + aside[0], v=pose.v + aside[1])
    variations = _variations(in_plane, spacing_mm, places, wobble, rng)
    caps_seed = int(torch.randint(2**31, (), generator=rng))
    healthy, images, brains, opacities = [], [], [], []
    for place, here in zip(places, variations, strict=True):
        plane = pose.cut(head, place + offset, thickness, here.bend)
        scan = _Scan.of(replace(scanner, gain=here.gain), contrast, plane, here.factor(plane), rng)
        caps = draw_caps(plane, generator("caps", caps_seed))  # the same in every slice
        ideal = with_lesions(looked_up(contrast.signal, plane), plane, contrast, caps, generator("cap", caps_seed))
        changed, opacity = ideal, torch.zeros(plane.depth.shape)
        for one, signal in zip(found, signals, strict=True):
            share = lesion_opacity(one, head, plane)
            if bool(share.any()):
                changed = changed + share * (looked_up(signal, plane) - changed)
                opacity = torch.maximum(opacity, share)
        healthy.append(scan.of_signal(ideal))
        images.append(scan.of_signal(changed) if changed is not ideal else healthy[-1])
        brains.append(shrink(plane.depth, _SHARP, FINE) + here.edge < rim)
        opacities.append(shrink(opacity, _SHARP, FINE))
    brain, clean = torch.stack(brains), torch.stack(healthy)
    if not bool(brain.any()):
        raise ValueError(f"{head.name}: no voxel of the volume {shape} at {spacing_mm:g} mm lies in the brain")
    low, high = scaled_range(contrast, head, rim, look.percentiles, rng)

    def scaled(stack: Tensor) -> Tensor:
        return torch.where(brain, (2 * (stack - low) / (high - low) - 1).clamp(-1, look.clip), -1.0)

    lesion = torch.stack(opacities) * brain
    return HeadSlice(scaled(clean), scaled(torch.stack(images)), brain, lesion, contrast.kind)


def _offset(head: BrainLabels, sides_mm: Sequence[float], rng: torch.Generator) -> list[float]:
    """Draw how far the middle of a volume lies from that of the brain, mm: a little, or to some tissue of it.

    Args:
        head: Labels around the brain.
        sides_mm: Of the volume: upwards, left to right, back to front.
        rng: Source of randomness.
    """
    middle = _voxels(head, parenchyma(), 1, rng)[0] - head.box.mean(0)
    left, front, up = ((head.box[1] - head.box[0]) / 2).tolist()
    found = []
    for axis, half, side in zip((2, 0, 1), (up, left, front), sides_mm, strict=True):
        beyond = max(0.0, half - side / 2)
        found.append(float(middle[axis].clamp(-beyond, beyond)))
    found[0] += 3.0 * float(torch.randn((), generator=rng))  # the pose has moved it along the other axes
    return found


class _Variation(NamedTuple):
    """What changes smoothly through a volume, at one of its slices.

    Attributes:
        bend: (3, h, w) displacement, mm.
        gain: (H, W) bias field.
        edge: (H, W) error of the brain mask, mm.
        white: (h, w) relative change of the signal of white matter.
        grey: The same of grey matter.
    """

    bend: Tensor
    gain: Tensor
    edge: Tensor
    white: Tensor
    grey: Tensor

    def factor(self, plane: Plane) -> Tensor:
        """Return the factor on the signal (h, w)."""
        return regional_factor(plane, self.white, self.grey)


def _variations(
    shape: tuple[int, int], spacing_mm: float, places: Sequence[float], wobble: float, rng: torch.Generator
) -> list[_Variation]:
    """Draw the variation of each slice; `wobble` is the strength of the brain mask's errors, mm."""

    def drift(strength: float, knot_mm: float, count: int = 1, fine: int = 1) -> list[Tensor]:
        sides, knot = (shape[0] * fine, shape[1] * fine), knot_mm * fine / spacing_mm
        return drifting_fields(sides, knot, places, SLAB_MM, rng, count=count, strength=strength)

    bends = draw_bends(shape, spacing_mm, places, rng)
    gains = drift(uniform(0, _BIAS, rng), uniform(60, 110, rng))
    edges = drift(wobble, 20.0)
    tissues = drift(1.0, uniform(*REGION_MM, rng), count=2, fine=FINE)
    white, grey = (uniform(0, STRONGEST, rng) for _ in range(2))
    return [
        _Variation(bend, torch.exp(gain[0].clamp(-0.3, 0.3)), edge[0], white * tissue[0], grey * tissue[1])
        for bend, gain, edge, tissue in zip(bends, gains, edges, tissues, strict=True)
    ]


class _Scan(NamedTuple):
    """The scanner at one slice, whose noise is the same with and without lesions."""

    scanner: Acquisition
    spread: Tensor
    factor: Tensor

    @classmethod
    def of(cls, scanner: Acquisition, contrast: Contrast, plane: Plane, factor: Tensor, rng: torch.Generator) -> _Scan:
        """Draw the noise of a slice."""
        shape = (scanner.gain.shape[0], scanner.gain.shape[1])
        texture, noise = smooth_field(shape, 1.5, rng)[0], torch.randn(2, *shape, generator=rng)
        spread = contrast.spread[plane.classes[0, ::FINE, ::FINE]]
        return cls(replace(scanner, texture=texture, noise=noise), spread, factor)

    def of_signal(self, ideal: Tensor) -> Tensor:
        """Scan an ideal signal (h, w): (H, W)."""
        return self.scanner.apply(ideal * self.factor, self.spread)


def draw_volume_lesions(
    head: BrainLabels, masks: Sequence[LesionMask], rng: torch.Generator, severity: float, faintest: float
) -> list[ScanLesion]:
    """Draw one to three lesions in three dimensions: real shapes, scattered spots, and blobs of 6 to 80 mm.

    Arguments are those of :func:`draw_volume`; `severity` and `faintest` those of :class:`~maediff.heads.sample.Look`.
    """
    found = []
    for _ in range(1 + int(torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 1, generator=rng))):
        shape = _SHAPES[int(torch.multinomial(torch.tensor(_SHAPE_SHARES), 1, generator=rng))]
        material, opacity = draw_material(rng), severity * faintest ** float(torch.rand((), generator=rng))
        seed = int(torch.randint(2**31, (), generator=rng))
        if shape == "mask" and masks:
            mask = masks[int(torch.randint(len(masks), (), generator=rng))]
            kind = "ms" if mask.in_white else "stroke"
            found.append(ScanLesion(kind, material, opacity, torch.zeros(3), 0, mask, seed))
        elif shape == "spots":
            found.append(ScanLesion("ms", material, opacity, torch.zeros(3), 0, _spots(head, rng), seed))
        else:
            centre = _voxels(head, parenchyma(), 1, rng)[0].float()
            low, high = (math.log(radius) for radius in _RADIUS_MM)
            found.append(ScanLesion("tumour", material, opacity, centre, math.exp(uniform(low, high, rng)), None, seed))
    return found


def _voxels(head: BrainLabels, classes: Sequence[int], count: int, rng: torch.Generator) -> Tensor:
    """Choose voxels (count, 3) of some classes."""
    wanted = torch.zeros(256, dtype=torch.bool)
    wanted[list(classes)] = True
    classes_of, found = head.classes.reshape(-1), torch.empty(0, dtype=torch.long)
    for _ in range(_TRIES):  # far faster than to list all voxels of these classes
        flat = torch.randint(len(classes_of), (100 * count,), generator=rng)
        found = torch.cat([found, flat[wanted[classes_of[flat].int()]]])
        if len(found) >= count:
            break
    else:
        raise ValueError(f"{head.name}: {100 * count * _TRIES} voxels hold none of the classes {list(classes)}")
    flat = found[:count]
    return torch.stack(torch.unravel_index(flat, head.classes.shape), 1)


def _spots(head: BrainLabels, rng: torch.Generator) -> LesionMask:
    """Scatter 2 to 20 balls over the white matter, as a mask of the head."""
    voxels = torch.zeros(head.classes.shape, dtype=torch.uint8)
    count = 2 + int(torch.randint(19, (), generator=rng))
    for centre in _voxels(head, indices(WHITE), count, rng).tolist():
        radius = uniform(*_SPOT_MM, rng)
        reach = math.ceil(radius)
        around = tuple(slice(max(0, middle - reach), middle + reach + 1) for middle in centre)
        part = voxels[around]
        distances = [
            (torch.arange(size) + side.start - middle) ** 2
            for side, size, middle in zip(around, part.shape, centre, strict=True)
        ]
        x, y, z = torch.meshgrid(*distances, indexing="ij")
        part[x + y + z <= radius**2] = 1
    return LesionMask(voxels, torch.zeros(3), head.box, in_white=True)

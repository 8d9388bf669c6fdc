"""Whole synthetic scans of a head: one pose, contrast and scanner for all slices, and lesions in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maediff.diffusion.noise import chance, generator
from maediff.heads.acquisition import Acquisition, draw_acquisition
from maediff.heads.contrast import Contrast, Kind, draw_contrast
from maediff.heads.fields import drifting_fields, shrink, smooth_field
from maediff.heads.labels import WHITE, BrainLabels, indices
from maediff.heads.lesions import OEDEMA, LesionMask, cut_mask, lesion_room, lesion_signal, white_share
from maediff.heads.plane import FINE, Plane, draw_pose
from maediff.heads.sample import looked_up

UNITS = 1000.0
"""Intensity of the brightest structure of the brain, scanner units."""
SLAB_MM = 30.0  # distance between the knots of the displacement, across slices


_FAR = 4.0
"""Distance in radii from which on a slice has nothing of a tumour."""


@dataclass(frozen=True)
class ScanLesion:
    """A lesion in three dimensions.

    Attributes:
        kind: "tumour", "ms" or "stroke".
        material: One of :data:`maediff.heads.lesions.MATERIALS`, or its ``OEDEMA``.
        opacity: Highest share of changed tissue, 0 to 1.
        centre: (3,) voxels of the head; used by tumours.
        radius_mm: Used by tumours.
        mask: Real mask whose shape the lesion has; None for tumours.
        seed: Seed of its shape and place.
    """

    kind: str
    material: str
    opacity: float
    centre: Tensor
    radius_mm: float
    mask: LesionMask | None
    seed: int


@dataclass(frozen=True)
class HeadScan:
    """A synthetic brain-extracted scan.

    Attributes:
        image: (X, Y, Z) float32, scanner units, 0 outside the brain.
        brain: (X, Y, Z) bool.
        lesion: (X, Y, Z) bool, where at least a quarter of the voxel is changed.
        affine: (4, 4), voxel index to RAS mm.
        kind: Kind of contrast.
        others: Further contrasts of the same brain, as `image`.
    """

    image: npt.NDArray[np.float32]
    brain: npt.NDArray[np.bool_]
    lesion: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    kind: Kind
    others: tuple[npt.NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class _Sequence:
    """How one contrast of a scan is taken: signals of tissue and of each lesion, the scanner, and a source of noise."""

    contrast: Contrast
    scanner: Acquisition
    lesions: tuple[Tensor, ...]
    rng: torch.Generator

    def take(self, plane: Plane, shares: Sequence[Tensor]) -> Tensor:
        """Scan a slice whose lesions change these shares (h, w) of the tissue; return (H, W), scanner units."""
        ideal = looked_up(self.contrast.signal, plane)
        for signal, share in zip(self.lesions, shares, strict=True):
            ideal = ideal + share * (looked_up(signal, plane) - ideal)
        classes = plane.classes[0, ::FINE, ::FINE]
        shape = (classes.shape[0], classes.shape[1])
        texture = smooth_field(shape, 2.0, self.rng)[0]
        scanner = replace(self.scanner, texture=texture, noise=torch.randn(2, *shape, generator=self.rng))
        return UNITS * scanner.apply(ideal, self.contrast.spread[classes])


def draw_scan(
    head: BrainLabels,
    masks: Sequence[LesionMask],
    rng: torch.Generator,
    *,
    kind: Kind,
    also: Sequence[Kind] = (),
    lesion: str | None = None,
    spacing_mm: tuple[float, float] = (1.0, 2.0),
) -> HeadScan:
    """Draw a whole axial scan.

    Args:
        head: Labels around the brain.
        masks: Real lesion masks: those that belong in white matter for "ms", the others for "stroke".
        rng: Source of randomness.
        kind: Kind of contrast.
        also: Further contrasts of the same brain in the same place, which leave the first as it is.
        lesion: "tumour", "ms", "stroke", or None for a healthy brain.
        spacing_mm: In-plane spacing, and distance and thickness of slices.

    Raises:
        ValueError: Unknown kind of lesion, or no mask for it.
    """
    in_plane, thickness = spacing_mm
    box = head.box[1] - head.box[0]
    rows, columns = (2 * math.ceil((float(side) * 1.2 + 12) / in_plane / 2) for side in box[:2])
    shape = (rows, columns)
    pose = draw_pose(shape, in_plane, rng, "axial")
    contrast, scanner = draw_contrast(rng, kind), draw_acquisition(shape, rng)
    found = _draw_lesions(head, masks, lesion, rng)
    sequences = [_Sequence(contrast, scanner, _signals(contrast, found, rng), rng)]
    for number, other in enumerate(also):
        own = generator("another contrast", rng.initial_seed(), number)
        contrast, scanner = draw_contrast(own, other), draw_acquisition(shape, own)
        sequences.append(_Sequence(contrast, scanner, _signals(contrast, found, own), own))
    rim = 0.5 + 1.5 * float(torch.rand((), generator=rng))
    count = math.ceil((float(box[2]) * 1.1 + 6) / thickness)
    heights = [(index - (count - 1) / 2) * thickness for index in range(count)]
    bends = draw_bends(shape, in_plane, heights, rng)
    images: list[list[Tensor]] = [[] for _ in sequences]
    brains, opacities = [], []
    for height, bend in zip(heights, bends, strict=True):
        plane = pose.cut(head, height, thickness, bend)
        shares = [lesion_opacity(one, head, plane) for one in found]
        brain = shrink(plane.depth, (0.0, 0.0), FINE) < rim
        for slices, sequence in zip(images, sequences, strict=True):
            slices.append(torch.where(brain, sequence.take(plane, shares), 0.0))
        brains.append(brain)
        highest = torch.stack([torch.zeros(plane.depth.shape), *shares]).amax(0)
        opacities.append(shrink(highest, (0.0, 0.0), FINE))
    affine = np.diag([in_plane, in_plane, thickness, 1.0])
    affine[:3, 3] = [-(rows - 1) / 2 * in_plane, -(columns - 1) / 2 * in_plane, heights[0]]
    brain_stack = torch.stack(brains, 2).numpy()
    image, *others = (torch.stack(slices, 2).numpy().astype(np.float32) for slices in images)
    return HeadScan(
        image=image,
        brain=brain_stack,
        lesion=(torch.stack(opacities, 2).numpy() >= 0.25) & brain_stack,
        affine=affine,
        kind=sequences[0].contrast.kind,
        others=tuple(others),
    )


def _signals(contrast: Contrast, lesions: Sequence[ScanLesion], rng: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(lesion_signal(contrast, one.material, rng) for one in lesions)


def draw_bends(
    shape: tuple[int, int], spacing_mm: float, heights: Sequence[float], rng: torch.Generator
) -> list[Tensor]:
    """Draw a displacement for each slice, mm (3, h, w) each, that changes smoothly from slice to slice."""
    fine = (shape[0] * FINE, shape[1] * FINE)
    amplitude = 2.0 * float(torch.rand((), generator=rng))
    return drifting_fields(fine, 35.0 * FINE / spacing_mm, heights, SLAB_MM, rng, count=3, strength=amplitude)


def _draw_lesions(
    head: BrainLabels, masks: Sequence[LesionMask], kind: str | None, rng: torch.Generator
) -> list[ScanLesion]:
    """Draw the pathology of a brain: one tumour with its oedema, one stroke, or the lesions of one MS patient."""
    if kind is None:
        return []
    if kind not in {"tumour", "ms", "stroke"}:
        raise ValueError(f"lesion {kind!r} is unknown; use tumour, ms or stroke")
    seed = int(torch.randint(2**31, (), generator=rng))
    if kind == "tumour":
        wanted = torch.tensor(indices(WHITE))
        voxels = torch.isin(head.classes.int(), wanted.int()).nonzero()
        centre = voxels[int(torch.randint(len(voxels), (), generator=rng))].float()
        radius = 8.0 * 3.0 ** float(torch.rand((), generator=rng))
        oedema = ScanLesion("tumour", OEDEMA, 0.9, centre, radius, None, seed)
        core = ScanLesion("tumour", "tumour", 0.9, centre, 0.7 * radius, None, seed + 1)
        return [oedema, core]
    fitting = [mask for mask in masks if mask.in_white == (kind == "ms")]
    if not fitting:
        raise ValueError(f"no lesion mask for {kind}; read some with maediff.heads.lesions.read_masks")
    mask = fitting[int(torch.randint(len(fitting), (), generator=rng))]
    material = "gliosis" if kind == "ms" else ("cavity" if chance(0.5, rng) else "gliosis")
    return [ScanLesion(kind, material, 0.9, torch.zeros(3), 0.0, mask, seed)]


def lesion_opacity(lesion: ScanLesion, head: BrainLabels, plane: Plane) -> Tensor:
    """Cut a lesion in a plane: (h, w), 0 to 1."""
    room = lesion_room(plane)
    rng = generator("lesion", lesion.seed)  # the same in every slice
    if lesion.mask is not None:
        shape = cut_mask(lesion.mask, plane, rng)
        return lesion.opacity * room * (shape * white_share(plane) if lesion.mask.in_white else shape)
    half, middle = (head.box[1] - head.box[0]) / 2, head.box.mean(0)
    offset = plane.place * half[:, None, None] + (middle - lesion.centre)[:, None, None]
    distance = offset.square().sum(0).sqrt()
    if float(distance.min()) > _FAR * (lesion.radius_mm + 5):
        return torch.zeros_like(distance)
    azimuth = torch.atan2(offset[1], offset[0])
    polar = torch.atan2(offset[2], offset[:2].square().sum(0).sqrt())
    edge = torch.ones_like(distance)
    for wave in range(1, 5):
        phases = 2 * math.pi * torch.rand(2, generator=rng)
        strength = 0.25 / wave * float(torch.randn((), generator=rng))
        edge = edge + strength * torch.cos(wave * azimuth + phases[0]) * torch.cos(wave * polar + phases[1])
    return lesion.opacity * room * torch.sigmoid((edge.clamp(min=0.4) * lesion.radius_mm - distance) / 1.0)

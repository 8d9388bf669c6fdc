"""Pathology as tissue change: lesions alter relaxation times, which determine their look on every sequence.

Lesions that are bright on T2 and FLAIR are therefore dark on T1. Ranges bracket measurements on real scans, in units in
which the brain's 1st to 99th percentile is 0 to 1: multiple sclerosis +0.24 on FLAIR, -0.15 on T1, +0.15 to +0.18 on
T2 against its surroundings, median diameter 2.5 mm with half of the volume in confluent lesions; low-grade glioma
+0.21 on FLAIR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from maediff.diffusion.noise import chance, uniform
from maediff.errors import InputError
from maediff.heads.contrast import Contrast, Relaxation
from maediff.heads.fields import smooth_field
from maediff.heads.labels import CSF, WHITE, class_index, indices, outside_brain, parenchyma
from maediff.heads.plane import Plane

MATERIALS = ("gliosis", "tumour", "cavity", "blood", "enhancement")
_MATERIAL_SHARES = (0.42, 0.30, 0.12, 0.07, 0.09)
OEDEMA = "oedema"
"""What lies around the tumours of whole scans: gliosis that is never faint."""
SHAPES = ("mask", "spots", "blob", "rim")
_SHAPE_SHARES = (0.30, 0.22, 0.40, 0.08)
_LARGE_MM = 40.0
_LARGE_SHARE = 0.3
"""From this diameter on a blob is large, like many gliomas; share of such blobs."""
_SECOND_SHARE = 0.4
"""Share of tumours of which parts are of another material."""
_TRIES = 4


@dataclass(frozen=True)
class LesionMask:
    """A real lesion mask, for its shapes.

    Attributes:
        voxels: (x, y, z) uint8, cropped to the lesions.
        first: (3,) first voxel of the crop in the whole mask.
        box: (2, 3) the brain's box in the whole mask, voxels.
        in_white: Whether the lesions belong in white matter.
    """

    voxels: Tensor
    first: Tensor
    box: Tensor
    in_white: bool


# The brain's box in MNI space at 1 mm, RAS, as (first, last) in mm: masks in that space are placed by it.
_MNI_BOX = np.array([[-70.0, -104.0, -70.0], [70.0, 72.0, 80.0]])


def read_masks(folder: str | Path, *, in_white: bool) -> list[LesionMask]:
    """Read lesion masks in MNI space, for their shapes.

    Args:
        folder: NIfTI files.
        in_white: Whether these lesions belong in white matter, like those of multiple sclerosis.

    Raises:
        InputError: The folder holds no masks, or one cannot be read or is empty.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*.nii*")) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder} holds no lesion masks (.nii or .nii.gz)")
    return [_read_mask(path, in_white) for path in paths]


def _read_mask(path: Path, in_white: bool) -> LesionMask:
    try:
        image = nib.as_closest_canonical(nib.load(path))
        voxels = np.asarray(image.dataobj) > 0
    except Exception as error:  # nibabel raises many kinds
        raise InputError(f"{path}: cannot be read as a lesion mask: {error}") from error
    where = np.argwhere(voxels)
    if not len(where):
        raise InputError(f"{path}: the lesion mask is empty")
    first, last = where.min(0), where.max(0) + 1
    inverse = np.linalg.inv(image.affine)
    box = _MNI_BOX @ inverse[:3, :3].T + inverse[:3, 3]
    crop = voxels[tuple(slice(low, high) for low, high in zip(first, last, strict=True))]
    return LesionMask(
        torch.from_numpy(np.ascontiguousarray(crop, dtype=np.uint8)),
        torch.from_numpy(first.astype(np.float32)),
        torch.from_numpy(box.astype(np.float32)),
        in_white,
    )


@dataclass(frozen=True)
class Lesion:
    """One lesion, or a scatter of them, of one material.

    Attributes:
        opacity: (h, w) 0 to 1 on the fine grid: the share of changed tissue.
        material: One of :data:`MATERIALS`.
    """

    opacity: Tensor
    material: str


def draw_lesions(
    plane: Plane, masks: Sequence[LesionMask], rng: torch.Generator, severity: float = 1.0, faintest: float = 0.2
) -> list[Lesion]:
    """Draw one to three lesions inside the brain of a slice.

    Args:
        plane: The slice.
        masks: Real lesion masks for their shapes; may be empty.
        rng: Source of randomness.
        severity: Highest opacity, 0 to 1.
        faintest: Lowest opacity, as a share of the highest; faint lesions are as frequent as strong ones.

    Returns:
        Lesions that touch the brain; none if the slice holds next to no brain.
    """
    room = lesion_room(plane)
    if float(room.sum()) * plane.pixel_mm**2 < 100:
        return []
    lesions = []
    for _ in range(1 + int(torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 1, generator=rng))):
        material = draw_material(rng)
        shape, in_white = _draw_shape(plane, room, masks, rng)
        if in_white or (material == "gliosis" and chance(0.3, rng)):
            shape = shape * white_share(plane)
        shape = shape * room
        if float(shape.max()) < 0.3:
            continue
        opacity = severity * faintest ** float(torch.rand((), generator=rng))
        if chance(0.4, rng):
            opacity = opacity * (1 + 0.35 * _grain(shape.shape, rng))
        lesions.append(Lesion((shape * opacity).clamp(0, 1), material))
        if material == "tumour" and chance(_SECOND_SHARE, rng):
            parts = torch.sigmoid(6 * (_grain(shape.shape, rng, 15) - 0.3))
            lesions.append(Lesion((parts * shape * severity * uniform(0.3, 1.0, rng)).clamp(0, 1), draw_material(rng)))
    return lesions


def draw_material(rng: torch.Generator) -> str:
    """Draw one of :data:`MATERIALS`."""
    return MATERIALS[int(torch.multinomial(torch.tensor(_MATERIAL_SHARES), 1, generator=rng))]


def lesion_signal(contrast: Contrast, material: str, rng: torch.Generator) -> Tensor:
    """Compute the signal of each tissue class after it is changed.

    Args:
        contrast: The scan's contrast.
        material: One of :data:`MATERIALS`, or :data:`OEDEMA`.
        rng: Source of randomness.

    Returns:
        (K,) signal of each class as a lesion.
    """
    if contrast.tissue is None:
        return _shifted(contrast, rng)
    return contrast.signal_of(_changed(contrast.tissue, material, rng))


def _changed(tissue: Relaxation, material: str, rng: torch.Generator) -> Relaxation:
    """Change the relaxation times of all classes."""
    t1, t2, pd = tissue.t1, tissue.t2, tissue.pd
    if material in {"gliosis", OEDEMA}:
        strength = uniform(0.6 if material == OEDEMA else 0.15, 1.0, rng)  # the three change together
        return Relaxation(t1 * (1 + 0.6 * strength), t2 * (1 + 1.0 * strength), pd * (1 + 0.12 * strength))
    if material == "tumour":
        share = uniform(0.5, 1.0, rng)  # one tissue takes the place of many
        return _mixed(tissue, _tumour(rng), share)
    if material == "cavity":
        fluid = class_index("sulcal CSF")
        return _mixed(tissue, Relaxation(t1[fluid], t2[fluid], pd[fluid]), uniform(0.6, 1.0, rng))
    if material == "blood":
        return Relaxation(t1 * uniform(0.5, 1.0, rng), t2 * uniform(0.2, 0.55, rng), pd)
    return Relaxation(t1 * uniform(0.25, 0.6, rng), t2 * uniform(0.8, 1.1, rng), pd)  # enhancement


def _tumour(rng: torch.Generator) -> Relaxation:
    """Draw the tissue of a glioma: the more water, the longer both times.

    T2 is 200 to 360 ms in the middle of gliomas of grade II and III and 210 ms at their edge, each give or take 50 to
    115 ms (Kern et al., BMC Neurology 2020).
    """
    own, water = uniform(0.0, 1.0, rng), uniform(0.0, 1.0, rng)
    return Relaxation(
        t1=torch.tensor(1400.0 + 500.0 * (own + water)),
        t2=torch.tensor(140.0 * (380.0 / 140.0) ** water),
        pd=torch.tensor(0.76 + 0.1 * uniform(0.0, 1.0, rng)),
    )


def _mixed(tissue: Relaxation, other: Relaxation, share: float) -> Relaxation:
    """Replace a share of all classes with other tissue."""
    return Relaxation(
        tissue.t1 + share * (other.t1 - tissue.t1),
        tissue.t2 + share * (other.t2 - tissue.t2),
        tissue.pd + share * (other.pd - tissue.pd),
    )


def _shifted(contrast: Contrast, rng: torch.Generator) -> Tensor:
    """Shift the intensities of a random contrast, of all tissues or of a random subset, or level them."""
    tissue = contrast.signal[parenchyma()]
    span = float(tissue.max() - tissue.min()) + 0.2
    sign = 1.0 if chance(0.5, rng) else -1.0
    shift = sign * span * (0.12 + 0.7 * float(torch.rand((), generator=rng)))
    changed = contrast.signal + shift
    if chance(0.3, rng):
        changed = 0.3 * changed + 0.7 * float(tissue.mean() + shift)
    if chance(0.25, rng):  # selective: some tissues are spared
        spared = torch.rand(len(changed), generator=rng) < 0.4
        changed = torch.where(spared, contrast.signal, changed)
    return changed.clamp(min=0)


def _draw_shape(plane: Plane, room: Tensor, masks: Sequence[LesionMask], rng: torch.Generator) -> tuple[Tensor, bool]:
    """Draw a shape (h, w), 0 to 1, and return whether it belongs in white matter."""
    kind = SHAPES[int(torch.multinomial(torch.tensor(_SHAPE_SHARES), 1, generator=rng))]
    if kind == "mask" and masks:
        for _ in range(_TRIES):
            mask = masks[int(torch.randint(len(masks), (), generator=rng))]
            shape = cut_mask(mask, plane, rng)
            if float((shape * room).sum()) * plane.pixel_mm**2 > 6:
                return shape, mask.in_white
    if kind == "spots":
        return _spots(plane, room, rng), chance(0.7, rng)
    blob = _blob(plane, room, rng)
    if kind == "rim":
        return (4 * blob * (1 - blob)).clamp(0, 1), False
    return blob, False


def cut_mask(mask: LesionMask, plane: Plane, rng: torch.Generator) -> Tensor:
    """Cut a real mask at the place of the slice, moved a little and mirrored in half of the cases (h, w)."""
    place = plane.place + 0.12 * torch.randn(3, 1, 1, generator=rng)
    if chance(0.5, rng):
        place = place * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    centre, half = mask.box.mean(0), (mask.box[1] - mask.box[0]) / 2
    points = (place * half[:, None, None] + (centre - mask.first)[:, None, None]).round_().int()
    size = mask.voxels.shape
    inside = torch.stack([(points[axis] >= 0) & (points[axis] < size[axis]) for axis in range(3)]).all(0)
    if not bool(inside.any()):
        return torch.zeros(plane.depth.shape)
    flat = ((points[0] * size[1] + points[1]) * size[2] + points[2])[inside]
    values = torch.zeros(plane.depth.shape)
    values[inside] = mask.voxels.reshape(-1).index_select(0, flat).float()
    return values


def _spots(plane: Plane, room: Tensor, rng: torch.Generator) -> Tensor:
    """Scatter 2 to 20 small spots, median diameter 3 mm (h, w)."""
    where = (room * white_share(plane) > 0.5).nonzero()
    where = where if len(where) else (room > 0.5).nonzero()
    count = 2 + int(torch.randint(19, (), generator=rng))
    total = torch.zeros(room.shape)
    for _ in range(count):
        row, column = where[int(torch.randint(len(where), (), generator=rng))].tolist()
        radius = 0.5 * min(14.0, 3.2 * math.exp(0.5 * float(torch.randn((), generator=rng)))) / plane.pixel_mm
        reach = math.ceil(2.5 * radius) + 2
        top, left = max(0, row - reach), max(0, column - reach)
        part = total[top : row + reach + 1, left : column + reach + 1]
        angle, stretch = math.pi * float(torch.rand((), generator=rng)), 1 + 0.8 * float(torch.rand((), generator=rng))
        y = (torch.arange(part.shape[0]) + top - row)[:, None].float()
        x = (torch.arange(part.shape[1]) + left - column)[None].float()
        along = (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(stretch)
        across = (y * math.cos(angle) - x * math.sin(angle)) * math.sqrt(stretch)
        distance = (along**2 + across**2).sqrt()
        part.copy_(torch.maximum(part, torch.sigmoid((radius - distance) / (0.4 / plane.pixel_mm))))
    return total


def _blob(plane: Plane, room: Tensor, rng: torch.Generator) -> Tensor:
    """Draw an irregular blob of 6 to 80 mm with a soft or a sharp edge (h, w)."""
    where = (room > 0.5).nonzero()
    row, column = where[int(torch.randint(len(where), (), generator=rng))].tolist()
    diameter = 6.0 * (_LARGE_MM / 6.0) ** float(torch.rand((), generator=rng))
    if chance(_LARGE_SHARE, rng):
        diameter = uniform(_LARGE_MM, 2 * _LARGE_MM, rng)
    radius = diameter / 2 / plane.pixel_mm
    y = (torch.arange(room.shape[0]) - row)[:, None].float()
    x = (torch.arange(room.shape[1]) - column)[None].float()
    angle = torch.atan2(y, x)
    edge = torch.ones_like(angle)
    for wave in range(1, 6):
        phase = 2 * math.pi * float(torch.rand((), generator=rng))
        edge = edge + 0.3 / wave * float(torch.randn((), generator=rng)) * torch.cos(wave * angle + phase)
    distance = (x**2 + y**2).sqrt() / radius
    softness = (0.3 + 2.7 * float(torch.rand((), generator=rng)) ** 2) / (diameter / 2)
    wobble = 0.2 * float(torch.rand((), generator=rng)) * _grain(room.shape, rng, max(3, int(radius / 2)))
    return torch.sigmoid((edge.clamp(min=0.3) - distance - wobble) / (1.5 * softness))


def lesion_room(plane: Plane) -> Tensor:
    """Return where lesions may lie (h, w): brain tissue and what it encloses, not the fluid around it."""
    keeps = torch.ones(256)
    keeps[outside_brain()] = 0
    keeps[indices(CSF)] = 0.1
    return keeps[plane.central] * (plane.depth <= 1)


def white_share(plane: Plane) -> Tensor:
    """Weigh white matter against other tissue (h, w): lesions of white matter end at the cortex."""
    weights = torch.full((256,), 0.15)
    weights[indices(WHITE)] = 1.0
    return weights[plane.central]


def _grain(shape: torch.Size | tuple[int, int], rng: torch.Generator, factor: int | None = None) -> Tensor:
    """Draw smooth noise of unit variance, clamped (h, w)."""
    factor = factor or int(torch.randint(3, 16, (), generator=rng))
    return smooth_field((shape[0], shape[1]), factor, rng)[0].clamp(-2, 2)

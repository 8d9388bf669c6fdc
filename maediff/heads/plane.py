"""Random slices through a head: a moved, turned, mirrored and bent plane of some thickness, as tissue classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maediff.config import Orientation
from maediff.diffusion.noise import chance
from maediff.heads.fields import smooth_field
from maediff.heads.labels import BrainLabels
from maediff.working.spatial import SLICE_AXES

FINE = 2
"""Fine pixels per working pixel along each side: partial volume comes from averaging signals over them."""
_TURN = math.radians(12)


@dataclass(frozen=True)
class Plane:
    """A slice through a head.

    Attributes:
        classes: (T, h, w) int32, class of each fine pixel in each of T layers through the slice's thickness.
        depth: (h, w) float32, signed distance to the surface of the brain tissue, mm, negative inside.
        place: (3, h, w) float32, where each fine pixel of the central layer lies in the brain's box: -1 to 1 along
            left to right, posterior to anterior and inferior to superior.
        pixel_mm: Side of a fine pixel.
    """

    classes: Tensor
    depth: Tensor
    place: Tensor
    pixel_mm: float

    @property
    def central(self) -> Tensor:
        """Class of each fine pixel in the central layer (h, w)."""
        return self.classes[len(self.classes) // 2]

    def among(self, classes: Sequence[int]) -> Tensor:
        """Return 1 where the central layer holds one of some classes, else 0 (h, w)."""
        table = torch.zeros(256)
        table[list(classes)] = 1
        return table[self.central]


@dataclass(frozen=True)
class Pose:
    """How a head lies in the scanner, drawn once for a slice or for a scan.

    Attributes:
        axes: (3, 3) directions of rows, columns and slices in the head as rows, with their scales.
        u: (h,) places of the fine rows along their axis, mm.
        v: (w,) places of the fine columns along theirs, mm.
        mirrored: Whether left and right are exchanged.
        pixel_mm: Side of a fine pixel.
    """

    axes: Tensor
    u: Tensor
    v: Tensor
    mirrored: bool
    pixel_mm: float

    def cut(self, head: BrainLabels, height: float | Tensor, thickness: float, bend: Tensor) -> Plane:
        """Cut a slice out of a head.

        Args:
            head: Labels around the brain.
            height: Place of the slice along its axis, mm from the centre of the brain.
            thickness: Thickness of the slice, mm.
            bend: (3, h, w) displacement of its fine pixels, mm.
        """
        centre, half = head.box.mean(0), (head.box[1] - head.box[0]) / 2
        points = bend + (centre + height * self.axes[2])[:, None, None]
        points += self.axes[0][:, None, None] * self.u[:, None]
        points += self.axes[1][:, None, None] * self.v
        across = self.axes[2]
        if self.mirrored:
            points[0] = 2 * centre[0] - points[0]
            across = across * torch.tensor([-1.0, 1.0, 1.0])
        layers = [_nearest(head.classes, points + (offset * across)[:, None, None]) for offset in _layers(thickness)]
        depth = _nearest(head.depth, points).float()
        place = (points - centre[:, None, None]) / half[:, None, None]
        return Plane(torch.stack(layers).int(), depth, place, self.pixel_mm)


def draw_pose(shape: tuple[int, int], spacing_mm: float, rng: torch.Generator, orientation: Orientation) -> Pose:
    """Draw a pose: turned by up to 12 degrees about each axis, scaled by up to 12 %, mirrored in half of the cases.

    Args:
        shape: (H, W) of the working slice, pixels.
        spacing_mm: Side of a working pixel.
        rng: Source of randomness.
        orientation: "axial", "coronal" or "sagittal"; H and W run along the axes of
            :data:`~maediff.working.spatial.SLICE_AXES`.

    Raises:
        ValueError: Unknown orientation.
    """
    if orientation not in SLICE_AXES:
        raise ValueError(f"orientation {orientation!r} is unknown; use {', '.join(SLICE_AXES)}")
    pixel_mm = spacing_mm / FINE
    axes = _turned(SLICE_AXES[orientation], rng)
    shift = torch.randn(2, generator=rng) * torch.tensor([2.0, 3.0])
    u, v = ((torch.arange(FINE * side) - (FINE * side - 1) / 2) * pixel_mm for side in shape)
    mirrored = chance(0.5, rng)
    return Pose(axes, u + shift[0], v + shift[1], mirrored, pixel_mm)


def draw_plane(
    head: BrainLabels,
    shape: tuple[int, int],
    spacing_mm: float,
    rng: torch.Generator,
    orientation: Orientation = "axial",
) -> Plane:
    """Cut a random slice out of a head: a random pose and height, bent by a smooth displacement of some millimetres.

    Arguments and errors are those of :func:`draw_pose`.
    """
    pose = draw_pose(shape, spacing_mm, rng, orientation)
    normal = SLICE_AXES[orientation][2]
    half = float(head.box[1, normal] - head.box[0, normal]) / 2
    height = (1.9 * float(torch.rand((), generator=rng)) - 0.95) * half  # the outermost slices hold little brain
    bend = _bend((shape[0] * FINE, shape[1] * FINE), pose.pixel_mm, rng)
    thin = chance(0.5, rng)
    thickness = 1.0 if thin else 1.5 + 3.5 * float(torch.rand((), generator=rng))  # 1 mm isotropic up to 5 mm thick
    return pose.cut(head, height, thickness, bend)


def _turned(order: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the directions of rows, columns and normal of a plane as rows (3, 3), with their random scales."""
    angles = (_TURN * torch.randn(3, generator=rng) / 2).clamp(-_TURN, _TURN)
    turn = torch.linalg.matrix_exp(
        torch.tensor(
            [
                [0.0, -float(angles[2]), float(angles[1])],
                [float(angles[2]), 0.0, -float(angles[0])],
                [-float(angles[1]), float(angles[0]), 0.0],
            ]
        )
    )
    scale = torch.exp((0.06 * torch.randn(3, generator=rng)).clamp(-0.12, 0.12))
    matrix: torch.Tensor = (torch.eye(3)[list(order)] @ turn) * scale
    return matrix


def _bend(shape: tuple[int, int], pixel_mm: float, rng: torch.Generator) -> Tensor:
    """Draw a smooth displacement in mm (3, h, w): folds differ between people, so no two slices are alike."""
    total = torch.zeros(3, *shape)
    for knot_mm, amplitude in ((40.0, 3.0), (14.0, 1.0)):
        strength = amplitude * float(torch.rand((), generator=rng))
        total += strength * smooth_field(shape, knot_mm / pixel_mm, rng, 3)
    return total


def _layers(thickness: float) -> Sequence[float]:
    """List layers through the thickness of a slice, mm from its centre, some 1.2 mm apart."""
    count = max(1, round(thickness / 1.2))
    return [thickness * ((index + 0.5) / count - 0.5) for index in range(count)]


def _nearest(volume: Tensor, points: Tensor) -> Tensor:
    """Look up the nearest voxels (h, w) of points in voxels (3, h, w); the border is repeated outside."""
    x, y, z = (points[axis].round().clamp_(0, volume.shape[axis] - 1).int() for axis in range(3))
    flat = (x * volume.shape[1] + y) * volume.shape[2] + z
    return volume.reshape(-1).index_select(0, flat.reshape(-1)).reshape(flat.shape)

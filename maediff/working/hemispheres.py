"""The other hemisphere: the midline of a slice, and the slice mirrored at it. [ours]

Brains are nearly symmetric, and most lesions lie on one side. Networks may see the mirror image as further channels
(`model.mirror`). It is made of what the network sees, noise included, so that it shows no more of what is to be
restored than the slice itself does. Maps may be weighed by it (`score.asymmetry_mm`), and intensities scaled by the
side that is less bright (`data.scaling: contralateral`).

The midline is found in each slice by itself. In an image turned so that its midline runs along the columns, row r and
row s - r are alike. The autoconvolution of each column, summed over all columns, therefore peaks at the s of the
midline, and is highest for the angle that turns the image so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from maediff.typing import BoolArray, FloatArray, FloatMap

ANGLES = tuple(math.radians(degrees) for degrees in range(-16, 17, 2))
"""Tilts of the midline that are tried, radians."""
_SIDE = 48  # longest side of the image in which the midline is sought, pixels
_LARGE = 0.4  # slices with this share of the largest slice's brain show where the midplane is
_SQUARE = 0.05  # pixels whose sides differ by less than this share are taken as square


def midlines(images: Tensor) -> Tensor:
    """Find the midline of axial or coronal slices.

    What is brighter than half of the usual tissue counts alike, so that a bright tumour does not pull the midline to
    itself.

    Args:
        images: (B, C, H, W), rows from one side of the head to the other (x), -1 outside the brain.

    Returns:
        (B, 2) float32: angle, radians, and distance of the midline from the middle of the image, pixels. Points (r, c)
        of the midline, measured from that middle, have ``r cos(angle) + c sin(angle) = distance``.
    """
    height = images.shape[2]
    mass = (images.float() + 1).clamp(0, 2).mean(1, keepdim=True)
    factor = math.ceil(max(mass.shape[2:]) / _SIDE)
    mass = F.pad(mass, (0, max(0, factor - mass.shape[3]), 0, max(0, factor - height)))  # slices of a row or two
    small = F.avg_pool2d(mass, factor + 2, factor, padding=1)  # a little blurred, so that turning blurs no more
    usual = small.square().sum((1, 2, 3), keepdim=True) / small.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    small = torch.minimum(small, usual / 2)
    count, rows = len(ANGLES), small.shape[2]
    angles = torch.tensor(ANGLES, device=images.device)
    turned = _turned(small.repeat_interleave(count, 0), angles.repeat(len(small)))
    spectrum = torch.fft.rfft(turned.squeeze(1), 2 * rows, dim=1)
    alike = torch.fft.irfft(spectrum.square().sum(2), 2 * rows, dim=1).unflatten(0, (-1, count))  # (B, angles, sums)
    # Turning blurs, and a blurred image is less like anything: what counts is the share of its own energy.
    best, place = (alike / turned.square().sum((1, 2, 3)).view(-1, count, 1).clamp(min=1e-6)).max(2)
    angle = best.argmax(1)
    own = torch.arange(len(small), device=images.device)
    distance = factor * (_peak(alike[own, angle], place[own, angle]) - (rows - 1)) / 2 + (factor * rows - height) / 2
    tilt = ANGLES[0] + (ANGLES[1] - ANGLES[0]) * _peak(best, angle)
    return torch.stack([tilt, distance], 1)


def other_side(images: Tensor) -> Tensor:
    """Mirror slices (B, C, H, W), each at its own midline."""
    return mirrored(images, midlines(images))


def mirrored(images: Tensor, midline: Tensor) -> Tensor:
    """Mirror slices (B, C, H, W) at their midlines (B, 2), see :func:`midlines`; -1 where nothing comes across."""
    angle, distance = (part[:, None, None] for part in midline.to(images.device).float().unbind(1))
    row, column = _coordinates(images)
    across = 2 * (row * angle.cos() + column * angle.sin() - distance)
    return _sampled(images, row - across * angle.cos(), column - across * angle.sin())


def axial_axes(affine: FloatArray) -> list[int]:
    """Return the axes of an array that run closest to z, x and y, in this order: transposed so, slices are axial."""
    worlds = [int(axis) for axis in io_orientation(affine)[:, 0]]
    return [worlds.index(world) for world in (2, 0, 1)]


def midplane(values: FloatMap, brain: BoolArray, spacing_mm: Sequence[float]) -> Tensor:
    """Find the midline of each axial slice, on one plane through all of them.

    Slices with little brain are often not symmetric, so that the plane goes through those with much of it: their median
    tilt, and the line through their places that is robust to outliers (Theil and Sen).

    Args:
        values: (Z, X, Y), -1 outside the brain.
        brain: (Z, X, Y).
        spacing_mm: Of slices, rows and columns. Only in square pixels is the tilt known.

    Returns:
        (Z, 2), as from :func:`midlines`.
    """
    area = brain.sum((1, 2))
    large = np.flatnonzero((area > 0) & (area >= _LARGE * area.max()))
    found = midlines(torch.from_numpy(values[large, None])).numpy()
    square = abs(spacing_mm[1] / spacing_mm[2] - 1) < _SQUARE
    tilt = float(np.median(found[:, 0])) if square else 0.0
    slope, intercept = 0.0, float(np.median(found[:, 1]))
    if len(large) > 2:
        slope, intercept = stats.theilslopes(found[:, 1], large)[:2]
    places = np.arange(len(values))
    return torch.from_numpy(np.stack([np.full(len(places), tilt), intercept + slope * places], 1)).float()


def one_side(values: FloatMap, brain: BoolArray, affine: FloatArray) -> BoolArray:
    """Return which voxels of a scan lie on one side of its midplane.

    Args:
        values: (X, Y, Z) in any storage order, -1 outside the brain.
        brain: (X, Y, Z).
        affine: Voxel to RAS mm (4, 4).
    """
    axes, spacing = axial_axes(affine), voxel_sizes(affine)
    stack: FloatMap = np.ascontiguousarray(np.transpose(values, axes))
    inside: BoolArray = np.ascontiguousarray(np.transpose(brain, axes))
    angle, distance = midplane(stack, inside, [spacing[axis] for axis in axes])[:, :, None, None].unbind(1)
    row, column = _coordinates(torch.from_numpy(stack[:, None]))
    side = (row * angle.cos() + column * angle.sin() < distance).numpy()
    found: BoolArray = np.transpose(side, np.argsort(axes))
    return found


def _turned(images: Tensor, angle: Tensor) -> Tensor:
    """Turn images (B, C, H, W) of mass about their middle, so that midlines of these angles run along the columns."""
    row, column = _coordinates(images)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return _sampled(images - 1, row * cosine - column * sine, row * sine + column * cosine) + 1


def _coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return row (H, 1) and column (1, W) of each pixel from the middle of the image."""
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device) - (height - 1) / 2
    column = torch.arange(width, device=images.device) - (width - 1) / 2
    return row[:, None], column[None]


def _sampled(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Read images (B, C, H, W) at pixels (B, H, W) measured from the middle; -1 beyond the edge."""
    height, width = images.shape[2:]
    grid = torch.stack(torch.broadcast_tensors(2 * column / width, 2 * row / height), 3)
    return F.grid_sample(images.float() + 1, grid, align_corners=False).sub(1).to(images.dtype)


def _peak(values: Tensor, place: Tensor) -> Tensor:
    """Refine the place (B,) of the highest of values (B, N) by the parabola through its neighbours."""
    if values.shape[1] < 3:  # a single row has no neighbours
        return place.to(values)
    inner = place.clamp(1, values.shape[1] - 2)[:, None]
    before, at, after = (values.gather(1, inner + step).squeeze(1) for step in (-1, 0, 1))
    bend = (before - 2 * at + after).clamp(max=-1e-12)
    shift = (0.5 * (before - after) / bend).clamp(-0.5, 0.5)
    return torch.where(inner.squeeze(1) == place, place + shift, place.to(values))

"""The other hemisphere: the midline of a slice, and the slice mirrored at it. [ours]

Brains are nearly symmetric, and most lesions lie on one side. Networks may see the mirror image as further channels
(`model.mirror`). It is made of what the network sees, noise included, so that it shows no more of what is to be
restored than the slice itself does. Maps may be weighed by it (`score.asymmetry_mm`).

The midline is found in each slice by itself. In an image turned so that its midline runs along the columns, row r and
row s - r are alike. The autoconvolution of each column, summed over all columns, therefore peaks at the s of the
midline, and is highest for the angle that turns the image so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ANGLES = tuple(math.radians(degrees) for degrees in range(-16, 17, 2))
"""Tilts of the midline that are tried, radians."""
_SIDE = 48  # longest side of the image in which the midline is sought, pixels


def midlines(images: Tensor, *, by_outline: bool = True) -> Tensor:
    """Find the midline of axial or coronal slices.

    Args:
        images: (B, C, H, W), rows from one side of the head to the other (x), -1 outside the brain.
        by_outline: What is brighter than half of the usual tissue counts alike, so that a bright tumour does not pull
            the midline to itself.

    Returns:
        (B, 2) float32: angle, radians, and distance of the midline from the middle of the image, pixels. Points (r, c)
        of the midline, measured from that middle, have ``r cos(angle) + c sin(angle) = distance``.
    """
    height = images.shape[2]
    mass = (images.float() + 1).clamp(0, 2).mean(1, keepdim=True)
    factor = math.ceil(max(mass.shape[2:]) / _SIDE)
    small = F.avg_pool2d(mass, factor + 2, factor, padding=1)  # a little blurred, so that turning blurs no more
    if by_outline:
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
    inner = place.clamp(1, values.shape[1] - 2)[:, None]
    before, at, after = (values.gather(1, inner + step).squeeze(1) for step in (-1, 0, 1))
    bend = (before - 2 * at + after).clamp(max=-1e-12)
    shift = (0.5 * (before - after) / bend).clamp(-0.5, 0.5)
    return torch.where(inner.squeeze(1) == place, place + shift, place.to(values))

"""Smooth random fields and resampling as products with small matrices, so that a sample takes milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def smooth_field(shape: tuple[int, int], knot: float, rng: torch.Generator, count: int = 1) -> Tensor:
    """Draw fields of zero mean and about unit variance, cubic B-splines of random knots.

    Args:
        shape: (H, W), pixels.
        knot: Distance between knots, pixels, 1 or more.
        rng: Source of randomness.
        count: Independent fields N.

    Returns:
        (N, H, W) float32.
    """
    rows, columns = (_spline(side, max(1.0, knot), float(torch.rand((), generator=rng))) for side in shape)
    coarse = torch.randn(count, rows.shape[1], columns.shape[1], generator=rng)
    return rows @ coarse @ columns.T * _UNIT**2


def drifting_fields(
    shape: tuple[int, int],
    knot: float,
    places: Sequence[float],
    step: float,
    rng: torch.Generator,
    *,
    count: int = 1,
    strength: float = 1.0,
) -> list[Tensor]:
    """Draw fields for each of several slices that change smoothly from slice to slice.

    Args:
        shape: (H, W), pixels.
        knot: Distance between knots in a slice, pixels.
        places: Where the slices lie, increasing.
        step: Distance after which the fields are new ones, in the unit of the places.
        rng: Source of randomness.
        count: Independent fields N.
        strength: Standard deviation, at the places of the knots.

    Returns:
        (N, H, W) float32 for each slice.
    """
    number = math.ceil((places[-1] - places[0]) / step) + 2
    knots = strength * torch.stack([smooth_field(shape, knot, rng, count) for _ in range(number)])
    fields = []
    for place in places:
        along = (place - places[0]) / step
        below = int(along)
        share = 0.5 - 0.5 * math.cos(math.pi * (along - below))
        fields.append(knots[below].lerp(knots[below + 1], share))
    return fields


_UNIT = math.sqrt(315 / 151)  # a cubic B-spline of unit-variance knots has the variance 151 / 315, averaged over places


def _spline(side: int, knot: float, shift: float) -> Tensor:
    """Evaluate cubic B-splines at pixels: (side, knots)."""
    count = math.ceil(side / knot) + 4
    distance = ((torch.arange(side) / knot + 1 + shift)[:, None] - torch.arange(count)[None]).abs()
    outer, inner = (2 - distance).clamp_(min=0), (1 - distance).clamp_(min=0)
    return (outer * outer * outer - 4 * inner * inner * inner) / 6  # truncated powers


def shrink(image: Tensor, width: tuple[float, float], factor: int) -> Tensor:
    """Blur with a Gaussian and average over squares, in one step.

    Args:
        image: (..., h, w).
        width: Standard deviation of the Gaussian along rows and columns, pixels, to tenths; 0 keeps an axis sharp.
        factor: Side of the squares, pixels; it divides h and w.

    Returns:
        (..., h / factor, w / factor). Edges are repeated.
    """
    rows, columns = (
        _shrinking(side, round(10 * sigma), factor) for side, sigma in zip(image.shape[-2:], width, strict=True)
    )
    return rows @ image @ columns.T


@lru_cache(maxsize=512)
def _shrinking(side: int, tenths: int, factor: int) -> Tensor:
    """Build the matrix (side / factor, side) of a blur and an average; each row sums to 1."""
    pixel, sigma = torch.arange(side), max(tenths, 0.1) / 10
    kernel = torch.exp(-0.5 * ((pixel[:, None] - pixel[None]) / sigma) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    return kernel.reshape(side // factor, factor, side).mean(1)

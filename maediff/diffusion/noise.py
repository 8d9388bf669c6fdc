"""Noise fields for the forward process, each of zero mean and unit variance, their seeds, and single random draws."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F


def generator(*key: object) -> torch.Generator:
    """Build a generator on the CPU that depends only on the key, such as (run seed, case, slice index).

    Example:
        >>> bool((torch.randn(3, generator=generator(0, "a")) == torch.randn(3, generator=generator(0, "a"))).all())
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def uniform(low: float, high: float, rng: torch.Generator) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def chance(probability: float, rng: torch.Generator) -> bool:
    """Return True with the given probability."""
    return float(torch.rand((), generator=rng)) < probability


def noise_field(kind: str, shape: tuple[int, ...], rng: torch.Generator, channels: int = 1) -> Tensor:
    """Draw one noise field, or one for each of several channels, one after another.

    Args:
        kind: "gaussian"; "simplex" (AnoDDPM, Wyatt et al. 2022: six octaves, persistence 0.8, base period 64 pixels);
            "coarse" (Kascenas et al. 2022: Gaussian noise on a grid 8 times coarser, interpolated); or "none": zeros,
            so that the slice fades to grey (cold diffusion, Bansal et al. 2023).
        shape: (H, W), pixels; "gaussian" and "none" also take (D, H, W), voxels.
        rng: Source of randomness.
        channels: Independent fields.

    Returns:
        (channels, *shape) float32.

    Raises:
        ValueError: Unknown kind, or one that is of slices only.
    """
    if channels > 1:
        return torch.cat([noise_field(kind, shape, rng) for _ in range(channels)])
    if kind == "none":
        return torch.zeros(1, *shape)
    if kind == "gaussian":
        return torch.randn(1, *shape, generator=rng)
    if kind not in {"coarse", "simplex"}:
        raise ValueError(f"noise {kind!r} is unknown; use 'gaussian', 'simplex', 'coarse' or 'none'")
    if len(shape) != 2:
        raise ValueError(f"noise {kind!r} is of slices, not of a volume {shape}; use 'gaussian' or 'none'")
    height, width = shape
    return coarse_noise((height, width), 8, rng) if kind == "coarse" else simplex_noise((height, width), rng)


def coarse_noise(shape: tuple[int, int], factor: int, rng: torch.Generator) -> Tensor:
    """Draw Gaussian noise on a coarse grid, interpolate it and shift it by a random part of a grid step.

    Returns:
        (1, H, W) float32, scaled to unit variance.
    """
    grid = [side // factor + 3 for side in shape]
    coarse = torch.randn(1, *grid, generator=rng)
    row, column = torch.randint(factor, 2 * factor, (2,), generator=rng).tolist()
    down, across = (
        _bicubic(grid[0], factor)[row : row + shape[0]],
        _bicubic(grid[1], factor)[column : column + shape[1]],
    )
    field = down @ coarse @ across.T
    return (field - field.mean()) / field.std().clamp(min=1e-6)


@functools.lru_cache(maxsize=256)
def _bicubic(points: int, factor: int) -> Tensor:
    """Build the matrix (points factor, points) that makes `points` values `factor` times as fine along an axis."""
    lines = torch.eye(points)[None, None]
    fine: Tensor = F.interpolate(lines, (points * factor, points), mode="bicubic", align_corners=False)[0, 0]
    return fine


def simplex_noise(
    shape: tuple[int, int], rng: torch.Generator, *, octaves: int = 6, persistence: float = 0.8, period: float = 64.0
) -> Tensor:
    """Sum octaves of two-dimensional simplex noise (Perlin 2001), with random gradients and offsets.

    Returns:
        (1, H, W) float32, scaled to zero mean and unit variance.
    """
    total = torch.zeros(shape)
    for octave in range(octaves):
        total += persistence**octave * _simplex(shape, period / 2**octave, rng)
    return ((total - total.mean()) / total.std().clamp(min=1e-6))[None]


def _simplex(shape: tuple[int, int], period: float, rng: torch.Generator) -> Tensor:
    """Evaluate one octave on the pixel grid: the sum over the three corners of each pixel's triangle."""
    table = torch.randperm(256, generator=rng)
    angle = torch.rand(256, generator=rng) * 2 * torch.pi
    shift = torch.rand(2, generator=rng) * 256
    y, x = torch.meshgrid(*(torch.arange(n) / period for n in shape), indexing="ij")
    x, y = x + shift[0], y + shift[1]
    skew, unskew = (3**0.5 - 1) / 2, (3 - 3**0.5) / 6
    i, j = (x + (x + y) * skew).floor(), (y + (x + y) * skew).floor()
    x0, y0 = x - i + (i + j) * unskew, y - j + (i + j) * unskew
    lower = (x0 > y0).float()
    value = torch.zeros(shape)
    for di, dj in ((torch.zeros_like(lower),) * 2, (lower, 1 - lower), (torch.ones_like(lower),) * 2):
        dx, dy = x0 - di + (di + dj) * unskew, y0 - dj + (di + dj) * unskew
        corner = angle[table[(((i + di).long() % 256) + table[(j + dj).long() % 256]) % 256]]
        fade = (0.5 - dx**2 - dy**2).clamp(min=0) ** 4
        value += fade * (corner.cos() * dx + corner.sin() * dy)
    return value

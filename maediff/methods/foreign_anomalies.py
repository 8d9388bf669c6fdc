"""DISYRE's synthetic anomalies: shape x foreign texture x a shift that touches some tissues only.

After Naval Marimont et al. (ISBI 2024, MICCAI 2024): `x_t = (1 - a m) x0 + a m x_foreign` with a shape `m` and a
severity `a`. Their slices have 128 x 128 pixels, so lengths here are relative to 128. Written from descriptions of the
papers; choices that they leave open are labelled [ours].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff.diffusion.noise import chance, coarse_noise, uniform

_SIDE = 128
"""Pixels per side of the slice that the lengths below refer to."""
_SIZE = (10.0, 44.0)
"""Sides of boxes and diameters of spheres, pixels of 128."""
_TURN = 15.0
"""Largest rotation of boxes, degrees."""
_GRAIN = (6, 24)
"""Grain of random blobs, pixels of 128. [ours]"""
_BLOBS = (0.03, 0.3)
"""Share of the brain that random blobs cover. [ours]"""
_BLURRED = 0.7
"""Share of shapes with a blurred rim."""
_RIM = (1.0, 4.0)
"""Standard deviation of the blur of a rim, pixels of 128. [ours]"""
_SHIFT = 1.0
"""Largest shift of intensities, either way, in working units. The units are our reading. [ours]"""
CLUSTERS = 5
"""Number of intensity clusters, some of which are shifted."""
_ROUNDS = 10


def corrupt(
    clean: Tensor, brain: Tensor, foreign: tuple[Tensor, Tensor], rng: torch.Generator, *, severity: float, clip: float
) -> Tensor:
    """Insert one anomaly into a healthy slice: `(1 - a m) x0 + a m x_foreign`.

    Args:
        clean: x0 (1, H, W), -1 outside the brain.
        brain: (1, H, W) bool.
        foreign: Another healthy slice and its brain, of the same shapes.
        rng: Source of randomness.
        severity: a, 0 to 1; 0 leaves the slice unchanged.
        clip: Upper limit of intensities.

    Returns:
        x_t (1, H, W); `clean` itself if there is no brain.
    """
    if not bool(brain.any()):
        return clean
    shape = draw_shape(brain, rng)
    where = (shape > 0) & brain
    matched = matched_texture(clean, *foreign, where)
    texture = clean + uniform(0, 1, rng) * (matched - clean)
    anomaly = texture + uniform(-_SHIFT, _SHIFT, rng) * some_tissues(clean, brain, where, rng)
    mixed = clean + severity * shape * (anomaly.clamp(-1, clip) - clean)
    return torch.where(brain, mixed, clean)


def draw_shape(brain: Tensor, rng: torch.Generator) -> Tensor:
    """Draw a box, a sphere's slice or random blobs with equal probability, seven in ten with a blurred rim.

    Args:
        brain: (1, H, W) bool; a box or a sphere has its centre in it, blobs cover a share of it.
        rng: Source of randomness.

    Returns:
        (1, H, W), 0 to 1.
    """
    size = (brain.shape[1], brain.shape[2])
    pixel = max(size) / _SIDE
    choice = int(torch.randint(3, (), generator=rng))
    if choice == 2:
        shape = _blobs(brain, pixel, rng)
    else:
        voxels = brain[0].nonzero()
        centre = voxels[int(torch.randint(len(voxels), (), generator=rng))]
        shape = _box(size, centre, pixel, rng) if choice == 0 else _sphere(size, centre, pixel, rng)
    if chance(_BLURRED, rng):
        shape = _blurred(shape, uniform(*_RIM, rng) * pixel)
    return shape


def matched_texture(clean: Tensor, foreign: Tensor, foreign_brain: Tensor, where: Tensor) -> Tensor:
    """Give a foreign texture the intensities beneath it, by rank: its brightest pixel gets the brightest of them.

    Args:
        clean: (1, H, W).
        foreign: Another slice (1, H, W).
        foreign_brain: Its brain (1, H, W) bool; if it has none, `clean` stays.
        where: (1, H, W) bool, pixels to match.
    """
    both = where & foreign_brain
    matched = clean.clone()
    found = torch.empty_like(clean[both])
    found[foreign[both].argsort(stable=True)] = clean[both].sort().values
    matched[both] = found
    return matched


def some_tissues(clean: Tensor, brain: Tensor, where: Tensor, rng: torch.Generator) -> Tensor:
    """Choose some of five intensity clusters of the brain: (1, H, W), 1 inside them.

    The clusters are those of k-means on the slice, started at quantiles. One of them lies in `where` (1, H, W), so that
    no anomaly is empty. [ours]
    """
    levels = clean[brain]
    places = (torch.arange(CLUSTERS) + 0.5) / CLUSTERS
    centres = torch.quantile(levels, places)
    for _ in range(_ROUNDS):
        nearest = _nearest(levels, centres)
        count = torch.bincount(nearest, minlength=CLUSTERS)
        total = torch.zeros(CLUSTERS).index_add_(0, nearest, levels)
        centres = torch.where(count > 0, total / count.clamp(min=1), centres)
    chosen = torch.rand(CLUSTERS, generator=rng) < 0.5
    clusters = _nearest(clean, centres)
    beneath = clusters[where]
    chosen[beneath[int(torch.randint(len(beneath), (), generator=rng))]] = True
    return chosen[clusters].float() * brain


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    return (values[..., None] - centres).abs().argmin(-1)


def _box(size: tuple[int, int], centre: Tensor, pixel: float, rng: torch.Generator) -> Tensor:
    rows, columns = _offsets(size, centre)
    angle = math.radians(uniform(-_TURN, _TURN, rng))
    along = rows * math.cos(angle) + columns * math.sin(angle)
    across = columns * math.cos(angle) - rows * math.sin(angle)
    half = [pixel * uniform(*_SIZE, rng) / 2 for _ in range(2)]
    return ((along.abs() <= half[0]) & (across.abs() <= half[1])).float()[None]


def _sphere(size: tuple[int, int], centre: Tensor, pixel: float, rng: torch.Generator) -> Tensor:
    rows, columns = _offsets(size, centre)
    radius = pixel * uniform(*_SIZE, rng) / 2
    return (rows**2 + columns**2 <= radius**2).float()[None]


def _blobs(brain: Tensor, pixel: float, rng: torch.Generator) -> Tensor:
    """Cut smooth noise at the level that leaves a random share of the brain."""
    grain = max(2, round(pixel * uniform(*_GRAIN, rng)))
    field = coarse_noise((brain.shape[1], brain.shape[2]), grain, rng)
    level = torch.quantile(field[brain], 1 - uniform(*_BLOBS, rng))
    return (field >= level).float()


def _offsets(size: tuple[int, int], centre: Tensor) -> tuple[Tensor, Tensor]:
    return (torch.arange(size[0]) - centre[0])[:, None].float(), (torch.arange(size[1]) - centre[1])[None].float()


def _blurred(shape: Tensor, deviation: float) -> Tensor:
    """Smooth (1, H, W) with a Gaussian of a standard deviation in pixels, rows then columns."""
    reach = max(1, math.ceil(3 * deviation))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = kernel / kernel.sum()
    rows = F.conv2d(shape[None], kernel[None, None, :, None], padding=(reach, 0))
    return F.conv2d(rows, kernel[None, None, None, :], padding=(0, reach))[0].clamp(0, 1)

"""Augmentation: random changes of training slices. [ours]"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff.diffusion.noise import chance, coarse_noise, uniform


def augment(image: Tensor, mask: Tensor, clip: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip left and right, turn, scale and shift, and change gamma, contrast, bias field and noise a little.

    Channels move together; each has its own gamma, contrast, bias field and noise. A slice and its neighbours (P
    slices) change together; each has its own noise.

    Args:
        image: (C, H, W) or (P, C, H, W), -1 outside the brain.
        mask: (1, H, W) or (P, 1, H, W) bool, the brain.
        clip: Upper limit of intensities.
        rng: Source of randomness.

    Returns:
        Changed image and mask, of the same shapes.
    """
    image, mask = _move(image, mask, rng)
    image = torch.cat([_shade(channel, rng) for channel in image.split(1, -3)], -3)
    return torch.where(mask, image.clamp(-1, clip), -1.0), mask


def _shade(image: Tensor, rng: torch.Generator) -> Tensor:
    """Change gamma, contrast, bias field and noise of a channel (1, H, W) or (P, 1, H, W)."""
    unit = ((image + 1) / 2).clamp(min=0)
    unit = unit ** math.exp(uniform(-0.2, 0.2, rng)) * uniform(0.9, 1.1, rng)
    unit = unit * (1 + uniform(0, 0.1, rng) * coarse_noise((unit.shape[-2], unit.shape[-1]), 32, rng).clamp(-2, 2))
    return unit * 2 - 1 + uniform(0, 0.04, rng) * torch.randn(image.shape, generator=rng)


def _move(image: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    angle, scale = math.radians(uniform(-12, 12, rng)), math.exp(uniform(-0.1, 0.1, rng))
    flip = -1.0 if chance(0.5, rng) else 1.0
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    # affine_grid orders coordinates (x, y) = (column, row); rows run left to right in the brain, so a flip negates y.
    theta = torch.tensor(
        [[cosine, -sine * flip, uniform(-0.06, 0.06, rng)], [sine, cosine * flip, uniform(-0.06, 0.06, rng)]]
    )
    both = torch.cat([image + 1, mask.float()], -3)
    slices = both.reshape(-1, *both.shape[-3:])
    grid = F.affine_grid(theta[None], [1, 1, *image.shape[-2:]], align_corners=False).expand(len(slices), -1, -1, -1)
    moved = F.grid_sample(slices, grid, align_corners=False).reshape(both.shape)
    return moved[..., :-1, :, :] - 1, moved[..., -1:, :, :] > 0.5

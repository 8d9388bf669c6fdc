"""Pixels folded into channels and back, of slices and volumes: the U-Net sees `patch` pixels of each axis as one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def folded(images: Tensor, patch: int) -> Tensor:
    """Fold blocks of pixels into channels.

    Args:
        images: (B, C, H, W) or (B, C, D, H, W), sides multiples of `patch`.
        patch: Side of a block, pixels.

    Returns:
        (B, C patch^n, H / patch, ...), the pixels of a block in their order; n dimensions. Channels last in memory.
    """
    if images.ndim == 4:
        stacked: Tensor = F.pixel_unshuffle(images, patch)
        return stacked.contiguous(memory_format=torch.channels_last)
    blocks = images
    for axis in (2, 4, 6):  # each axis becomes two: blocks, and pixels within a block
        blocks = blocks.unflatten(axis, (-1, patch))
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4).contiguous(memory_format=torch.channels_last_3d)


def unfolded(stacked: Tensor, patch: int) -> Tensor:
    """Undo :func:`folded`: (B, C patch^n, h, w) to (B, C, h patch, w patch), or the same of volumes."""
    if stacked.ndim == 4:
        images: Tensor = F.pixel_shuffle(stacked, patch)
        return images
    count, _, *shape = stacked.shape
    blocks = stacked.unflatten(1, (-1, patch, patch, patch)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    volumes: Tensor = blocks.reshape(count, -1, *(side * patch for side in shape))
    return volumes

"""Choose how many windows fit into a forward pass: memory per window, free memory, and out-of-memory errors."""

from __future__ import annotations

import torch

from maediff.config import Config
from maediff.hardware import available_bytes

_CPU_BUDGET = 512 * 2**20
"""Larger batches are no faster on CPUs, where caches and not kernel launches limit the speed."""
_CPU_WINDOWS, _GPU_WINDOWS = 32, 1024
_SHARE = 0.6
"""Share of the free memory that a batch may take; kernels need workspace and other programs need memory."""
_PLANES = 16
"""Float32 images per window and channel that the engine holds: input, noise, mask, weights, estimates."""

_NEIGHBOUR_PLANES = 4
"""The same per channel of neighbouring slices or the mirror image: whole, visible part, view, input of the U-Net."""


def window_bytes(config: Config, shape: tuple[int, int], *, bf16: bool) -> int:
    """Estimate the memory that a window takes in a forward pass without gradients.

    The estimate counts the U-Net's skip connections, which are all kept until the way up, four copies of the widest
    input of the finest level (the concatenation, its norm, the convolution's input and output) and the engine's images.

    Args:
        config: Widths, depths and the folding of pixels.
        shape: (H, W) of a slice, pixels.
        bf16: Whether values take two bytes instead of four.
    """
    model = config.model
    pixels = shape[0] * shape[1]
    finest = pixels / model.patch**2
    skips = sum((model.num_res_blocks + 1) * width * finest / 4**depth for depth, width in enumerate(model.channels))
    widest = 4 * (model.channels[0] + model.channels[1]) * finest
    beside = config.neighbour_channels + config.mirror_channels
    images = _PLANES * config.data.channel_count + _NEIGHBOUR_PLANES * beside
    return int((skips + widest) * (2 if bf16 else 4) + images * 4 * pixels)


def choose_batch(window: int, device: torch.device) -> int:
    """Choose the number of windows per forward pass from their estimated memory and the memory that is free now.

    Args:
        window: Bytes per window, see :func:`window_bytes`.
        device: Where to compute.

    Returns:
        Windows, at least 1. The maps do not depend on it.
    """
    free = available_bytes(device)
    if device.type == "cuda":
        return max(1, min(_GPU_WINDOWS, int(_SHARE * (free or 0)) // window))
    budget = _CPU_BUDGET if free is None else min(_CPU_BUDGET, int(_SHARE * free))
    return max(1, min(_CPU_WINDOWS, budget // window))


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error reports exhausted memory; PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)

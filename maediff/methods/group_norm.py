"""Group normalisation (Wu & He 2018) as fast as memory allows, where PyTorch's own is not.

PyTorch's kernel for bfloat16 in channels-last order walks over the few channels of a group, one pixel after another,
on CPUs: its backward pass takes several times as long as the same sums over whole rows of pixels, and on small maps so
does its forward pass. Here both are written as sums and products over rows; `python -m benchmarks.speed.group_norm`
says what a training step gains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_FULL_GROUP = 16
"""Channels per group from which PyTorch's kernel fills a vector register."""
_LARGE = 1024
"""Pixels from which PyTorch's forward pass walks over all channels instead of a group's."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation with the parameters of :class:`torch.nn.GroupNorm`, and its results but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each group of each image (B, C, H, W) to mean 0 and variance 1, then scale and shift channels."""
        if self.weight is None or not _slow(x, self.num_groups):
            return super().forward(x)
        normalised: Tensor = _GroupNorm.apply(x, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return normalised


def replace_group_norms(network: nn.Module) -> None:
    """Let every :class:`torch.nn.GroupNorm` of a network compute as :class:`GroupNorm` does; its parameters stay."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm


def _slow(x: Tensor, groups: int) -> bool:
    """Check whether PyTorch would take its slow kernel, forward or backward."""
    narrow = x.device.type == "cpu" and x.dtype is torch.bfloat16 and x.shape[1] < groups * _FULL_GROUP
    in_order = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return narrow and in_order and (x.requires_grad or x.shape[2] * x.shape[3] < _LARGE)


class _GroupNorm(torch.autograd.Function):
    """y = (x - mean) / std * weight + bias, and its derivative, for x in channels-last order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm) -> Tensor:
        batch, channels, height, width = x.shape
        groups, eps = norm.num_groups, norm.eps
        if height * width < _LARGE:
            y, mean, std = _normalise(x, weight.float(), bias.float(), groups, eps)
        else:
            y, mean, inverse = torch.native_group_norm(x, weight, bias, batch, channels, height * width, groups, eps)
            mean, std = mean.float()[..., None], 1 / inverse.float()[..., None]
        ctx.save_for_backward(x, weight, mean, std)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, std = ctx.saved_tensors
        groups, count = mean.shape[1], _group_size(x, mean.shape[1])
        centred, mean = _centred(x, mean)
        slopes = _rows(gradients[0].to(x.dtype))
        slope = _sums(slopes, x, groups)
        aligned = (_sums(slopes * centred, x, groups) - slope * mean) / std  # sum of dy (x - mean) / std
        weights = weight.float().view(groups, -1)
        level = (slope * weights).sum(-1, keepdim=True) / count
        tilt = (aligned * weights).sum(-1, keepdim=True) / count
        # dx = (weight dy - level - tilt (x - mean) / std) / std
        dx = torch.addcmul(_row((tilt * mean / std - level) / std, x), centred, _row(-tilt / std**2, x))
        dx = torch.addcmul(dx, slopes, _row(weights / std, x))
        dweight, dbias = aligned.sum(0).flatten(), slope.sum(0).flatten()
        return _image(dx, x), dweight.to(weight.dtype), dbias.to(weight.dtype), None


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and each group's mean and standard deviation (B, G, 1)."""
    count = _group_size(x, groups)
    mean = _sums(_rows(x), x, groups).sum(-1, keepdim=True) / count
    centred, rest = _centred(x, mean)
    squares = _sums(centred * centred, x, groups).sum(-1, keepdim=True) / count
    std = ((squares - rest**2).clamp(min=0) + eps).sqrt()
    scale = weight.view(groups, -1) / std
    y = torch.addcmul(_row(bias.view(groups, -1) - rest * scale, x), centred, _row(scale, x))
    return _image(y, x), mean, std


def _centred(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract each group's mean as bfloat16 holds it; return rows of pixels and what is left of the mean.

    Without it, sums of a group whose mean is many times its deviation would lose the deviation.
    """
    held = mean.to(x.dtype)
    return _rows(x) - _row(held, x), mean - held.float()


def _group_size(x: Tensor, groups: int) -> int:
    """Count the values of a group."""
    return x[0].numel() // groups


def _rows(x: Tensor) -> Tensor:
    """See (B, C, H, W) in channels-last order as rows of pixels (B, H, W C), without a copy."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """See rows of pixels as (B, C, H, W) again."""
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _sums(rows: Tensor, like: Tensor, groups: int) -> Tensor:
    """Sum rows of pixels over all pixels, in float32: (B, G, C / G)."""
    return rows.sum(1, dtype=torch.float32).view(len(rows), like.shape[3], groups, -1).sum(1)


def _row(values: Tensor, like: Tensor) -> Tensor:
    """Repeat a value for each channel (B, G, C / G), or for each group (B, G, 1), along a row: (B, 1, W C)."""
    batch, channels, _, width = like.shape
    groups = values.shape[1]
    one = values.expand(batch, groups, channels // groups).reshape(batch, 1, channels)
    return one.to(like.dtype).expand(-1, width, -1).reshape(batch, 1, -1)

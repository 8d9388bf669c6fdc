"""Side networks that steer a frozen reconstructor by a second image of the same patient.

The second image, the guide, is another co-registered contrast, or the scan's own :func:`edges`. A side network turns it
into residuals r_k of the U-Net's skip connections and of its middle, which are added to those of the MAE, m_k:

    h_k <- h_k + m_k + sum_a omega_a r_k^a

- ControlNet (Zhang et al., ICCV 2023): a copy of the U-Net's encoder reads the noised slice and the guide.
- T2I-Adapter (Mou et al., AAAI 2024): a light convolutional encoder reads the guide alone. Its features are added to
  what the encoder hands on to the decoder, not inside the encoder. [ours]

Both end in 1 x 1 convolutions that start at zero, so that a fresh side network leaves the reconstruction as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from monai.networks.nets import ControlNet as MonaiControlNet
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from maediff.config import ModelConfig

_PIXEL, _AROUND = 3, 7
"""Sides of the medians whose difference is the local contrast, pixels. [ours]"""
_SLICES = 8
"""Slices whose edges are computed at once; each takes the memory of 49 slices."""


class Residuals(NamedTuple):
    """What is added to the U-Net: one tensor per skip connection in MONAI's order, and one for the middle."""

    skips: tuple[Tensor, ...]
    middle: Tensor

    def plus(self, other: Residuals, omega: float) -> Residuals:
        """Add the residuals of a side network, scaled."""
        skips = tuple(own + omega * more for own, more in zip(self.skips, other.skips, strict=True))
        return Residuals(skips, self.middle + omega * other.middle)


def at_levels(levels: Sequence[Tensor], middle: Tensor, blocks: int) -> Residuals:
    """Add a feature map to each block of a level, in the order of MONAI's skip connections.

    MONAI adds one residual to each skip: the input convolution, every block, and every downsampling.

    Args:
        levels: Features of each level, the finest first: (B, width, h, w), or a zero scalar for none.
        middle: Features of the middle.
        blocks: Blocks per level.
    """
    nothing = middle.new_zeros(())
    skips = [nothing]
    for depth, features in enumerate(levels):
        skips += [features] * blocks
        if depth + 1 < len(levels):
            skips.append(nothing)
    return Residuals(tuple(skips), middle)


def edges(images: Tensor) -> Tensor:
    """Quantise the structure of images: 1 where the sign of the local contrast changes to the next pixel, else 0.

    The local contrast is the median of 3 x 3 pixels less that of 7 x 7. Only the order of intensities counts, since
    medians commute with monotone changes: the edges stay the same, bit for bit, under any strictly monotone change of
    intensities, rising or falling, and under any offset of a region except at its rim. How bright a lesion is, or
    whether it is bright at all, is therefore not in them. A linear high-pass can be inverted; this cannot. [ours]

    Args:
        images: (B, C, H, W).

    Returns:
        (B, C, H, W) of zeros and ones.
    """
    return torch.cat([_edges(part) for part in images.split(_SLICES)])


def _edges(images: Tensor) -> Tensor:
    sign = torch.sign(_median(images, _PIXEL) - _median(images, _AROUND))
    beyond = F.pad(sign, (0, 1, 0, 1), mode="replicate")
    change = (sign != beyond[..., 1:, :-1]) | (sign != beyond[..., :-1, 1:])
    return change.to(images)


def _median(images: Tensor, side: int) -> Tensor:
    """Take the median of `side` x `side` pixels around each pixel."""
    padded = F.pad(images, [side // 2] * 4, mode="replicate")
    around = padded.unfold(2, side, 1).unfold(3, side, 1).flatten(-2)
    return around.median(-1).values


class LightEncoder(nn.Module):
    """T2I-Adapter: encode the guide at every level of the U-Net.

    Args:
        model: Widths and the folding of pixels.
        guides: Channels of the guide.
    """

    def __init__(self, model: ModelConfig, guides: int) -> None:
        super().__init__()
        self.patch, self.blocks = model.patch, model.num_res_blocks
        before = [guides * model.patch**2, *model.channels[:-1]]
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1))
            for inner, outer in zip(before, model.channels, strict=True)
        )
        widths = [*model.channels, model.channels[-1]]
        self.exits = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, x: Tensor, t: Tensor, guide: Tensor, context: Tensor | None) -> Residuals:
        """Encode the guide (B, K, H, W); the noised slice, its timestep and the context are not looked at."""
        features = F.pixel_unshuffle(guide, self.patch)
        found = []
        for depth, level in enumerate(self.levels):
            features = level(F.avg_pool2d(features, 2) if depth else features)
            found.append(features)
        *exits, last = self.exits
        levels = [leave(features) for leave, features in zip(exits, found, strict=True)]
        return at_levels(levels, last(found[-1]), self.blocks)


class ControlNet(nn.Module):
    """ControlNet: a copy of the U-Net's encoder that reads the guide beside the noised slice.

    Args:
        model: Widths and the folding of pixels.
        guides: Channels of the guide.
        shared: Arguments of the U-Net's encoder, see :func:`encoder_arguments`.
    """

    def __init__(self, model: ModelConfig, guides: int, shared: dict[str, Any]) -> None:
        super().__init__()
        self.patch = model.patch
        self.copy = MonaiControlNet(
            **shared,
            conditioning_embedding_in_channels=guides * model.patch**2,
            conditioning_embedding_num_channels=(model.channels[0],),
        )

    def start_from(self, unet: DiffusionModelUNet) -> None:
        """Copy the weights of the U-Net's encoder."""
        own = self.copy.state_dict().keys()
        weights = {name: value for name, value in unet.state_dict().items() if name in own}
        self.copy.load_state_dict(weights, strict=False)

    def forward(self, x: Tensor, t: Tensor, guide: Tensor, context: Tensor | None) -> Residuals:
        """Encode the U-Net's input x, its timesteps and context (B, N, D) together with the guide (B, K, H, W)."""
        skips, middle = self.copy(x, t, F.pixel_unshuffle(guide, self.patch), context=context)
        return Residuals(tuple(skips), middle)


def build_side(kind: str, model: ModelConfig, channels: int, guides: int) -> LightEncoder | ControlNet:
    """Build a side network, "controlnet" or "t2i", for a U-Net of so many channels and a guide of so many."""
    if kind == "t2i":
        return LightEncoder(model, guides)
    return ControlNet(model, guides, encoder_arguments(model, channels))


def encoder_arguments(model: ModelConfig, channels: int, dims: int = 2) -> dict[str, Any]:
    """Return the arguments that MONAI's U-Net and ControlNet share: `patch` x `patch` pixels folded into channels.

    Args:
        model: Widths, depths and the kind of condition.
        channels: C, of a slice, its neighbours and its mirror image; the mask of the window comes beside them.
        dims: 2 for slices, 3 for volumes.
    """
    cross = model.condition == "cross_attention"
    return {
        "spatial_dims": dims,
        "in_channels": (channels + model.mask_channel) * model.patch**dims,
        "channels": model.channels,
        "num_res_blocks": model.num_res_blocks,
        "attention_levels": model.attention,
        "norm_num_groups": model.norm_groups,
        "num_head_channels": model.norm_groups,
        "with_conditioning": cross,
        "cross_attention_dim": model.mae_width if cross else None,
    }


def zeroed(module: nn.Conv2d | nn.Conv3d) -> nn.Conv2d | nn.Conv3d:
    """Start a convolution at zero, so that training begins from the network without it (ControlNet)."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module

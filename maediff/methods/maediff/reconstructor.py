"""The conditioned reconstructor: MONAI's diffusion U-Net, told by the MAE what surrounds the hidden patch.

Source: MAEDiff, arXiv 2401.10561: a partially perturbed slice goes in, conditioned on features of its visible region.
How the features enter is ours: as residuals added to the U-Net's skip connections at matching levels (as ControlNet and
T2I-Adapter do), or by cross-attention; `condition="none"` is the ablation. The mask as an input channel is ours too;
`mask_channel=False` leaves it out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from maediff.config import ModelConfig
from maediff.methods.maediff.mae import MaskedAutoencoder
from maediff.methods.maediff.partition import visible_cells


class Reconstruction(NamedTuple):
    """What the network returns: the diffusion prediction and the MAE's own image, both (B, C, H, W)."""

    prediction: Tensor
    mae_image: Tensor | None


class Reconstructor(nn.Module):
    """Predict the diffusion target of a partially noised slice.

    Args:
        config: Widths, depths and kind of condition.
        cell: Side of a sub-level cell, pixels.
        channels: C, channels of a slice, which are noised and reconstructed together.
    """

    def __init__(self, config: ModelConfig, cell: int, channels: int = 1) -> None:
        super().__init__()
        self.condition = config.condition
        self.patch = config.patch
        self.input_skip = config.input_skip
        self.mask_channel = config.mask_channel
        self.cell = cell
        self.channels = channels
        cross = config.condition == "cross_attention"
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=(channels + config.mask_channel) * self.patch**2,
            out_channels=channels * self.patch**2,
            channels=config.channels,
            num_res_blocks=config.num_res_blocks,
            attention_levels=config.attention,
            norm_num_groups=config.norm_groups,
            num_head_channels=config.norm_groups,
            with_conditioning=cross,
            cross_attention_dim=config.mae_width if cross else None,
        )
        self.blocks = config.num_res_blocks
        self.mae = MaskedAutoencoder(cell, config, channels) if config.condition != "none" else None
        self.wants_pixels = config.condition != "none" and config.mae_loss_weight > 0
        residual = config.condition == "residual"
        widths = [*config.channels, config.channels[-1]] if residual else []
        first = self._first_matching_level(len(config.channels))
        self.adapters = nn.ModuleDict(
            {
                str(depth): _zeroed(nn.Conv2d(config.mae_width, width, 1))
                for depth, width in enumerate(widths)
                if depth >= first
            }
        )

    def features(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """Compute the MAE's features of the visible region, which are the same at every timestep.

        Args:
            image: (B, C, H, W); what lies inside the patch is not looked at.
            mask: (B, 1, H, W), M: 1 inside the patch.

        Returns:
            (B, D, r, r'); None without a condition.
        """
        return None if self.mae is None else self.mae((1 - mask) * image, visible_cells(mask, self.cell))

    def forward(self, perturbed: Tensor, mask: Tensor, t: Tensor, features: Tensor | None = None) -> Reconstruction:
        """Predict the target of every pixel.

        Args:
            perturbed: (B, C, H, W), ``M x_t + (1 - M) x0``; H and W multiples of the cell and of the U-Net's factor.
            mask: (B, 1, H, W), M: 1 inside the patch.
            t: (B,) timesteps, 1 to T.
            features: From :meth:`features`, where they are at hand: of the same cells, or by cross-attention of more.
        """
        if features is None:
            features = self.features(perturbed, mask)
        seen = torch.cat([perturbed, mask], 1) if self.mask_channel else perturbed
        stacked = F.pixel_unshuffle(seen, self.patch)
        output = self._denoise(stacked.contiguous(memory_format=torch.channels_last), t, features)
        image = None
        if self.mae is not None and self.wants_pixels and self.training and features is not None:
            image = self.mae.pixels(features)
        prediction = F.pixel_shuffle(output, self.patch)
        return Reconstruction(prediction + perturbed if self.input_skip else prediction, image)

    def _denoise(self, x: Tensor, t: Tensor, features: Tensor | None) -> Tensor:
        output: Tensor
        if features is None:
            output = self.unet(x, t)
        elif self.condition == "cross_attention":
            output = self.unet(x, t, context=features.flatten(2).transpose(1, 2))
        else:
            residuals, middle = self._residuals(features, (x.shape[2], x.shape[3]))
            output = self.unet(x, t, down_block_additional_residuals=residuals, mid_block_additional_residual=middle)
        return output

    def _first_matching_level(self, levels: int) -> int:
        """Find the finest U-Net level that is at most twice as fine as the cells; the coarsest if none is."""
        pixels = [self.patch * 2**depth for depth in range(levels)]
        return next((depth for depth, side in enumerate(pixels) if 2 * side >= self.cell), levels - 1)

    def _residuals(self, features: Tensor, shape: tuple[int, int]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Project the feature map to the matching levels, in the order of MONAI's skip connections.

        MONAI adds one residual to each skip (input convolution, every block, every downsampling) and one to the middle.
        """
        levels = len(self.unet.block_out_channels)
        nothing = features.new_zeros(())
        skips = [nothing]
        for depth in range(levels):
            here = self._project(str(depth), features, shape, depth)
            skips += [here] * self.blocks
            if depth + 1 < levels:
                skips.append(nothing)
        return tuple(skips), self._project(str(levels), features, shape, levels - 1)

    def _project(self, name: str, features: Tensor, shape: tuple[int, int], depth: int) -> Tensor:
        if name not in self.adapters:
            return features.new_zeros(())
        return _resize(self.adapters[name](features), (shape[0] >> depth, shape[1] >> depth))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Start an adapter at zero, so that training begins from the unconditioned U-Net (ControlNet)."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module

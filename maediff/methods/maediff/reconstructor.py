"""The conditioned reconstructor: MONAI's diffusion U-Net, conditioned by the MAE on what surrounds the hidden patch.

Source: MAEDiff, arXiv 2401.10561: the input is a partly perturbed slice, conditioned on features of its visible part.
How the features enter is ours: as residuals added to the U-Net's skip connections at matching levels (as ControlNet and
T2I-Adapter do), or by cross-attention; `condition="none"` is the ablation. The mask as an input channel is ours too;
`mask_channel=False` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config, ModelConfig
from maediff.methods.base import Method
from maediff.methods.maediff.loss import Reconstruction, losses
from maediff.methods.maediff.mae import MaskedAutoencoder
from maediff.methods.maediff.partition import visible_cells
from maediff.methods.maediff.sliding import SlidingReconstructor
from maediff.methods.objective import read_output


class Reconstructor(Method):
    """Predict the diffusion target of a partially noised slice.

    Args:
        config: Widths, depths and kind of condition (`model`), side of a sub-level cell (`partition.cell`), the number
            C of channels that are noised and reconstructed together (`data.channels`), and the objective (`diffusion`).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)
        self.diffusion = config.diffusion
        self.train_config = config.train
        self.condition = config.model.condition
        self.patch = config.model.patch
        self.input_skip = config.model.input_skip
        self.gate = config.model.gate
        self.mask_channel = config.model.mask_channel
        self.cell = config.partition.cell
        self.channels = config.data.channel_count
        self.blocks = config.model.num_res_blocks
        self.wants_pixels = self.condition != "none" and config.model.mae_loss_weight > 0
        self.uses_every_parameter = self.condition == "none" or self.wants_pixels
        self.unet = _unet(config.model, self.channels)
        self.mae = MaskedAutoencoder(self.cell, config.model, self.channels) if self.condition != "none" else None
        self.adapters = self._adapters(config.model)

    def _adapters(self, config: ModelConfig) -> nn.ModuleDict:
        """Build the projections of the MAE's features to the matching U-Net levels; empty unless they are residuals."""
        if config.condition != "residual":
            return nn.ModuleDict()
        widths = [*config.channels, config.channels[-1]]
        finest = self._first_matching_level(len(config.channels))
        return nn.ModuleDict(
            {str(depth): _zeroed(nn.Conv2d(config.mae_width, widths[depth], 1)) for depth in range(finest, len(widths))}
        )

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the diffusion loss and the MAE's auxiliary loss, both within the patch."""
        return losses(self, batch, self.abar, self.diffusion, self.train_config)

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> SlidingReconstructor:
        """Return the engine that slides the patch over each slice."""
        return SlidingReconstructor(self, config, device, bf16=bf16)

    def features(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """Compute the MAE's features of the visible region, which are the same at every timestep.

        Args:
            image: (B, C, H, W); the inside of the patch is ignored.
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
            features: From :meth:`features`, if already computed: of the same cells, or with cross-attention of more.
        """
        if features is None:
            features = self.features(perturbed, mask)
        seen = torch.cat([perturbed, mask], 1) if self.mask_channel else perturbed
        stacked = F.pixel_unshuffle(seen, self.patch)
        output = self._denoise(stacked.contiguous(memory_format=torch.channels_last), t, features)
        image = None
        if self.mae is not None and self.wants_pixels and self.training and features is not None:
            image = self.mae.pixels(features)
        unfolded = F.pixel_shuffle(output, self.patch)
        prediction, gate = read_output(unfolded, perturbed, skip=self.input_skip, gated=self.gate)
        return Reconstruction(prediction, image, gate)

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


def _unet(config: ModelConfig, channels: int) -> DiffusionModelUNet:
    """Build MONAI's U-Net over `patch` x `patch` pixels folded into channels, with the window's mask beside them."""
    cross = config.condition == "cross_attention"
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=(channels + config.mask_channel) * config.patch**2,
        out_channels=(2 if config.gate else 1) * channels * config.patch**2,
        channels=config.channels,
        num_res_blocks=config.num_res_blocks,
        attention_levels=config.attention,
        norm_num_groups=config.norm_groups,
        num_head_channels=config.norm_groups,
        with_conditioning=cross,
        cross_attention_dim=config.mae_width if cross else None,
    )


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Start an adapter at zero, so that training begins from the unconditioned U-Net (ControlNet)."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module

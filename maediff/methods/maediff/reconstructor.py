"""The conditioned reconstructor: MONAI's diffusion U-Net, conditioned by the MAE on what surrounds the hidden patch.

Source: MAEDiff, arXiv 2401.10561: the input is a partly perturbed slice, conditioned on features of its visible part.
How the features enter is ours: as residuals added to the U-Net's skip connections at matching levels (as ControlNet and
T2I-Adapter do), or by cross-attention; `condition="none"` is the ablation. The mask as an input channel is ours too;
`mask_channel=False` leaves it out. Side networks may steer it by a second image, see
:mod:`maediff.methods.maediff.structure`, and it may see neighbouring slices, see :mod:`maediff.methods.neighbours`, and
the slice's mirror image, see :mod:`maediff.working.hemispheres`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config, ModelConfig
from maediff.hardware import channels_last
from maediff.methods.base import Engine, Method
from maediff.methods.maediff.folding import folded, unfolded
from maediff.methods.maediff.loss import Reconstruction, losses
from maediff.methods.maediff.mae import MaskedAutoencoder
from maediff.methods.maediff.partition import visible_cells
from maediff.methods.maediff.sliding import SlidingReconstructor
from maediff.methods.maediff.structure import (
    ControlNet,
    Residuals,
    at_levels,
    build_side,
    edges,
    encoder_arguments,
    zeroed,
)
from maediff.methods.objective import read_output
from maediff.working.hemispheres import other_side


class Reconstructor(Method):
    """Predict the diffusion target of a partially noised slice.

    Args:
        config: Widths, depths and kind of condition (`model`), side of a sub-level cell (`partition.cell`), the number
            C of channels that are noised and reconstructed together (`data.channels`), the K channels of neighbouring
            slices (`data.neighbours`), the objective (`diffusion`), and the side networks (`structure`).

    Attributes:
        dims: 2 for slices (H, W); 3 for volumes (D, H, W), see :mod:`maediff.methods.volumetric`.
    """

    dims: ClassVar[int] = 2

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
        self.mirror = bool(config.mirror_channels)
        self.cell = config.partition.cell
        self.channels = config.reconstructed_channels
        self.neighbour_channels = config.neighbour_channels
        self.blocks = config.model.num_res_blocks
        self.wants_pixels = self.condition != "none" and config.model.mae_loss_weight > 0
        self.uses_every_parameter = self.condition == "none" or self.wants_pixels
        beside = self.neighbour_channels + config.mirror_channels
        self.unet = _unet(config.model, self.channels, beside, self.dims)
        conditioned, widths = self.condition != "none", (self.channels, self.neighbour_channels)
        self.mae = MaskedAutoencoder(self.cell, config.model, *widths, dims=self.dims) if conditioned else None
        self.adapters = self._adapters(config.model)
        self.guide_channels = config.guide_channels
        self.omega = config.structure.factors
        self.structure = nn.ModuleList(
            build_side(kind, config.model, self.channels + beside, len(own))
            for kind, own in zip(config.structure.kinds, self.guide_channels, strict=True)
        )

    def _adapters(self, config: ModelConfig) -> nn.ModuleDict:
        """Build the projections of the MAE's features to the matching U-Net levels; empty unless they are residuals."""
        if config.condition != "residual":
            return nn.ModuleDict()
        widths = [*config.channels, config.channels[-1]]
        finest = self._first_matching_level(len(config.channels))
        convolution = nn.Conv3d if self.dims == 3 else nn.Conv2d
        return nn.ModuleDict(
            {
                str(depth): zeroed(convolution(config.mae_width, widths[depth], 1))
                for depth in range(finest, len(widths))
            }
        )

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the diffusion loss and the MAE's auxiliary loss, both within the patch."""
        guide = self.guides(batch["image"])
        if guide is None:
            return losses(self, batch, self.abar, self.diffusion, self.train_config)
        own = {name: batch[name][:, : self.channels] for name in ("image", "clean", "noise")}
        return losses(partial(self, guide=guide), {**batch, **own}, self.abar, self.diffusion, self.train_config)

    def guides(self, images: Tensor) -> Tensor | None:
        """Compute what the side networks see of slices (B, C + further channels, H, W): (B, K, H, W)."""
        if not self.structure:
            return None
        wanted = [index for own in self.guide_channels for index in own]
        if max(wanted) >= images.shape[1]:
            images = torch.cat([images, edges(images[:, : self.channels])], 1)
        return images[:, wanted]

    def start_side(self) -> list[nn.Parameter]:
        """Freeze all but the last side network, start it from the U-Net, and return its parameters."""
        self.requires_grad_(False)
        side = self.structure[-1].requires_grad_(True)
        if isinstance(side, ControlNet):
            side.start_from(self.unet)
        return list(side.parameters())

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> Engine:
        """Return the engine that slides the patch over each slice."""
        return SlidingReconstructor(self, config, device, bf16=bf16)

    def features(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """Compute the MAE's features of the visible region, which are the same at every timestep.

        Args:
            image: (B, C + K, H, W), neighbours behind the slice; the inside of the patch is ignored in all of them.
            mask: (B, 1, H, W), M: 1 inside the patch.

        Returns:
            (B, D, r, r'); None without a condition.
        """
        return None if self.mae is None else self.mae((1 - mask) * image, visible_cells(mask, self.cell))

    def forward(
        self,
        perturbed: Tensor,
        mask: Tensor,
        t: Tensor,
        features: Tensor | None = None,
        *,
        guide: Tensor | None = None,
    ) -> Reconstruction:
        """Predict the target of every pixel.

        Args:
            perturbed: (B, C + K, H, W), ``M x_t + (1 - M) x0`` and behind it the neighbours, whose inside of the patch
                is ignored; H and W multiples of the cell and of the U-Net's factor.
            mask: (B, 1, H, W), M: 1 inside the patch.
            t: (B,) timesteps, 1 to T.
            features: From :meth:`features`, if already computed: of the same cells, or with cross-attention of more.
            guide: (B, K, H, W), from :meth:`guides`; None without side networks.
        """
        if features is None:
            features = self.features(perturbed, mask)
        own, seen = perturbed[:, : self.channels], perturbed
        if self.neighbour_channels:
            seen = torch.cat([own, (1 - mask) * perturbed[:, self.channels :]], 1)
        seen = torch.cat([seen, other_side(own)], 1) if self.mirror else seen
        seen = torch.cat([seen, mask], 1) if self.mask_channel else seen
        output = self._denoise(folded(seen, self.patch), t, features, guide)
        image = None
        if self.mae is not None and self.wants_pixels and self.training and features is not None:
            image = self.mae.pixels(features)
        prediction, gate = read_output(unfolded(output, self.patch), own, skip=self.input_skip, gated=self.gate)
        return Reconstruction(prediction, image, gate)

    def _denoise(self, x: Tensor, t: Tensor, features: Tensor | None, guide: Tensor | None) -> Tensor:
        context: Tensor | None = None
        added: Residuals | None = None
        if features is not None and self.condition == "cross_attention":
            context = features.flatten(2).transpose(1, 2)
        elif features is not None:
            added = self._residuals(features, x.shape[2:])
        if guide is not None:
            added = self._steered(added, x, t, guide, context)
        output: Tensor
        if added is None:
            output = self.unet(x, t, context=context)
        else:
            output = self.unet(
                x,
                t,
                context=context,
                down_block_additional_residuals=added.skips,
                mid_block_additional_residual=added.middle,
            )
        return output

    def _steered(
        self, added: Residuals | None, x: Tensor, t: Tensor, guide: Tensor, context: Tensor | None
    ) -> Residuals | None:
        """Add the residuals of each side network, scaled by its factor; one with factor 0 does not run."""
        shares = guide.split([len(own) for own in self.guide_channels], 1)
        for side, omega, share in zip(self.structure, self.omega, shares, strict=True):
            if omega:
                if added is None:
                    nothing = x.new_zeros(())
                    added = at_levels([nothing] * len(self.unet.block_out_channels), nothing, self.blocks)
                added = added.plus(side(x, t, share, context), omega)
        return added

    def _first_matching_level(self, levels: int) -> int:
        """Find the finest U-Net level that is at most twice as fine as the cells; the coarsest if none is."""
        pixels = [self.patch * 2**depth for depth in range(levels)]
        return next((depth for depth, side in enumerate(pixels) if 2 * side >= self.cell), levels - 1)

    def _residuals(self, features: Tensor, shape: Sequence[int]) -> Residuals:
        """Project the feature map to the matching levels."""
        levels = len(self.unet.block_out_channels)
        found = [self._project(str(depth), features, shape, depth) for depth in range(levels)]
        return at_levels(found, self._project(str(levels), features, shape, levels - 1), self.blocks)

    def _project(self, name: str, features: Tensor, shape: Sequence[int], depth: int) -> Tensor:
        if name not in self.adapters:
            return features.new_zeros(())
        return _resize(self.adapters[name](features), [side >> depth for side in shape])


def _unet(config: ModelConfig, channels: int, beside: int, dims: int) -> DiffusionModelUNet:
    """Build MONAI's U-Net over blocks of pixels folded into channels, with the window's mask beside them."""
    return DiffusionModelUNet(
        **encoder_arguments(config, channels + beside, dims),
        out_channels=(2 if config.gate else 1) * channels * config.patch**dims,
    )


def _resize(x: Tensor, size: list[int]) -> Tensor:
    x = F.interpolate(x, size, mode="trilinear" if x.ndim == 5 else "bilinear", align_corners=False)
    return x.contiguous(memory_format=channels_last(x.ndim - 2))

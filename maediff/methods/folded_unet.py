"""The U-Net of the baselines, and the slice sizes that it divides."""

from __future__ import annotations

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from maediff.config import ModelConfig
from maediff.working.hemispheres import other_side


class FoldedUNet(nn.Module):
    """MONAI's diffusion U-Net with `model.patch` x `model.patch` pixels folded into channels, as MAEDiff's is.

    With `model.mirror` it also sees the mirror image of the first channel, see :mod:`maediff.working.hemispheres`.

    Args:
        config: Widths and depths.
        channels: (in, out) channels of the images.
        embedding: Size of a vector per slice that is added to the embedding of the timestep; 0: none.
        latent: The images are codes of an autoencoder: no pixels are folded, and nothing is mirrored.
    """

    def __init__(
        self, config: ModelConfig, channels: tuple[int, int] = (1, 1), embedding: int = 0, *, latent: bool = False
    ) -> None:
        super().__init__()
        self.patch = 1 if latent else config.patch
        self.mirror = config.mirror and not latent
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=(channels[0] + self.mirror) * self.patch**2,
            out_channels=channels[1] * self.patch**2,
            channels=config.channels,
            num_res_blocks=config.num_res_blocks,
            attention_levels=config.attention,
            norm_num_groups=config.norm_groups,
            num_head_channels=config.norm_groups,
            num_class_embeds=1 if embedding else None,
        )
        if embedding:
            self.unet.add_module("class_embedding", nn.Linear(embedding, 4 * config.channels[0]))

    def forward(self, x: Tensor, t: Tensor, vector: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """Predict (B, out, H, W).

        Args:
            x: (B, in, H, W).
            t: (B,) timesteps.
            vector: (B, E), with an embedding.
            context: (B, N, D) tokens, if the U-Net attends to some (:mod:`maediff.methods.cross_attention`).
        """
        seen = torch.cat([x, other_side(x[:, :1])], 1) if self.mirror else x
        folded = F.pixel_unshuffle(seen, self.patch)
        return F.pixel_shuffle(self.unet(folded, t, context=context, class_labels=vector), self.patch)


def unet_multiple(config: ModelConfig) -> int:
    """Return the number that the sides of a slice must be multiples of for :class:`FoldedUNet`."""
    return int(config.patch * 2 ** (len(config.channels) - 1))


def padded_shape(shape: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Round the sides of a slice up to a multiple.

    Example:
        >>> padded_shape((30, 32), 8)
        (32, 32)
    """
    return (shape[0] + -shape[0] % multiple, shape[1] + -shape[1] % multiple)


def padded(images: Tensor, multiple: int, value: float = -1.0) -> Tensor:
    """Pad (B, 1, H, W) with background, or another value, at the far ends, to multiples."""
    height, width = padded_shape((images.shape[2], images.shape[3]), multiple)
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]), value=value)

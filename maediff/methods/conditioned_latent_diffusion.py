"""Latent diffusion whose U-Net is told, by cross-attention, what surrounds the part that it makes healthy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maediff import diffusion
from maediff.config import Config
from maediff.methods.base import Draw
from maediff.methods.cross_attention import attend
from maediff.methods.folded_unet import padded
from maediff.methods.latent_diffusion import LatentDiffusion
from maediff.methods.maediff.mae import MaskedAutoencoder, sincos_position
from maediff.methods.maediff.partition import Blend, blend_weight, cut, visible_cells, window_grid, window_masks

_QUANTILES = 9
"""Quantiles of the contrast token: the deciles."""


class ConditionedLatentDiffusion(LatentDiffusion):
    """Latent diffusion, conditioned by cross-attention (Rombach et al. 2022, section 3.3) on the visible cells.

    The latent U-Net eps_theta(z_t, t, c) attends to the tokens c (:mod:`maediff.methods.cross_attention`):

    - f_i + p_i, one for each cell i: MAEDiff's masked autoencoder f of the slice, of which a window M is hidden, and
      the position p_i of the cell;
    - the contrast: an embedding of the deciles of the visible brain. A name of the contrast would not do: a scan comes
      without one at inference, training on label maps draws contrasts that have none, and a wrong one would mislead;
    - the severity: an embedding of a_t = min(1, t / T'), with T' the last of `diffusion.train_timesteps`, as in DISYRE;
      it is the level of the noise and, on slices drawn from label maps, of the lesions.

    A lesion must not come back through the condition. In training M is the window of the sample, and the diffusion loss
    counts inside it alone. In inference the windows of `partition.window` and `partition.stride` are hidden in turn,
    the noised latent image being the same, and each latent pixel is averaged (`infer.blend`) over the passes in which
    it was hidden. Neither the MAE nor the deciles see a pixel of the window: inside it, the scan is known through z_t
    alone, as without a condition. What of a lesion lies outside the window is seen, as in MAEDiff. If all cells were
    visible, a network trained on healthy slices could copy every lesion from its token.

    The MAE's auxiliary loss is MAEDiff's (`model.mae_loss_weight`). Further differences from the original are those of
    `LatentDiffusion`; its tokens come from a text or a layout, ours are trained with the U-Net from the start. [ours]
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model, self.partition, self.cell = config.model, config.partition, config.partition.cell
        self.blend = config.infer.blend
        self.last = config.diffusion.train_timesteps[1]
        self.multiple = math.lcm(self.multiple, self.cell)
        self.wants_pixels = model.mae_loss_weight > 0
        attend(self.net.unet, model, self.fold / self.cell)
        self.mae = MaskedAutoencoder(self.cell, model)
        self.contrast = _embedding(_QUANTILES, model.mae_width)
        self.severity = _embedding(1, model.mae_width)

    def hidden(self, batch: Mapping[str, Tensor], image: Tensor) -> Tensor:
        """Hide the window of each sample."""
        return padded(batch["mask"], self.multiple, 0.0)

    def features(self, image: Tensor, mask: Tensor) -> Tensor:
        """Compute the tokens of the cells and of the contrast, which are the same at every timestep.

        Args:
            image: (B, 1, H, W); what is hidden is ignored.
            mask: (B, 1, H, W), 1 where hidden; H and W multiples of the cell.

        Returns:
            (B, N + 1, D): N cells row by row, then the contrast.
        """
        cells: Tensor = self.mae((1 - mask) * image, visible_cells(mask, self.cell))
        position = sincos_position((cells.shape[2], cells.shape[3]), cells.shape[1]).to(cells)
        visible = (image > -1) & (mask == 0)
        contrast = self.contrast(quantiles(image, visible, _QUANTILES))
        return torch.cat([cells.flatten(2).transpose(1, 2) + position, contrast[:, None].to(cells)], 1)

    def context(self, features: Tensor | None, t: Tensor) -> Tensor | None:
        """Append the token of the severity at timesteps (B,): (B, N + 2, D)."""
        if features is None:
            return None
        severity: Tensor = self.severity((t[:, None] / self.last).clamp(max=1.0))
        return torch.cat([features, severity[:, None].to(features)], 1)

    def auxiliary(self, features: Tensor | None, clean: Tensor, hidden: Tensor) -> Tensor:
        """Return the mean absolute error of the MAE's own image in what is hidden; 0 if it has no weight."""
        if features is None or not self.wants_pixels:
            return clean.new_zeros(())
        grid = (clean.shape[2] // self.cell, clean.shape[3] // self.cell)
        image = self.mae.pixels(features[:, :-1].transpose(1, 2).unflatten(2, grid))
        return diffusion.x0_loss(image.float(), clean, hidden, "l1")

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Encode, then for each window noise to level t and sample back to 0 while it is hidden; blend and decode."""
        latent = self.encoded(images)
        every = torch.arange(len(images), device=images.device)
        window, stride, shape = self.partition.window, self.partition.stride, (images.shape[2], images.shape[3])
        side = window // self.fold
        weight = blend_weight(side, self.blend).to(latent).expand(len(images), 1, -1, -1)
        healthy = Blend(latent)
        for corner in window_grid(shape, window, stride).to(images.device):
            hidden = window_masks(corner.expand(len(images), 2), window, shape)
            found = self.walk(latent, t, draw, self.features(images, hidden))
            origin = (corner // self.fold).expand(len(images), 2)
            healthy.add(cut(found, every, origin, (side, side)), weight, every, origin)
        return self.decoded(healthy.average())


def quantiles(images: Tensor, mask: Tensor, count: int) -> Tensor:
    """Compute evenly spaced quantiles of masked pixels: pixels of the nearest rank.

    Args:
        images: (B, 1, H, W).
        mask: (B, 1, H, W) bool; if it is empty, the quantiles are -1, the background.
        count: K; the levels are 1 / (K + 1) to K / (K + 1).

    Returns:
        (B, K), rising.
    """
    ranked = images.masked_fill(~mask, torch.inf).flatten(1).sort(1).values
    pixels = mask.flatten(1).sum(1, keepdim=True)
    levels = torch.arange(1, count + 1, device=images.device) / (count + 1)
    rank = (levels * (pixels - 1).clamp(min=0)).round().long()
    return torch.where(pixels > 0, ranked.gather(1, rank), -1.0)


def _embedding(numbers: int, width: int) -> nn.Sequential:
    """Build a small network from (B, numbers) to one token (B, width)."""
    return nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width))

"""Masked autoencoder over sub-level cells; its feature map conditions the denoising U-Net.

Source: MAEDiff, arXiv 2401.10561, after He et al. 2022 (MAE). The encoder computes on visible cells only; a light
decoder with mask tokens returns a full feature map. Sizes, the global token and fixed sine-cosine positions are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maediff.config import ModelConfig
from maediff.methods.maediff.folding import unfolded


class MaskedAutoencoder(nn.Module):
    """Encode the visible cells of a slice and decode a feature map of all cells.

    Args:
        cell: Side of a cell, pixels.
        config: Widths and depths.
        channels: C, channels of a slice.
        neighbours: K, channels of neighbouring slices behind them, which are encoded and not decoded.
        dims: 2 for slices (H, W); 3 for volumes (D, H, W), whose cells are cubes.
    """

    def __init__(
        self, cell: int, config: ModelConfig, channels: int = 1, neighbours: int = 0, *, dims: int = 2
    ) -> None:
        super().__init__()
        width = config.mae_width
        self.cell = cell
        self.embed = (nn.Conv3d if dims == 3 else nn.Conv2d)(channels + neighbours, width, cell, stride=cell)
        self.global_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = _transformer(width, config.mae_heads, config.mae_depth)
        self.decoder = _transformer(width, config.mae_heads, config.mae_decoder_depth)
        self.to_pixels = nn.Linear(width, channels * cell**dims)
        nn.init.normal_(self.global_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible_image: Tensor, visible: Tensor) -> Tensor:
        """Compute the feature map.

        Args:
            visible_image: (B, C + K, H, W), the visible region ``(1 - M) x0``.
            visible: (B, r, r') bool, cells that the encoder may see.

        Returns:
            (B, D, r, r') features, hidden cells included.
        """
        grid = self.embed(visible_image)
        shape = grid.shape[2:]
        tokens = grid.flatten(2).transpose(1, 2)
        position = sincos_position(shape, tokens.shape[-1]).to(tokens)
        tokens = tokens + position
        seen = visible.flatten(1)
        encoded, order, padding = gather_visible(tokens, seen)
        start = self.global_token.to(tokens).expand(len(tokens), -1, -1)
        # The global token alone needs no padding, and torch's fast path rejects a mask with one column.
        keep = F.pad(padding, (1, 0)) if padding.shape[1] else None
        encoded = self.encoder(torch.cat([start, encoded], 1), src_key_padding_mask=keep)
        full = (self.mask_token.to(tokens) + position).to(encoded.dtype).expand_as(tokens)
        index = order[..., None].expand(-1, -1, tokens.shape[-1])
        source = torch.where(padding[..., None], full.gather(1, index), encoded[:, 1:])
        full = full.scatter(1, index, source)
        decoded: Tensor = self.decoder(torch.cat([encoded[:, :1], full], 1))[:, 1:]
        return decoded.transpose(1, 2).reshape(len(tokens), -1, *shape)

    def pixels(self, features: Tensor) -> Tensor:
        """Decode features to an image for the auxiliary loss.

        Args:
            features: (B, D, r, r').

        Returns:
            (B, C, r * cell, r' * cell).
        """
        cells = self.to_pixels(features.flatten(2).transpose(1, 2)).transpose(1, 2)
        return unfolded(cells.unflatten(2, features.shape[2:]), self.cell)


def gather_visible(tokens: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pack the visible tokens of each image to the front and drop unused columns.

    Args:
        tokens: (B, N, D).
        seen: (B, N) bool.

    Returns:
        Packed tokens (B, K, D) with K the largest count of visible tokens, their places (B, K) in `tokens`, and the
        padding mask (B, K), True where an image has fewer than K.
    """
    count = seen.sum(1)
    longest = int(count.max())
    order = torch.argsort(seen.int(), dim=1, descending=True, stable=True)[:, :longest]
    padding = torch.arange(longest, device=seen.device) >= count[:, None]
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])), order, padding


def sincos_position(shape: Sequence[int], width: int, step: float = 1.0) -> Tensor:
    """Build the table of fixed sine-cosine positions in two or three dimensions (He et al. 2022).

    Args:
        shape: (r, r') or (r, r', r'') places.
        width: Channels, a multiple of 4; in three dimensions, what is left of a multiple of 6 is 0.
        step: Distance of the places in cells: 1 for the cells themselves, 1/2 for a grid twice as fine over them.

    Returns:
        (r * r', width) float32.
    """
    count = width // (2 * len(shape))
    omega = 10000 ** (-torch.arange(count) / count)
    # centres of the places, in cells from the centre of the first cell
    centres = ((torch.arange(n, dtype=torch.float32) + 0.5) * step - 0.5 for n in shape)
    axes = torch.meshgrid(*centres, indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1) * omega for axis in axes], 1)
    table = torch.cat([angles.sin(), angles.cos()], 1)
    return F.pad(table, (0, width - table.shape[1]))


def _transformer(width: int, heads: int, depth: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)

"""Cross-attention from a U-Net to a sequence of tokens, added to an unconditional U-Net.

Source: Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022, section 3.3. With
phi the features of a U-Net's block, (h w, d_phi), and c the tokens of the condition, (N, D):

    Q = W_Q phi,  K = W_K c,  V = W_V c,  Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V
    phi <- phi + W_O Attention(Q, K, V)

Differences from the original: one layer after the middle block and after each block of the decoder, which keep their
own layers, instead of whole transformers in all blocks; W_O starts at zero, so that a fresh network is the
unconditional one, bit for bit; and queries know their place, Q = W_Q phi + W_P p, with the sine-cosine positions p of
the cells, since convolutions do not tell it and tokens of cells have one. [ours]
"""

from __future__ import annotations

import math

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from maediff.config import ModelConfig
from maediff.methods.maediff.mae import sincos_position


class CrossAttention(nn.Module):
    """Add what a feature map finds among tokens to it.

    The order of the tokens does not matter; their positions, if they have any, are part of them.

    Args:
        channels: d_phi, channels of the feature map.
        model: Width D of the tokens (`mae_width`), heads and groups.
        step: Distance of the feature map's pixels in cells.
    """

    def __init__(self, channels: int, model: ModelConfig, step: float) -> None:
        super().__init__()
        width = model.mae_width
        self.heads, self.step = model.mae_heads, step
        self.norm = nn.GroupNorm(model.norm_groups, channels)
        self.query = nn.Linear(channels, width)
        self.place = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Attend.

        Args:
            features: (B, d_phi, h, w).
            tokens: (B, N, D).

        Returns:
            (B, d_phi, h, w).
        """
        position = sincos_position((features.shape[2], features.shape[3]), tokens.shape[2], self.step).to(features)
        queries = self.query(self.norm(features).flatten(2).transpose(1, 2)) + self.place(position)
        query, key, value = (self._by_head(x) for x in (queries, self.key(tokens), self.value(tokens)))
        # products instead of a fused kernel, which would hide its operations from the benchmark's counter
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), -1)
        found = (weights @ value).transpose(1, 2).flatten(2)
        added: Tensor = self.out(found).transpose(1, 2)
        return features + added.reshape(features.shape)

    def _by_head(self, x: Tensor) -> Tensor:
        """Split channels (B, N, D) into heads (B, heads, N, D / heads)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Attending(nn.Module):
    """A block of MONAI's U-Net, followed by cross-attention; without a context it is the block alone."""

    def __init__(self, block: nn.Module, attention: CrossAttention) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    @property
    def resnets(self) -> Tensor | nn.Module:
        """Residual blocks, by whose number MONAI's U-Net hands out skip connections."""
        return self.block.resnets

    def forward(self, *inputs: Tensor, context: Tensor | None = None, **named: Tensor | list[Tensor]) -> Tensor:
        """Run the block, then attend to the context (B, N, D)."""
        features: Tensor = self.block(*inputs, **named)
        return features if context is None else self.attention(features, context)


def attend(unet: DiffusionModelUNet, model: ModelConfig, step: float) -> None:
    """Let an unconditional U-Net attend to its `context`, after the middle block and after each block of the decoder.

    Args:
        unet: Changed in place.
        model: Widths and heads.
        step: Distance of the pixels of the U-Net's input in cells.
    """
    levels = len(model.channels)
    deepest = step * 2 ** (levels - 1)
    unet.middle_block = Attending(unet.middle_block, CrossAttention(model.channels[-1], model, deepest))
    blocks = nn.ModuleList()
    for depth, block in zip(reversed(range(levels)), unet.up_blocks, strict=True):
        finer = step * 2 ** max(depth - 1, 0)  # a block ends by upsampling, the last one does not
        blocks.append(Attending(block, CrossAttention(model.channels[depth], model, finer)))
    unet.up_blocks = blocks
    unet.with_conditioning = True  # else MONAI refuses a context

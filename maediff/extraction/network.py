"""The network that finds the brain: a small 3-D U-Net whose work is done at half resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (24, 48, 64, 96)
THIN = 8
STRIDE = 16  # sides of the input are multiples of this


class _Block(nn.Sequential):
    """Convolution, instance norm and leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(0.1),
        )


class ExtractionNet(nn.Module):
    """U-Net from intensities to the logit of brain [ours].

    A strided convolution brings the scan to half resolution, where the U-Net works; eight channels at full resolution
    join its answer again and place the rim. Instance norm makes the answer independent of the intensity scale.

    Args:
        widths: Channels per level, from half resolution downwards.
        thin: Channels at full resolution.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, thin: int = THIN) -> None:
        super().__init__()
        self.rim = _Block(1, thin)
        self.stem = nn.Conv3d(1, widths[0], 2, stride=2)
        pairs = list(zip((widths[0], *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(nn.Sequential(_Block(i, o), _Block(o, o)) for i, o in pairs)
        self.up = nn.ModuleList(nn.Sequential(_Block(o + i, i), _Block(i, i)) for i, o in pairs[:0:-1])
        self.lift = nn.Conv3d(widths[0], thin, 1)
        self.head = nn.Sequential(_Block(2 * thin, thin), nn.Conv3d(thin, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of brain.

        Args:
            x: Intensities (B, 1, X, Y, Z), about 0 to 1; sides are multiples of :data:`STRIDE`.

        Returns:
            Logits (B, 1, X, Y, Z).
        """
        fine = self.rim(x)
        h = self.stem(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            h = block(F.max_pool3d(h, 2) if level else h)
            skips.append(h)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            h = block(torch.cat([F.interpolate(h, scale_factor=2), skip], dim=1))
        h = F.interpolate(self.lift(h), scale_factor=2)
        logits: Tensor = self.head(torch.cat([h, fine], dim=1))
        return logits

"""Patched diffusion, MAEDiff's direct ancestor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maediff import diffusion
from maediff.config import Config
from maediff.methods.base import Method
from maediff.methods.folded_unet import FoldedUNet
from maediff.methods.maediff.loss import Reconstruction
from maediff.methods.maediff.partition import origins, window_masks
from maediff.methods.maediff.sliding import SlidingReconstructor
from maediff.methods.objective import denoising_loss, gate_loss, perturb, read_output


class PatchedDDPM(Method):
    """Noise one patch of a fixed grid and restore it from what surrounds it (pDDPM; Behrendt et al., MIDL 2023).

    As published, the network sees the partially noised slice alone: no mask channel, no features of the visible region.
    Windows lie on the grid of `partition.window` and `partition.stride`; inference slides over the same grid.

    Differences from the public code: overlapping estimates are averaged (theirs divide inside the loop over patches, so
    they are not); every slice has its own noise; the loss is the mean over the patch (theirs over the slice, the same
    but for a constant); no ensembling of the three patch sizes.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind, self.grid = config.diffusion, config.partition
        self.train_config = config.train
        self.skip, self.gate = config.model.input_skip, config.model.gate
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)
        self.net = FoldedUNet(config.model, (1, 2 if self.gate else 1))

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss in the window of the grid that is nearest to the sample's; nothing is auxiliary."""
        noised = perturb(batch, nearest_windows(batch["mask"], self.grid.window, self.grid.stride), self.abar)
        found, train = self(noised.image, noised.mask, batch["t"]), self.train_config
        loss = denoising_loss(
            self.kind,
            found.prediction.float(),
            noised,
            batch["image"],
            train.lesion_weight,
            outside_weight=train.outside_weight,
        )
        if found.gate is not None:
            loss = loss + train.gate_weight * gate_loss(found.gate.float(), noised, batch["image"], train)
        return loss, loss.new_zeros(())

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> SlidingReconstructor:
        """Return the engine that slides the patch over the grid, as MAEDiff's does."""
        return SlidingReconstructor(self, config, device, bf16=bf16)

    def forward(self, perturbed: Tensor, mask: Tensor, t: Tensor) -> Reconstruction:
        """Predict the target of every pixel; `mask` is there for the sliding engine and is not looked at."""
        prediction, gate = read_output(self.net(perturbed, t), perturbed, skip=self.skip, gated=self.gate)
        return Reconstruction(prediction, None, gate)


def nearest_windows(mask: Tensor, window: int, stride: int) -> Tensor:
    """Move windows to the nearest place of the fixed grid.

    Args:
        mask: (B, 1, H, W), 1 inside a window of any place.
        window: Side p, pixels.
        stride: Step s of the grid.

    Returns:
        (B, 1, H, W) float32.
    """
    height, width = mask.shape[2:]
    corners = []
    for axis, length in ((3, height), (2, width)):
        first = mask.amax(axis).squeeze(1).argmax(1)
        places = torch.tensor(origins(length, window, stride), device=mask.device)
        corners.append(places[(first[:, None] - places).abs().argmin(1)])
    return window_masks(torch.stack(corners, 1), window, (height, width))

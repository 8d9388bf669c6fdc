"""Restoration of synthetic anomalies at several severities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maediff.config import Config
from maediff.methods.base import Draw
from maediff.methods.folded_unet import FoldedUNet, unet_multiple
from maediff.methods.foreign_anomalies import corrupt
from maediff.methods.whole_slices import Pass, WholeSliceMethod


class DISYRE(WholeSliceMethod):
    """Restore synthetic anomalies of known severity (DISYRE; Naval Marimont et al., ISBI 2024, MICCAI 2024).

    Every training slice carries an anomaly of `maediff.methods.foreign_anomalies`. The timestep gives its severity a_t,
    and the network predicts the healthy slice with plain squared error. At test time the unchanged scan is the input,
    once for each of `baselines.severities` severities, and the map is the mean of their |x - x^|. Pseudo-lesions,
    `train.lesion_weight`, `diffusion.test_timesteps` and noise are not used.

    Differences from the original: MONAI's U-Net of the diffusion methods; a_t = t over the last of
    `diffusion.train_timesteps`, and test severities evenly spaced up to 1 [ours]; shapes grow with the slice; brains
    are scaled by percentiles; and what `foreign_anomalies` labels as ours. Written from descriptions of the papers.
    """

    anomalies = staticmethod(corrupt)
    averages_residuals = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.multiple = unet_multiple(config.model)
        self.net = FoldedUNet(config.model)

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the squared error of the restored slice; nothing is auxiliary."""
        loss = ((self._restored(batch["image"], batch["t"]) - batch["clean"]) ** 2).mean()
        return loss, loss.new_zeros(())

    def passes(self, config: Config) -> list[Pass]:
        """Plan a single pass for each severity."""
        last, count = config.diffusion.train_timesteps[1], config.baselines.severities
        return [(max(1, round(last * number / count)), 0) for number in range(1, count + 1)]

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Restore the scan as if it had anomalies of severity t."""
        return torch.where(brain, self._restored(images, torch.full((len(images),), t, device=images.device)), images)

    def _restored(self, images: Tensor, t: Tensor) -> Tensor:
        restored: Tensor = self.net(images, t).float()
        return restored

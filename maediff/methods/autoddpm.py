"""Mask, stitch and harmonise: keep what looks healthy, repaint what does not."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config
from maediff.methods.base import Draw
from maediff.methods.ddpm import DDPM
from maediff.methods.objective import Noised, estimate_of

_MOMENTUM = 0.02


class AutoDDPM(DDPM):
    """DDPM whose first reconstruction only determines what to repaint (after Bercea et al., AutoDDPM, 2023).

    1. Reconstruct as DDPM does. 2. Suspect pixels are those whose residual is above the `baselines.suspect_quantile` of
    healthy residuals, widened by one pixel. 3. Stitch the reconstruction into the scan there. 4. Noise the stitched
    slice to `baselines.repaint_timestep` and walk back. Each step is renewed `baselines.repaint_rounds` times with the
    scan's own noised pixels around the suspects, so that both harmonise (RePaint; Lugmayr et al. 2022).

    Differences from AutoDDPM: only the residual determines suspects (theirs is multiplied by a perceptual distance);
    the healthy quantile is a running mean over training batches, at the timesteps of training; the harmonising walk
    takes `diffusion.sampler_steps` steps.
    """

    divisible = False  # the quantile of a batch
    suspect: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings = config.baselines
        self.register_buffer("suspect", torch.ones(()))

    @torch.no_grad()
    def observe(self, prediction: Tensor, noised: Noised) -> None:
        """Update the running quantile of healthy residuals."""
        residual = (estimate_of(self.kind, prediction, noised) - noised.clean).abs()[noised.clean > -1]
        if self.training and self.learns_statistics and residual.numel():
            found = torch.quantile(residual[:: 1 + residual.numel() // 100_000].float(), self.settings.suspect_quantile)
            self.suspect.lerp_(found, _MOMENTUM)

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Reconstruct, stitch and harmonise; pixels that are not suspect keep their values."""
        first = super().reconstruct(images, brain, t, draw)
        suspects = ((images - first).abs() > self.suspect) & brain
        mask = F.max_pool2d(suspects.float(), 3, 1, 1)
        stitched = mask * first + (1 - mask) * images
        return self._harmonised(stitched, images, mask, draw)

    def _harmonised(self, stitched: Tensor, images: Tensor, mask: Tensor, draw: Draw) -> Tensor:
        times = diffusion.descend(self.settings.repaint_timestep, self.kind.sampler_steps)
        x = diffusion.add_noise(stitched, draw("stitch"), self.abar[times[0]].to(images))
        for t, s in pairwise(times):
            abar_t, abar_s = self.abar[t].to(images), self.abar[s].to(images)
            for turn in range(self.settings.repaint_rounds):
                x0, _ = self.estimate(x, t, None)
                if s == 0:
                    x = x0
                    break
                inside = diffusion.ancestral_step(x, x0, abar_t, abar_s, draw("inside", s, turn))
                x = mask * inside + (1 - mask) * diffusion.add_noise(images, draw("around", s, turn), abar_s)
                if turn + 1 < self.settings.repaint_rounds:
                    x = diffusion.add_noise(x, draw("again", s, turn), abar_t / abar_s)
        return mask * x + (1 - mask) * images

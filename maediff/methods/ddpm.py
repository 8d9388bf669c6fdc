"""Whole-slice diffusion: partial noising and denoising (AnoDDPM), and the same with a global condition (cDDPM)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maediff import diffusion
from maediff.config import Config
from maediff.diffusion import variational
from maediff.methods.base import Draw
from maediff.methods.folded_unet import FoldedUNet, unet_multiple
from maediff.methods.objective import (
    Noised,
    denoising_loss,
    estimate_of,
    gate_loss,
    perturb,
    read_output,
    sampler_times,
    whole,
)
from maediff.methods.whole_slices import WholeSliceMethod


class DDPM(WholeSliceMethod):
    """Noise the whole slice to t and walk back (AnoDDPM; Wyatt et al. 2022, after Ho et al. 2020).

    `diffusion.noise` is Gaussian or simplex. `diffusion.sampler` is the full chain (ancestral, as in AnoDDPM), DDIM, or
    the single-step estimate (as pDDPM tests). `diffusion.variance` may be fixed or learned. `diffusion.bound_weight`
    adds the variational bound to the loss; if the variance is learned, only the variance learns from the bound (the
    hybrid loss of Nichol and Dhariwal 2021).

    It may see neighbouring slices (`data.neighbours`), noised like the slice, see :mod:`maediff.methods.neighbours`.

    Differences from AnoDDPM: MONAI's U-Net; objective and schedule of the configuration (theirs: eps, linear);
    timesteps of `diffusion.train_timesteps`; brains are scaled by percentiles.
    """

    def __init__(self, config: Config, embedding: int = 0) -> None:
        super().__init__()
        self.kind, self.train_config = config.diffusion, config.train
        self.skip, self.gate = config.model.input_skip, config.model.gate
        self.learned = config.diffusion.variance == "learned"
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)
        self.offsets, self.neighbour_channels = config.data.offsets, config.neighbour_channels
        widths = (1 + self.neighbour_channels, 1 + self.gate + self.learned)
        self.net = FoldedUNet(config.model, widths, embedding=embedding)
        self.multiple = unet_multiple(config.model)

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss over the whole slice; nothing is auxiliary."""
        noised = perturb(batch, whole(batch["clean"]), self.abar)
        prediction, share, gate = self.predict(noised.image, batch["t"], self.condition(batch["image"]))
        noised, image = noised.own(1), batch["image"][:, :1]
        train = self.train_config
        loss = denoising_loss(self.kind, prediction, noised, image, train.lesion_weight)
        if gate is not None:
            loss = loss + train.gate_weight * gate_loss(gate, noised, image, train)
        self.observe(prediction, noised)
        if self.kind.bound_weight:
            loss = loss + self.kind.bound_weight * self._bound(prediction, share, noised)
        return loss, loss.new_zeros(())

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Noise to level t, and sample back to 0."""
        x_t = diffusion.add_noise(images, draw(), self.abar[t].to(images))
        return self.walk(x_t, images, sampler_times(self.kind, t), draw)

    def walk(self, x_t: Tensor, images: Tensor, times: list[int], draw: Draw) -> Tensor:
        """Sample from x_t down a list of timesteps, conditioned on the scan if the method is."""
        condition = self.condition(images)

        def estimate(x: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
            return self.estimate(x, step, condition)

        def noise(step: int) -> Tensor:
            return draw("ancestral", step)

        if self.kind.sampler == "ancestral":
            return variational.sample(estimate, x_t, self.abar, times, kind=self.kind.variance, draw_noise=noise)
        return diffusion.sample(lambda x, step: estimate(x, step)[0], x_t, self.abar, times)

    def estimate(self, x_t: Tensor, t: int, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Estimate x_0 (B, 1, H, W), and the share of a learned variance, at one timestep; see :meth:`predict`."""
        prediction, share, _ = self.predict(x_t, torch.full((len(x_t),), t, device=x_t.device), condition)
        abar_t, abar_s = self.abar[t].to(x_t), self.abar[t - 1].to(x_t)
        return diffusion.x0_from(self.kind.objective, prediction, x_t[:, :1], abar_t, abar_s), share

    def predict(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the network on noised slices (B, 1 + K, H, W), their K neighbours behind them.

        Returns:
            Its prediction, the share of a learned variance or None, the gate's logits or None, (B, 1, H, W) each.
        """
        output = self.net(x_t, t, condition).float()
        image = output[:, : 1 + self.gate]
        prediction, gate = read_output(image, x_t[:, :1], skip=self.skip, gated=self.gate)
        return prediction, output[:, -1:] if self.learned else None, gate

    def condition(self, images: Tensor) -> Tensor | None:
        """Compute what the network is told about the scan; None for the plain DDPM."""
        return None

    def observe(self, prediction: Tensor, noised: Noised) -> None:
        """Learn from a training step without a gradient; the plain DDPM does nothing."""

    def _bound(self, prediction: Tensor, share: Tensor | None, noised: Noised) -> Tensor:
        """Average the term of the bound over pixels; only the variance learns from it, if it is learned."""
        estimate = estimate_of(self.kind, prediction, noised)
        levels = (noised.abar_t, noised.abar_s)
        least = variational.step_variance("posterior", self.abar[2], self.abar[1])
        variance = variational.step_variance(self.kind.variance, *levels, share, least.to(estimate))
        if self.learned:
            estimate = estimate.detach()
        return variational.bound_term(noised.image, noised.clean, estimate, levels, variance).mean()


class ConditionedDDPM(DDPM):
    """DDPM that is conditioned on a global code of the scan (after Behrendt et al., cDDPM, 2023 and 2025).

    The code holds brightness and layout, but is too small for the place and shape of a lesion. Several
    `diffusion.test_timesteps` are averaged, as in cDDPM.

    Differences from cDDPM: the encoder is a small convolutional network, trained with the U-Net from the start (theirs
    is a ResNet, pretrained by masked modelling); its code is added to the embedding of the timestep.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config, embedding=config.baselines.latent)
        layers: list[nn.Module] = []
        width = 1
        for channels in config.model.channels:
            norm = nn.GroupNorm(config.model.norm_groups, channels)
            layers += [nn.Conv2d(width, channels, 3, 2, 1), norm, nn.SiLU()]
            width = channels
        self.encoder = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, config.baselines.latent)
        )

    def condition(self, images: Tensor) -> Tensor:
        """Encode the scan: (B, latent)."""
        code: Tensor = self.encoder(images)
        return code
